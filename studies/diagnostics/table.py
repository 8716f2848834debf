"""Diagnostics as tables and as a heat map; teachers that saw the gold answers apart from those that did not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files.atomic import atomic_path
from studies.text_table import format_table

CONDITIONS = {True: "shown the gold answer", False: "not shown the gold answer", None: "unknown whether shown gold"}


def _group(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], bool | None, list[dict[str, Any]]]]:
    """Yields (student, task), gold_conditioned, rows."""
    for key in dict.fromkeys((row["student"], row["task"]) for row in rows):
        for condition in CONDITIONS:
            group = [
                row for row in rows if (row["student"], row["task"]) == key and row["gold_conditioned"] is condition
            ]
            if group:
                yield key, condition, group


def format_number(value: float) -> str:
    """Returns three significant digits, without an exponent where there need not be one."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.2g}"


def _format_cell(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "–"
    low, high = row["intervals"][name]
    # The same number for every question, but for rounding.
    if high - low < 1e-9:
        return format_number(row[name])
    return f"{format_number(row[name])} ±{format_number((high - low) / 2)}"


def format_tables(rows: Sequence[dict[str, Any]], metrics: dict[str, dict[str, Any]]) -> str:
    """Returns Markdown: for each student, task and condition a table, a line for each diagnostic; and what they are."""
    parts = []
    for (student, task), condition, group in _group(rows):
        cells = []
        for name in metrics:
            if any(name in row for row in group):
                arrow = {"lower": "↓", "higher": "↑", None: ""}[metrics[name]["better"]]
                cells.append([name, arrow, *(_format_cell(row, name) for row in group)])
        parts += [
            f"{task}, read by {student}; {CONDITIONS[condition]}; {group[0]['num_questions']} questions",
            format_table(["", "", *(row["teacher"] for row in group)], cells, right=range(2, 2 + len(group))),
        ]
    notes = [f"- {name}: {metric['description']} ({metric['source']})" for name, metric in metrics.items()]
    arrows = "± is half the 95 % interval over questions. ↓ lower, ↑ higher is said to make a better teacher."
    return "\n\n".join([*parts, arrows, "\n".join(notes)])


def plot_heat_map(rows: Sequence[dict[str, Any]], metrics: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws a panel for each student and task: teachers x diagnostics, standardised over the panel's teachers."""
    # Heavy, and only this needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, str], list[tuple[str, dict[str, Any] | None]]] = {}
    for key, condition, group in _group(rows):
        lines = panels.setdefault(key, [])
        lines.append((CONDITIONS[condition], None))
        lines += [(row["teacher"], row) for row in group]
    heights = [len(lines) for lines in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, squeeze=False, figsize=(3 + 0.42 * len(metrics), 1.6 * len(panels) + 0.26 * sum(heights)),
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for axis, ((student, task), lines) in zip(axes[:, 0], panels.items(), strict=True):
        table = np.array([[row.get(name, np.nan) if row else np.nan for name in metrics] for _, row in lines])
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = table - np.array([np.nanmean(column) if np.isfinite(column).any() else 0 for column in table.T])
            spread = np.sqrt(np.nansum(scores**2, 0) / np.maximum(np.isfinite(scores).sum(0) - 1, 1))
            scores = scores / np.where(spread > 1e-9 * np.nanmax(np.abs(table), 0, initial=1), spread, np.inf)
        image = axis.imshow(scores, cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto")
        for (line, column), score in np.ndenumerate(scores):
            if np.isfinite(score):
                colour = "white" if abs(score) > 1.6 else "black"
                text = format_number(float(table[line, column]))
                axis.text(column, line, text, ha="center", va="center", fontsize=5, color=colour)
        axis.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=7)
        for label, (_, row) in zip(axis.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if row is None else "normal")
        axis.set_xticks(range(len(metrics)), list(metrics), rotation=90, fontsize=7)
        axis.set_title(f"{task}, read by {student}", fontsize=9)
    figure.colorbar(image, ax=axes[:, 0].tolist(), shrink=0.4, label="standard deviations from the teachers' mean")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")
    plt.close(figure)
