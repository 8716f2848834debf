"""Grids of which only the cells' means are known, for example a paper's table; some are in `studies/published/`."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.text.plain_text import describe_error
from studies.inference.interaction import decompose, describe_df, estimate_gammas
from studies.numbers import signed, signed_between
from studies.text_table import format_table


@dataclass(frozen=True)
class AccuracyGrid:
    """A complete grid of accuracies.

    Attributes:
        students: Family by name.
        teachers: Family by name.
        accuracy_ST: One for each student and teacher.
    """

    students: dict[str, str]
    teachers: dict[str, str]
    accuracy_ST: np.ndarray

    @property
    def families(self) -> tuple[list[str], list[str]]:
        """The students' families and the teachers'."""
        return list(self.students.values()), list(self.teachers.values())


def read_grid(path: Path) -> AccuracyGrid:
    """Reads a csv file of cell means with the columns student, student_family, teacher, teacher_family, accuracy.

    Raises:
        ValueError: A column or a cell is missing, a cell is there twice, a model has two families, or an accuracy is no
            share.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if not line.startswith("#")]
        rows = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as csv: {describe_error(error)}") from None
    columns = {"student", "student_family", "teacher", "teacher_family", "accuracy"}
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"{path}: needs rows with the columns {', '.join(sorted(columns))}")
    if short := [row for row in rows if any(row[name] is None for name in columns)]:
        raise ValueError(f"{path}: a row has fewer fields than columns: {', '.join(filter(None, short[0].values()))}")
    # What has no column is under None: after a decimal comma, say.
    if long := [row for row in rows if None in row]:
        raise ValueError(
            f"{path}: a row has more fields than columns: {', '.join(filter(None, [*long[0].values()][:-1]))}"
        )
    families: dict[str, dict[str, str]] = {"student": {}, "teacher": {}}
    for row in rows:
        for kind, known in families.items():
            if known.setdefault(row[kind], row[f"{kind}_family"]) != row[f"{kind}_family"]:
                raise ValueError(f"{path}: {kind} {row[kind]} has two families")
    counts = Counter((row["student"], row["teacher"]) for row in rows)
    for student in families["student"]:
        for teacher in families["teacher"]:
            if (number := counts[student, teacher]) != 1:
                what = "is missing" if number == 0 else "is there twice"
                raise ValueError(f"{path}: the cell of student {student} and teacher {teacher} {what}")
    try:
        found = {(row["student"], row["teacher"]): float(row["accuracy"]) for row in rows}
    except ValueError as error:
        raise ValueError(f"{path}: accuracy: {error}") from None
    if wrong := [cell for cell, value in found.items() if not 0 <= value <= 1]:
        cell = "student {} and teacher {}".format(*wrong[0])
        raise ValueError(f"{path}: the accuracy of {cell} is {found[wrong[0]]}, no share from 0 to 1")
    grid = [[found[student, teacher] for teacher in families["teacher"]] for student in families["student"]]
    return AccuracyGrid(families["student"], families["teacher"], np.array(grid))


def format_means(grid: AccuracyGrid) -> str:
    """Returns as Markdown how in-family and cross-family teachers do by student, and the family interaction.

    Raises:
        ValueError: The grid does not identify the family interaction.
    """
    columns = ["student", "in-family teachers (n)", "cross-family teachers (n)", "difference"]
    rows = []
    for (student, family), row_T in zip(grid.students.items(), grid.accuracy_ST, strict=True):
        own_T = np.array([other == family for other in grid.families[1]])
        cells = [f"{row_T[mask].mean():.2%} ({mask.sum()})" if mask.any() else "–" for mask in (own_T, ~own_T)]
        difference = (
            signed(100 * (row_T[own_T].mean() - row_T[~own_T].mean()), 2) if 0 < own_T.sum() < len(own_T) else "–"
        )
        rows.append([f"{student} ({family})", *cells, difference])
    gamma = float((decompose(*grid.families).gamma_ST * grid.accuracy_ST).sum())
    lines = [
        format_table(columns, rows, right=range(1, 4)),
        f"\nFamily interaction γ = {signed(100 * gamma, 2)} points, without the main effects of teachers and students.",
    ]
    for method, found, df in estimate_gammas(grid.accuracy_ST, *grid.families):
        ends = signed_between(100 * found.low, 100 * found.high, 2)
        lines.append(f"- {method}: 95 % interval {ends}, p = {found.p:.2g}; {describe_df(df, *grid.families)}")
    return "\n".join(lines)
