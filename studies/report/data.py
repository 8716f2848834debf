"""The data behind a table or a figure, as a spreadsheet's file."""

import csv
import io
from collections.abc import Sequence

from datamodules.text.plain_text import clean
from studies.report.document import Cell, Figure, HeatMap, Parallel, Table

Value = float | int | str | None
# A spreadsheet takes a text that begins so for a formula, in Asia's wide forms, too.
_FORMULA = ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠")


def for_csv(value: Value) -> str:
    """Returns what a field of a file holds: a number as it is, a text that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    if isinstance(value, int | float):
        return repr(value)
    text = clean(value)
    # The apostrophe says that text follows.
    return f"'{text}" if text.lstrip(" \n\ufffd").startswith(_FORMULA) or text.startswith(_FORMULA) else text


def format_csv(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """Returns rows as CSV (RFC 4180), the columns' names first."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([[for_csv(value) for value in row] for row in [columns, *rows]])
    return file.getvalue()


def export(block: Table | Figure | HeatMap | Parallel) -> str:
    """Returns what a table or a figure shows, unrounded, as CSV."""
    if isinstance(block, Table):
        return format_csv(block.columns, [[_unround(cell) for cell in row] for row in block.rows])
    if isinstance(block, Parallel):
        return format_csv(block.axes, block.rows)
    if isinstance(block, HeatMap):
        cells = [
            [x, y, value, count]
            for y, values, counts in zip(block.ys, block.values, block.counts, strict=True)
            for x, value, count in zip(block.xs, values, counts, strict=True)
        ]
        return format_csv([block.x_title, block.y_title, f"mean, {block.unit}", "runs"], cells)
    if block.kind == "lines":
        points = [
            [panel.title, line.label, line.family, x, y]
            for panel in block.panels
            for line in panel.series
            for x, y in zip(line.xs, line.ys, strict=True)
        ]
        return format_csv(["panel", "line", "family", block.x_title, block.y_title], points)
    marks = [(panel.title, mark) for panel in block.panels for mark in panel.marks]
    num_seeds = max((len(mark.seeds) for _, mark in marks), default=0)
    if block.kind == "scatter":
        return format_csv(
            ["panel", "label", "family", "x", block.y_title],
            [[title, mark.label, mark.family, mark.x, mark.estimate] for title, mark in marks],
        )
    columns = ["panel", "label", "family", block.x_title, "low", "high", *(f"seed {n}" for n in range(num_seeds))]
    rows = [
        [title, mark.label, mark.family, mark.estimate, mark.low, mark.high, *mark.seeds,
         *[None] * (num_seeds - len(mark.seeds))]
        for title, mark in marks
    ]  # fmt: skip
    return format_csv(columns, rows)


def _unround(cell: Cell) -> Value:
    # An interval is sorted by its lower end, which is not all it says.
    is_number = isinstance(cell.value, int | float) and not cell.text.startswith("[")
    return cell.value if is_number else cell.text
