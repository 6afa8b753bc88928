"""Whatever call that writes is killed or fails, the same command ends with the same bytes. A sample
of them; `python tests/e2e/crash_points.py FOLDER` tries all, in a few minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

POINTS = 50


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks")
def test_fifty_crash_points_of_all_kinds(cache: Path, tmp_path: Path) -> None:
    """In a process of its own: it puts its own `open` in the place of Python's."""
    command = [sys.executable, Path(__file__).with_name("crash_points.py"), tmp_path, str(POINTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    *points, summary = map(json.loads, done.stdout.splitlines())
    assert [point for point in points if point["problem"]] == []
    assert len(points) == POINTS
    assert {point["fault"] for point in points} == {"kill", "no space", "io error"}
    assert summary["killed"] > 10
    assert summary["told"] > 10
    assert summary["all points"] > 1000
    print(summary)
