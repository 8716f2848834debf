"""Tables that read well in a terminal and are Markdown."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from datamodules.text.plain_text import clean_line

_MARKUP = re.compile(r"([\\<\[\]|@])")


def escape_markup(value: Any) -> Any:
    """Returns JSON whose texts, keys included, are each one line that has no HTML, no link and no picture as Markdown.

    Emphasis and code are left, so that most names read in a terminal as they are.
    """
    if isinstance(value, dict):
        return {escape_markup(key): escape_markup(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(escape_markup, value)]
    if not isinstance(value, str):
        return value
    return break_addresses(_MARKUP.sub(r"\\\1", clean_line(value)))


def break_addresses(text: str) -> str:
    """Returns Markdown in which no address becomes a link by itself."""
    return text.replace("://", r":\//").replace("www.", r"www\.")


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns a table, in which no cell's text can do anything to a terminal.

    Args:
        columns: Their headings.
        rows: The cells, each row as long as `columns`.
        right: The numbers of the columns that are aligned to the right.
    """
    columns, rows = [*map(clean_line, columns)], [[*map(clean_line, row)] for row in rows]
    widths = [max(3, *map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    rules = ["-" * (width - 1) + ":" if n in right else "-" * width for n, width in enumerate(widths)]
    lines = [
        [cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in (columns, rules, *rows))
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_records(records: Sequence[dict[str, str]]) -> str:
    """Returns records as a table; the first one's keys are the columns, which all have."""
    columns = list(records[0])
    return format_table(columns, [[record[name] for name in columns] for record in records])
