"""Where a report's texts go: one function for each destination, so that none of them is read as anything but text.

Names, questions and rationales are anybody's. A report's own paragraphs and captions hold `code` and **bold**, and
nothing else is markup in them.
"""

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from datamodules.text.plain_text import clean, clean_line, shorten
from studies.report.document import Block, Figure, HeatMap, Panel, Parallel, Section
from studies.text_table import break_addresses

# A longer label would leave no room for the figure.
LABEL_LENGTH = 60
_MARKUP = re.compile(r"`([^`\n]+)`|\*\*([^*\n]+)\*\*")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#!&@])")


def for_html(text: str) -> str:
    """Escapes for HTML, also within an attribute's quotes."""
    return html.escape(clean(text))


def for_script(value: Any) -> str:
    """Returns JSON for a script element, which none of its characters can end."""
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def for_plotly(text: str) -> str:
    """Escapes for plotly's labels, which know some HTML, links among it; and makes them fit."""
    return html.escape(shorten(clean_line(text), LABEL_LENGTH))


def for_matplotlib(text: str) -> str:
    """Escapes for matplotlib's labels, which know formulas; and makes them fit."""
    return shorten(clean_line(text), LABEL_LENGTH).replace("$", r"\$")


def for_markdown(text: str) -> str:
    """Escapes for Markdown, GitHub's and W&B's: no markup, no HTML, no link, on one line."""
    return break_addresses(_SPECIAL.sub(r"\\\1", clean_line(text)))


def markup_html(text: str) -> str:
    """Returns a paragraph's HTML."""
    return _render(text, for_html, lambda code: f"<code>{code}</code>", lambda bold: f"<strong>{bold}</strong>")


def markup_markdown(text: str) -> str:
    """Returns a paragraph's Markdown."""
    # Within code nothing is escaped, and nothing is markup.
    return _render(text, for_markdown, lambda code: f"`{code}`", lambda bold: f"**{bold}**", clean_line)


def _render(
    text: str,
    escape: Callable[[str], str],
    code: Callable[[str], str],
    bold: Callable[[str], str],
    escape_code: Callable[[str], str] | None = None,
) -> str:
    parts, place = list[str](), 0
    for match in _MARKUP.finditer(text):
        parts.append(escape(text[place : match.start()]))
        coded, emboldened = match.groups()
        parts.append(bold(escape(emboldened)) if coded is None else code((escape_code or escape)(coded)))
        place = match.end()
    return "".join([*parts, escape(text[place:])])


def name_figures(sections: Sequence[Section]) -> list[Section]:
    """Returns sections whose figures have names that are files' names, and differ."""
    used: set[str] = set()

    def rename(block: Block) -> Block:
        if not isinstance(block, Figure | HeatMap | Parallel):
            return block
        name = re.sub(r"[^A-Za-z0-9_]+", "-", block.name).strip("-")[:LABEL_LENGTH]
        used.add(name := f"{name}-{len(used)}" if name in used else name)
        return replace(block, name=name)

    return [Section(section.title, [*map(rename, section.blocks)]) for section in sections]


def relabel(figure: Figure | HeatMap | Parallel, escape: Callable[[str], str]) -> Figure | HeatMap | Parallel:
    """Returns a figure whose labels are escaped for what draws it; different ones stay different."""
    escaped: dict[str, str] = {}

    def label(text: str) -> str:
        if text not in escaped:
            own = escape(text)
            escaped[text] = f"{own} ({len(escaped)})" if own in escaped.values() else own
        return escaped[text]

    def convert(panel: Panel) -> Panel:
        marks = [replace(mark, label=label(mark.label)) for mark in panel.marks]
        series = [replace(line, label=label(line.label)) for line in panel.series]
        return Panel(label(panel.title), marks, series, escape(panel.y_title))

    if isinstance(figure, HeatMap):
        return replace(figure, x_title=escape(figure.x_title), y_title=escape(figure.y_title))
    if isinstance(figure, Parallel):
        return replace(figure, axes=[*map(label, figure.axes)])
    panels = [*map(convert, figure.panels)]
    return replace(figure, panels=panels, x_title=escape(figure.x_title), y_title=escape(figure.y_title))
