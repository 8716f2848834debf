"""What students took over of the preferences that their teachers were tuned to: shifts, their ratio, its interval."""

import math
from typing import Any

from studies.numbers import signed, signed_between
from studies.report.document import Block, Cell, Figure, Mark, Panel, Table, Text
from studies.report.words import name_arm


def show_traits(results: dict[str, Any]) -> list[Block]:
    """Returns what each arm with a trait shifted by; nothing where no arm has one.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    rows, study = results["traits"], results["study"]
    if not rows:
        return []
    blocks: list[Block] = [
        Text(
            "Teachers were tuned to a preference, and taught on texts that do not show it. A shift is the mean over "
            "neutral questions of what the log-odds of the preferred option changed by: the teacher's by its tuning, "
            "the student's against the arm that is named."
        )
    ]
    marks = [
        Mark(_name(row), row["ratio"], row["low"], row["high"], study["teachers"][row["teacher"]]["family"])
        for row in rows
        if row["ratio"] is not None and math.isfinite(row["low"]) and math.isfinite(row["high"])
    ]
    if marks:
        caption = "The student's shift as a ratio of its teacher's, with its 95 % interval. The line is no shift."
        axis = "ratio of the student's shift to the teacher's"
        blocks.append(Figure("intervals", "traits", caption, [Panel("", marks)], axis, reference=0))
    cells = [
        [
            Cell(row["trait"], row["trait"]),
            Cell(row["student"], row["student"], study["students"][row["student"]]["family"]),
            Cell(_name_arm(row), row["control"], study["teachers"][row["teacher"]]["family"]),
            Cell(row["against"], row["against"]),
            *(_tell_shift(row[side]) for side in ("student_shift", "teacher_shift")),
            *_tell_ratio(row),
            Cell(str(row["num_questions"]), row["num_questions"]),
            Cell(str(row["num_seeds"]), row["num_seeds"]),
        ]
        for row in rows
    ]
    columns = ["trait", "student", "arm", "against", "student's shift", "teacher's shift", "ratio", "95 %", "questions",
               "seeds"]  # fmt: skip
    caption = (
        "Shifts in log-odds, and the ratio of the two with Fieller's interval over training seeds and questions; none "
        "where the teacher's shift is not told from 0."
    )
    return [*blocks, Table(columns, cells, caption)]


def _name_arm(row: dict[str, Any]) -> str:
    arm = name_arm(row["supervision"], row["teacher"], row["control"], row["size"])
    return f"{arm}, after {row['trained_on']}"


def _name(row: dict[str, Any]) -> str:
    return f"{row['trait']}: student {row['student']}, {_name_arm(row)}"


def _tell_shift(shift: dict[str, Any]) -> Cell:
    text = f"{signed(shift['estimate'], 2)} {signed_between(shift['low'], shift['high'], 2)}"
    return Cell(text, shift["estimate"])


def _tell_ratio(row: dict[str, Any]) -> list[Cell]:
    if row["ratio"] is None:
        return [Cell("–"), Cell("–")]
    return [Cell(signed(row["ratio"], 3), row["ratio"]), Cell(signed_between(row["low"], row["high"], 3), row["low"])]
