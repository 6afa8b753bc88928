"""The script for a borrowed card, tried without one: every section at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
SECTIONS = {"machine", "product", "computation", "training", "generation", "memory"}


def called(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--toy", "--here", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_every_section_of_the_gpu_check_runs(cache: Path, tmp_path: Path) -> None:
    """In one process: each of its own would import everything anew."""
    done = called(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert {file.stem for file in tmp_path.glob("*.jsonl")} == SECTIONS
    facts = [json.loads(x) for f in tmp_path.glob("*.jsonl") for x in f.read_text().splitlines()]
    assert [fact for fact in facts if fact["ok"] is False] == []
    assert sum(fact["ok"] is True for fact in facts) > 35
    ratios = [fact["name"] for fact in facts if " / " in fact["name"]]
    assert len(ratios) >= 3
    assert len((tmp_path / "table.md").read_text().splitlines()) == len(facts) + 2


def test_a_check_that_fails_is_seen(cache: Path, tmp_path: Path) -> None:
    """Where the folder of the runs is a file, the product fails."""
    (tmp_path / "runs").write_text("")
    done = called(tmp_path, "--only", "product")
    assert done.returncode == 1
    assert "**fails**" in done.stdout
