"""The report as one HTML file that needs no network: for a browser, on a laptop or a phone, in light or dark."""

import base64
import gzip
import re
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from datamodules.text.plain_text import clean, clean_line, shorten
from studies.report.data import export
from studies.report.document import (
    Block,
    Browser,
    Cell,
    Fact,
    Figure,
    HeatMap,
    Parallel,
    Report,
    Sample,
    Section,
    Table,
    Text,
    Writing,
)  # fmt: skip
from studies.report.escaping import LABEL_LENGTH, for_html, for_plotly, for_script, markup_html, relabel
from studies.report.plots import family_colour, plot

# Nothing may be loaded, whatever a teacher wrote.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
_LONG_TABLE = 18


# What it holds is in the page's script.
_BROWSER = """<div class="browser" role="group" aria-label="Questions">
<div class="controls">
<label>Search <input type="search" data-control="search" placeholder="words of a question or an answer"></label>
<label>Questions <select data-control="kind"><option value="held-out">held out</option><option value="training">for
training</option></select></label>
<label><input type="checkbox" data-control="wrong"><span>only wrong</span></label>
<label><input type="checkbox" data-control="differ"><span>only where arms differ</span></label>
</div>
<details><summary>Arms and teachers shown</summary><div class="controls" data-control="authors"></div></details>
<p class="caption" data-control="count" aria-live="polite"></p>
<div data-control="list"></div>
<div class="controls"><button type="button" class="download" data-control="previous">Previous</button>
<button type="button" class="download" data-control="next">Next</button></div>
</div>"""


