"""Which part of the family it was: γ part by part, what it says in a sentence, and what it leaves open."""

from typing import Any

from studies.analysis.interactions import Group
from studies.analysis.parts import DIFFERENCES, LEVEL_OF_PROOF, explain_parts, group_parts, name_parts
from studies.analysis.sizes import name_size
from studies.numbers import between, points
from studies.report.document import Block, Cell, Fact, Figure, Mark, Panel, Table, Text
from studies.report.gamma import p_cell
from studies.report.words import is_plain, name_arm, name_place


def show_parts(results: dict[str, Any]) -> list[Block]:
    """Returns the effects of the families' parts; nothing where the study does not name parts.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    rows, refusals = results["parts"], group_parts(results["parts_refused"])
    groups = group_parts(rows)
    if not groups and not refusals:
        return []
    several, sizes = len(results["num_questions"]) > 1, results["study"]["sizes"]
    blocks: list[Block] = [
        Text(
            "The family interaction taken apart: γ of a part is what a teacher adds that shares it with the student, "
            "beyond how good each teacher and each student is, and beyond the other parts."
        )
    ]
    for group in {**refusals, **groups}:
        said = explain_parts(groups.get(group, []), refusals.get(group, []))
        blocks.append(Text(f"**{_name(group, several, sizes)}**: {said}", is_warning=group not in groups))
    if not rows:
        return blocks
    panels = [
        Panel(
            _name(group, several, sizes),
            [
                Mark(f"{name_parts(row)}, {row['method']}", 100 * row["estimate"], 100 * row["low"], 100 * row["high"])
                for row in own
            ],
        )
        for group, own in groups.items()
    ]
    caption = "γ of each part with its 95 % interval. The line is no effect."
    blocks.append(Figure("intervals", "parts", caption, panels, "γ of a part, percentage points", reference=0))
    cells = [
        [
            Cell(name := _name(group, several, sizes), name),
            Cell(name_parts(row), name_parts(row)),
            Cell(row["method"], row["method"]),
            Cell(points(row["estimate"]), row["estimate"]),
            Cell(between(row["low"], row["high"]), row["low"]),
            p_cell(row["p"]),
            p_cell(row["p_holm"]),
            Cell(f"{row['num_students']} × {row['num_teachers']}", row["num_students"]),
            Cell(str(row["num_seeds"]), row["num_seeds"]),
            Cell(row["note"], row["note"]),
        ]
        for group, own in groups.items()
        for row in own
    ]
    columns = [
        "arms",
        "part",
        "method",
        "γ of the part",
        "95 %",
        "p",
        "p, Holm",
        "students × teachers",
        "seeds",
        "note",
    ]
    caption = (
        "The same, in percentage points. Holm's p is over the parts of one grid and method. `mixed model`: over other "
        "pairs of models, too."
    )
    return [*blocks, Table(columns, cells, caption)]


def name_part(rows: list[dict[str, Any]]) -> list[Fact]:
    """Returns which part of the family it was, by text alone, as what is read first; nothing without parts.

    Args:
        rows: Of all parts, means over sizes first.
    """
    own = next(iter(group_parts(row for row in rows if is_plain(row) and row["method"] == DIFFERENCES).values()), [])
    if not own:
        return []
    shown = [name_parts(row) for row in own if row["p_holm"] < LEVEL_OF_PROOF]
    each = [f"{name_parts(row)} {points(row['estimate'])} {between(row['low'], row['high'])}" for row in own]
    return [Fact("Part of the family", " and ".join(shown) or "none shows", f"γ by part: {'; '.join(each)}")]


def _name(group: Group, several: bool, sizes: list[int]) -> str:
    arms = name_arm(group.supervision, None, group.control), name_size(group._asdict(), sizes)
    name = ", ".join(filter(None, arms))
    return f"{name_place(group.trained_on, group.task)}, {name}" if several else name
