"""Tables that read well in a terminal and are Markdown."""


def format_table(rows: list[dict[str, str]]) -> str:
    """Returns rows as a table; the first row's keys are the columns, which all rows have."""
    header = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in header}
    lines = [dict(zip(header, header, strict=True)), {name: "-" * widths[name] for name in header}, *rows]
    return "\n".join(f"| {' | '.join(line[name].ljust(widths[name]) for name in header)} |" for line in lines)