def _pack(text: str) -> str:
    """Returns a text that the page unpacks, of letters that mean nothing in markup."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _slug(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower())


class Page:
    """Renders a report.

    Args:
        report: What it says.
    """

    def __init__(self, report: Report):
        self.report = report
        self.figures: dict[str, dict[str, Any]] = {}
        self.questions = ""
        self.downloads: dict[str, str] = {}

    def render(self) -> str:
        """Returns the whole file."""
        report, here = self.report, Path(__file__).parent
        sections = "\n".join(map(self._section, report.sections))
        links = "".join(f'<li><a href="#{_slug(s.title)}">{for_html(s.title)}</a></li>' for s in report.sections)
        figures, downloads = for_script(self.figures), for_script(self.downloads)
        plotly = _pack(get_plotlyjs())
        title = for_html(report.title)
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{(here / "page.css").read_text()}</style>
</head>
<body>
<header>
<p class="kicker">A study of teachers and students</p>
<h1>{title}</h1>
<p class="lead">{markup_html(report.lead)}</p>
<dl class="facts">{"".join(map(self._fact, report.facts))}</dl>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{sections}
</main>
<footer>{markup_html(report.footer)}</footer>
<script type="application/json" id="figures">{figures}</script>
<script type="application/json" id="downloads">{downloads}</script>
<script type="text/plain" id="questions-data">{self.questions}</script>
<script type="text/plain" id="plotly">{plotly}</script>
<script>
{(here / "page.js").read_text()}</script>
<script>
{(here / "page.questions.js").read_text()}</script>
</body>
</html>
"""

    def _fact(self, fact: Fact) -> str:
        return (
            f'<div><dt>{markup_html(fact.name)}</dt><dd class="value">{markup_html(fact.value)}</dd>'
            f'<dd class="note">{markup_html(fact.note)}</dd></div>'
        )

    def _section(self, section: Section) -> str:
        blocks = "\n".join(map(self._block, section.blocks))
        # The first of several samples shows what there is to open.
        blocks = blocks.replace("</p>\n<details>", "</p>\n<details open>")
        return f'<section id="{_slug(section.title)}">\n<h2>{for_html(section.title)}</h2>\n{blocks}\n</section>'

    def _block(self, block: Block) -> str:
        if isinstance(block, Text):
            return f"<p{' class=warning' if block.is_warning else ''}>{markup_html(block.text)}</p>"
        if isinstance(block, Table):
            return self._table(block)
        if isinstance(block, Browser):
            return self._browser(block)
        if isinstance(block, Sample):
            return self._sample(block)
        return self._figure(block)

    def _figure(self, figure: Figure | HeatMap | Parallel) -> str:
        self.figures[figure.name] = plot(relabel(figure, for_plotly), self.report.families)
        download = self._download(figure.name, figure)
        legend = self._legend(figure) if isinstance(figure, Figure) else ""
        return (
            f'<figure>{legend}<div class="plot" id="plot-{figure.name}"></div>'
            f"<figcaption>{markup_html(figure.caption)} {download}</figcaption></figure>"
        )

    def _download(self, name: str, block: Table | Figure | HeatMap | Parallel) -> str:
        """Returns the button that saves a block's data, which the page keeps."""
        self.downloads[name] = export(block)
        return f'<button type="button" class="download" data-name="{name}">Data (CSV)</button>'

    def _legend(self, figure: Figure) -> str:
        """Returns a legend of the lines, or of the families that have marks."""
        items = {}
        for panel in figure.panels:
            for series in panel.series:
                colour = family_colour(series.family, self.report.families)
                dash = ' stroke-dasharray="3 3"' if series.is_dashed else ""
                items[series.label] = f'<path d="M0 6H22" stroke="{colour}" stroke-width="2.5"{dash}/>'
            for mark in panel.marks:
                if mark.family is not None:
                    colour = family_colour(mark.family, self.report.families)
                    items[f"family {mark.family}"] = f'<circle cx="14" cy="6" r="5" fill="{colour}"/>'
        entries = (f'<li><svg viewBox="0 0 22 11">{icon}</svg>{for_html(name)}</li>' for name, icon in items.items())
        return f'<ul class="legend">{"".join(entries)}</ul>' if items else ""

    def _table(self, table: Table) -> str:
        numeric = [table.is_numeric(column) for column in range(len(table.columns))]
        heads = "".join(
            f'<th scope="col"{" class=number" if is_number else ""}><button>{for_html(name)}</button></th>'
            for name, is_number in zip(table.columns, numeric, strict=True)
        )
        rows = "".join(
            f"<tr>{''.join(self._cell(*pair) for pair in zip(row, numeric, strict=True))}</tr>\n" for row in table.rows
        )
        download = self._download(f"table-{len(self.downloads)}", table)
        long = " long" if len(table.rows) > _LONG_TABLE else ""
        return (
            f'<div class="table{long}" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>\n{rows}</tbody></table></div>"
            f'<p class="caption">{markup_html(table.caption)} {download}</p>'
        )

    def _cell(self, cell: Cell, is_number: bool) -> str:
        kind = "number" if is_number else ("wrap" if len(cell.text) > 40 else "")
        value = "" if cell.value is None else f' data-value="{for_html(str(cell.value))}"'
        dot = self._dot(cell.family)
        return f"<td{f' class={kind}' if kind else ''}{value}>{dot}{for_html(cell.text)}</td>"

    def _dot(self, family: str | None) -> str:
        if family is None:
            return ""
        return f'<span class="dot" style="--colour:{family_colour(family, self.report.families)}"></span>'

    def _sample(self, sample: Sample) -> str:
        gold = "" if sample.gold is None else f'<span class="gold">Gold answer: {for_html(sample.gold)}</span>'
        writings = "".join(map(self._writing, sample.writings))
        return (
            f"<details><summary>{for_html(sample.question)}\n{gold}</summary>"
            f'<div class="writings">{writings}</div></details>'
        )

    def _browser(self, browser: Browser) -> str:
        questions = [
            {
                "id": clean(asked.id), "question": asked.question, "gold": asked.gold and clean(asked.gold),
                "held_out": asked.is_held_out,
                "writings": [
                    (writing := asked.writings.get(author)) and [writing.text, writing.answer, writing.correct]
                    for author in browser.authors
                ],
            }
            for asked in browser.questions
        ]  # fmt: skip
        authors = [shorten(clean_line(author), LABEL_LENGTH) for author in browser.authors]
        self.questions = _pack(for_script({"authors": authors, "questions": questions}))
        return f'{_BROWSER}<p class="caption">{markup_html(browser.caption)}</p>'

    def _writing(self, writing: Writing) -> str:
        verdict = {True: '<span class="right">✓ right</span>', False: '<span class="wrong">✗ wrong</span>', None: ""}
        answer = "no answer read" if writing.answer is None else f"answer {for_html(writing.answer)}"
        return (
            f"<div><h3>{self._dot(writing.family)}{for_html(writing.author)} · {answer} "
            f"{verdict[writing.correct]}</h3><p>{for_html(writing.text)}</p></div>"
        )


def render_html(report: Report) -> str:
    """Returns the report as one file."""
    return Page(report).render()
