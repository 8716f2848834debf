"""The report as Markdown, with its figures as PNG beside it: for a repository, an issue, or a terminal."""

from pathlib import Path

from studies.report.document import Block, Browser, Figure, HeatMap, Parallel, Report, Sample, Table, Text
from studies.report.escaping import for_markdown, markup_markdown
from studies.report.pictures import draw
from studies.text_table import format_table


def format_captioned(table: Table) -> str:
    """Returns a table and its caption."""
    numeric = [number for number in range(len(table.columns)) if table.is_numeric(number)]
    rows = [[for_markdown(cell.text) for cell in row] for row in table.rows]
    return f"{format_table([*map(for_markdown, table.columns)], rows, numeric)}\n\n{markup_markdown(table.caption)}"


def format_sample(sample: Sample) -> str:
    """Returns a question and what was written about it."""
    gold = "" if sample.gold is None else f" (gold answer: {for_markdown(sample.gold)})"
    lines = [f"> {for_markdown(sample.question)}{gold}", ""]
    for writing in sample.writings:
        verdict = {True: ", right", False: ", wrong", None: ""}[writing.correct]
        answer = "no answer read" if writing.answer is None else f"answer {for_markdown(writing.answer)}"
        lines.append(f"- **{for_markdown(writing.author)}** ({answer}{verdict}): {for_markdown(writing.text)}")
    return "\n".join(lines)


def format_browser(browser: Browser) -> str:
    """Returns where the questions can be browsed, which takes a page."""
    return f"{markup_markdown(browser.caption)} They can be searched in the page, `report.html`."


def format_block(block: Block, families: list[str], pictures: Path) -> str:
    """Returns a block as Markdown; a figure is drawn into the folder `pictures`, and linked from beside it."""
    if isinstance(block, Text):
        text = markup_markdown(block.text)
        return f"> **Note:** {text}" if block.is_warning else text
    if isinstance(block, Table):
        return format_captioned(block)
    if isinstance(block, Sample):
        return format_sample(block)
    if isinstance(block, Browser):
        return format_browser(block)
    assert isinstance(block, Figure | HeatMap | Parallel)
    draw(block, families, pictures / f"{block.name}.png")
    return f"![{block.name}]({pictures.name}/{block.name}.png)\n\n{markup_markdown(block.caption)}"


def format_facts(report: Report) -> str:
    """Returns what is read first, as a list."""
    facts = (map(markup_markdown, (fact.name, fact.value, fact.note)) for fact in report.facts)
    return "\n".join(f"- **{name}: {value}** ({note})" for name, value, note in facts)


def render_markdown(report: Report, pictures: Path) -> str:
    """Returns the report as Markdown, and draws its figures.

    Args:
        report: What it says.
        pictures: A folder for the figures, beside the file.
    """
    parts = [f"# {for_markdown(report.title)}", markup_markdown(report.lead), format_facts(report)]
    for section in report.sections:
        parts.append(f"## {for_markdown(section.title)}")
        parts += [format_block(block, report.families, pictures) for block in section.blocks]
    return "\n\n".join([*parts, markup_markdown(report.footer)]) + "\n"
