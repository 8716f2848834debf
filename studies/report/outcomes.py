"""What a study says of outcomes beside accuracy: γ, its parts and its differences of each, by accuracy's methods."""

from typing import Any

from studies.analysis.parts import name_parts
from studies.analysis.sizes import name_size
from studies.numbers import between, points
from studies.report.document import Block, Cell, Table, Text
from studies.report.gamma import p_cell
from studies.report.words import name_arm, name_place


def show_outcomes(results: dict[str, Any]) -> list[Block]:
    """Returns a table of effects and one of means for each further outcome; nothing where the study names none.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    study, blocks = results["study"], list[Block]()
    for own in results["outcomes"]:
        blocks.append(Text(f"**{own['outcome']}**: {own['meaning']}."))
        effects = [
            *(("γ", row) for row in own["gamma"]),
            *((f"γ of {name_parts(row)}", row) for row in own["parts"]),
            *((f"γ less that of {row['right']}", row) for row in own["gamma_differences"]),
            *((f"{row['student']}: less {row['right']}", row) for row in own["contrasts"]),
        ]
        rows = [
            [
                Cell(name, name),
                Cell(arms := _name_arms(row, study["sizes"]), arms),
                Cell(row["method"], row["method"]),
                Cell(points(row["estimate"]), row["estimate"]),
                Cell(between(row["low"], row["high"]), row["low"]),
                p_cell(row.get("p_holm", row["p"])),
            ]
            for name, row in effects
        ]
        caption = f"Effects on {own['outcome']}, in percentage points; of parts and of differences, p is Holm's."
        if rows:
            blocks.append(Table(["effect", "arms", "method", "estimate", "95 %", "p"], rows, caption))
        cells = [
            [
                Cell(cell["student"], cell["student"], study["students"][cell["student"]]["family"]),
                Cell(cell["condition"], cell["condition"]),
                Cell(place := name_place(cell["trained_on"], cell["task"]), place),
                Cell(f"{100 * cell['mean']:.2f} %", cell["mean"]),
                Cell(f"[{100 * cell['low']:.2f}, {100 * cell['high']:.2f}]", cell["low"]),
                *_show_gain(cell["gain"]),
            ]
            for cell in own["cells"]
        ]
        caption = (
            f"Mean {own['outcome']} of each cell, over seeds and questions (`wilson`, see Methods), and the gain over "
            "the untuned student, in percentage points."
        )
        columns = ["student", "arm", "task", own["outcome"], "95 %", "gain", "95 %, gain"]
        blocks.append(Table(columns, cells, caption))
    return blocks


def _show_gain(gain: dict[str, Any] | None) -> list[Cell]:
    if gain is None:
        return [Cell("–", None), Cell("–", None)]
    return [Cell(points(gain["estimate"]), gain["estimate"]), Cell(between(gain["low"], gain["high"]), gain["low"])]


def _name_arms(row: dict[str, Any], sizes: list[int]) -> str:
    arms = row["left"] if "left" in row else name_arm(row["supervision"], None, row["control"])
    return ", ".join(filter(None, (arms, name_place(row["trained_on"], row["task"]), name_size(row, sizes))))
