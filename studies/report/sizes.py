"""Accuracy against the number of training questions, arm by arm, and how many a wanted accuracy takes."""

from collections import defaultdict
from typing import Any

from studies.numbers import percent
from studies.report.document import Block, Cell, Figure, Panel, Series, Table
from studies.report.words import name_arm, name_file, name_place


def show_sizes(results: dict[str, Any]) -> list[Block]:
    """Returns the curves of each student's arms, and the sizes that they need; nothing without several sizes.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    study, blocks = results["study"], list[Block]()
    if len(study["sizes"]) < 2:
        return []
    places = defaultdict[tuple[str, str], list[dict[str, Any]]](list)
    for cell in results["cells"]:
        if cell["size"] is not None:
            places[cell["trained_on"], cell["task"]].append(cell)
    for place, cells in places.items():
        panels = []
        for name, spec in study["students"].items():
            arms = defaultdict[str, list[dict[str, Any]]](list)
            for cell in cells:
                if cell["student"] == name:
                    arms[name_arm(cell["supervision"], cell["teacher"], cell["control"])].append(cell)
            lines = [
                Series(
                    arm,
                    [own["size"] for own in curve],
                    [100 * own["accuracy"] for own in curve],
                    curve[0]["teacher_family"],
                    curve[0]["supervision"] != "rationale",
                )
                for arm, curve in arms.items()
            ]
            panels.append(Panel(f"student {name} ({spec['family']})", series=lines))
        caption = (
            f"**{name_place(*place)}**: accuracy on held-out questions against the number of training questions, mean "
            "over seeds, each of which draws its own questions; intervals are in the table of all cells. Colour: the "
            "teacher's family; dashed: `label` and `rationale+logits`."
        )
        name = f"sizes-{name_file(*place)}"
        blocks.append(Figure("lines", name, caption, panels, "training questions", "accuracy, %", log_x=True))
    rows = [
        [
            Cell(row["student"], row["student"], study["students"][row["student"]]["family"]),
            Cell(arm := name_arm(row["supervision"], row["teacher"], row["control"]), arm),
            *([Cell(where := name_place(row["trained_on"], row["task"]), where)] if len(places) > 1 else []),
            Cell(percent(row["target"]), row["target"]),
            *(_tell(row[end], study["sizes"]) for end in ("needed", "low", "high")),
        ]
        for row in results["needed_sizes"]
    ]
    columns = ["student", "arm", *["task"] * (len(places) > 1), "accuracy", "questions needed", "at least", "at most"]
    caption = (
        "How many training questions an accuracy takes, with the ends of the 95 % interval (`needed size`, see "
        "Methods). Where the study names no accuracy it is halfway between the student's worst and best mean."
    )
    return [*blocks, Table(columns, rows, caption)]


def _tell(size: float | None, sizes: list[int]) -> Cell:
    if size is None:
        return Cell(f"> {sizes[-1]}", float(sizes[-1] + 1))
    return Cell(f"≤ {sizes[0]}" if size <= sizes[0] else f"{size:.0f}", size)
