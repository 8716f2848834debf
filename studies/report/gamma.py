"""The family interaction's formula in a study's own names, and how those of text and of distributions differ."""

from typing import Any

from studies.analysis.interactions import explain_difference
from studies.analysis.sizes import name_size
from studies.inference.interaction import decompose, explain_unidentified
from studies.numbers import between, points, signed
from studies.report.document import Block, Cell, Table, Text
from studies.report.words import NOT_RUN, is_plain, name_place

# More terms are read in a table.
_NUM_TERMS = 8


def show_formula(results: dict[str, Any]) -> list[Block]:
    """Returns each cell's weight in γ of the plain arms: a formula of accuracies, or a table where that is long.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    row = next((row for row in results["gamma"] if is_plain(row)), results["gamma"][0])
    group = ("supervision", "control", "trained_on", "task")
    found = {
        (cell["student"], cell["teacher"])
        for cell in results["cells"]
        if cell["teacher"] and all(cell[name] == row[name] for name in group) and row["size"] in (None, cell["size"])
    }
    specs = results["study"]
    students = [name for name in specs["students"] if any(student == name for student, _ in found)]
    teachers = [name for name in specs["teachers"] if all((student, name) in found for student in students)]
    families = ([specs["students"][name]["family"] for name in students],
                [specs["teachers"][name]["family"] for name in teachers])  # fmt: skip
    if not teachers or explain_unidentified(*families):
        return []
    weights = dict(
        zip(
            [(student, teacher) for student in students for teacher in teachers],
            # Least squares leaves 1e-16 where a cell has no weight.
            (decompose(*families).gamma_ST.round(9) + 0.0).reshape(-1).tolist(),
            strict=True,
        )
    )
    if len(weights) <= _NUM_TERMS:
        terms = " ".join(
            f"{'+' if weight > 0 else '−'} {abs(weight):.3g} · A(`{student}` from `{teacher}`)"
            for (student, teacher), weight in weights.items()
            if weight
        ).removeprefix("+ ")
        others = "" if all(weights.values()) else " The other cells have no weight."
        return [Text(f"Here γ = {terms}, where A(student from teacher) is the student's accuracy in points.{others}")]
    rows = [
        [
            Cell(student, student, specs["students"][student]["family"]),
            *(_weigh(weights.get((student, teacher))) for teacher in specs["teachers"]),
        ]
        for student in students
    ]
    where = name_place(row["trained_on"], row["task"])
    caption = f"Each cell's weight in γ of {where}: γ is the sum of the accuracies of students (rows) by teachers."
    return [Table(["student", *specs["teachers"]], rows, caption)]


def p_cell(p: float | None) -> Cell:
    """Returns a probability as a cell."""
    text = "–" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")
    return Cell(text, p)


def show_differences(results: dict[str, Any]) -> list[Block]:
    """Returns how family interactions of text and of distributions differ: a sentence for each pair, and a table.

    Args:
        results: Of the study.
    """
    rows = results["gamma_differences"]
    if not rows:
        return []
    several, sizes = len({(row["trained_on"], row["task"]) for row in rows}) > 1, results["study"]["sizes"]
    texts = [
        Text(
            ": ".join(filter(None, (name_place(row["trained_on"], row["task"]) * several, name_size(row, sizes), said)))
        )
        for row in rows
        if row["method"] == rows[0]["method"]
        for said in [explain_difference(row)]
    ]
    cells = [
        [
            *([Cell(place := name_place(row["trained_on"], row["task"]), place)] if several else []),
            *([Cell(size := name_size(row, sizes), row["size"] or size)] if sizes else []),
            *(Cell(row[side], row[side]) for side in ("left", "right")),
            Cell(row["method"], row["method"]),
            *(Cell(points(row[name]), row[name]) for name in ("left_gamma", "right_gamma", "estimate")),
            Cell(between(row["low"], row["high"]), row["low"]),
            p_cell(row["p"]),
            Cell(str(row["num_seeds"]), row["num_seeds"]),
            Cell(row["note"] or "", row["note"] or ""),
        ]
        for row in rows
    ]
    caption = (
        "Differences of γ, in percentage points, of the students and teachers that both have: one contrast of all "
        "their cells, which answer the same questions, so that the interval is theirs jointly. Against `rationale`: "
        "what the distributions add, or, of `on-policy`, learning from its own text. Against arms in which all texts "
        "come with distributions of the student's own family: what the distributions' family changes while the texts "
        "are the same."
    )
    columns = ["arms", "less arms", "method", "γ", "less γ", "difference", "95 %", "p", "seeds", "note"]
    columns = [*["task"] * several, *["size"] * bool(sizes), *columns]
    return [*texts, Table(columns, cells, caption)]


def _weigh(weight: float | None) -> Cell:
    return Cell(NOT_RUN, None) if weight is None else Cell(signed(weight, 3), weight)
