"""The benchmark of planted truths runs whole on the tiny model, goes on where it stopped, and
changes nothing in the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import SmokeRun

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench_planted_truths as bench


def test_all_but_those_of_the_code_organism(
    smoke_run: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (smoke_run.path / "results.json").read_bytes()
    rows = bench.judge_all(tmp_path, smoke_run.path, seeds=1)
    assert len(rows) == 18
    assert {row["said"] for row in rows} == {"cannot tell"}, "its numbers mean nothing"
    assert "18 of 18 right or" in (tmp_path / "table.md").read_text("utf-8")
    assert (smoke_run.path / "results.json").read_bytes() == before
    capsys.readouterr()
    assert bench.judge_all(tmp_path, smoke_run.path, seeds=1) == rows
    assert "cannot tell" not in capsys.readouterr().out, "known rows are not judged again"
