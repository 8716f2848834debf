"""The family interaction's formula in a study's own names."""

from studies.inference.interaction import decompose, explain_unidentified
from studies.report.document import Block, Cell, Table, Text
from studies.report.words import NOT_RUN, is_plain, name_place

# More terms are read in a table.
_NUM_TERMS = 8


def show_formula(results: dict) -> list[Block]:
    """Returns each cell's weight in γ of the plain arms: a formula of accuracies, or a table where that is long.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    row = next((row for row in results["gamma"] if is_plain(row)), results["gamma"][0])
    group = ("supervision", "control", "trained_on", "task")
    found = {
        (cell["student"], cell["teacher"])
        for cell in results["cells"]
        if cell["teacher"] and all(cell[name] == row[name] for name in group)
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
            decompose(*families).gamma_ST.reshape(-1).tolist(),
            strict=True,
        )
    )
    if len(weights) <= _NUM_TERMS:
        terms = " ".join(
            f"{'+' if weight > 0 else '−'} {abs(weight):.3g} · A(`{student}` from `{teacher}`)"
            for (student, teacher), weight in weights.items()
        ).removeprefix("+ ")
        return [Text(f"Here γ = {terms}, where A(student from teacher) is the student's accuracy in points.")]
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


def _weigh(weight: float | None) -> Cell:
    return Cell(NOT_RUN, None) if weight is None else Cell(f"{weight:+.3f}".replace("-", "−"), weight)
