"""What rounding to fewer bits costs each arm, against the bytes and the speed that it buys, and what γ becomes."""

from collections import defaultdict
from typing import Any

from studies.analysis.sizes import name_size
from studies.numbers import between, percent, points
from studies.report.document import Block, Cell, Figure, Panel, Series, Table, Text
from studies.report.gamma import p_cell
from studies.report.words import name_arm, name_file, name_place

_MEGA = 1e6


def show_quantization(results: dict[str, Any]) -> list[Block]:
    """Returns accuracy against size and speed, and tables of what is lost and of γ; nothing without types.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    if not results["quantization"]:
        return []
    kinds = ", ".join(f"`{own['kind']}`" for own in results["quantization"])
    blocks: list[Block] = [
        Text(
            f"Each trained student also answers as a file of {kinds}, run by llama.cpp, calibrated on what it "
            "learned from. A file and its student are compared seed by seed on the same questions (`quantization`, see "
            "Methods)."
        )
    ]
    places = defaultdict[tuple[str, str], list[tuple[str, dict[str, Any]]]](list)
    for own in results["quantization"]:
        for cell in own["cells"]:
            places[cell["trained_on"], cell["task"]].append((own["kind"], cell))
    for place, cells in places.items():
        blocks += _plot(results, place, cells)
    blocks.append(_tabulate_losses(results, len(places) > 1))
    return [*blocks, *_tabulate_gammas(results, len(places) > 1), *_tabulate_controls(results)]


def _plot(results: dict[str, Any], place: tuple[str, str], cells: list[tuple[str, dict[str, Any]]]) -> list[Block]:
    """Returns a figure of accuracy against bytes, and one against tokens a second where that was measured."""
    blocks: list[Block] = []
    for measure, title in (("bytes", "size of the file, MB"), ("tokens_per_s", "tokens a second")):
        panels = []
        for name, spec in results["study"]["students"].items():
            arms = defaultdict[str, list[dict[str, Any]]](list)
            for _, cell in cells:
                if cell["student"] == name and cell[measure]:
                    arms[name_arm(*(cell[part] for part in ("supervision", "teacher", "control", "size")))].append(cell)
            lines = []
            for arm, own in arms.items():
                scale = _MEGA if measure == "bytes" else 1
                found = [(cell[measure] / scale, 100 * cell["accuracy"]) for cell in own]
                if measure == "bytes" and own[0]["bytes_before"]:
                    found.append((own[0]["bytes_before"] / scale, 100 * own[0]["accuracy_before"]))
                xs, ys = (list(values) for values in zip(*sorted(found), strict=True))
                is_dashed = own[0]["supervision"] != "rationale"
                lines.append(Series(arm, xs, ys, own[0]["teacher_family"], is_dashed))
            if lines:
                panels.append(Panel(f"student {name} ({spec['family']})", series=lines))
        if panels:
            before = "; the largest is the student as it was trained" if measure == "bytes" else ""
            caption = (
                f"**{name_place(*place)}**: accuracy on held-out questions, mean over seeds, against the {title}: a "
                f"point for each type{before}. Intervals are in the table. Colour: the teacher's family; dashed: "
                "`label` and `rationale+logits`."
            )
            if measure == "tokens_per_s":
                caption += " The speed was measured as each file was checked, beside whatever else ran."
            name = f"quantization-{measure.replace('_', '-')}-{name_file(*place)}"
            blocks.append(Figure("lines", name, caption, panels, title, "accuracy, %"))
    return blocks


def _tabulate_losses(results: dict[str, Any], several: bool) -> Table:
    rows = [
        [
            Cell(own["kind"], own["kind"]),
            *([Cell(place := name_place(cell["trained_on"], cell["task"]), place)] if several else []),
            Cell(cell["student"], cell["student"], cell["student_family"]),
            Cell(
                arm := name_arm(cell["supervision"], cell["teacher"], cell["control"], cell["size"]),
                arm,
                cell["teacher_family"],
            ),
            Cell(percent(cell["accuracy_before"]), cell["accuracy_before"]),
            Cell(percent(cell["accuracy"]), cell["accuracy"]),
            Cell(points(cell["estimate"]), cell["estimate"]),
            Cell(between(cell["low"], cell["high"]), cell["low"]),
            p_cell(cell["p_holm"]),
            p_cell(cell["models"]["p"]),
            Cell(f"{cell['bytes']:,.0f}" if cell["bytes"] else "–", cell["bytes"]),
            Cell(f"{cell['tokens_per_s']:.0f}" if cell["tokens_per_s"] else "–", cell["tokens_per_s"]),
        ]
        for own in results["quantization"]
        for cell in own["cells"]
    ]
    columns = ["type", *["task"] * several, "student", "arm", "as trained", "file", "difference", "95 %", "p, Holm",
               "p, models", "bytes", "tokens/s"]  # fmt: skip
    caption = (
        "What each file loses against its student, in percentage points; Holm's p is over a type's arms of one task, "
        "the last p is of these trained models only (McNemar's test, see `questions`)."
    )
    return Table(columns, rows, caption)


def _tabulate_gammas(results: dict[str, Any], several: bool) -> list[Block]:
    sizes = results["study"]["sizes"]
    rows = []
    for own in results["quantization"]:
        changes = {_name(row): row for row in own["gamma_changes"]}
        for row in own["gamma"]:
            change = changes[_name(row)]
            rows.append(
                [
                    Cell(own["kind"], own["kind"]),
                    *([Cell(place := name_place(row["trained_on"], row["task"]), place)] if several else []),
                    *([Cell(size := name_size(row, sizes), row["size"] or size)] if sizes else []),
                    Cell(arm := name_arm(row["supervision"], None, row["control"]), arm),
                    Cell(row["method"], row["method"]),
                    Cell(points(row["estimate"]), row["estimate"]),
                    Cell(between(row["low"], row["high"]), row["low"]),
                    Cell(points(change["estimate"]), change["estimate"]),
                    Cell(between(change["low"], change["high"]), change["low"]),
                    p_cell(change["p"]),
                ]
            )
    if not rows:
        return []
    columns = ["type", *["task"] * several, *["size"] * bool(sizes), "arms", "method", "γ of files", "95 %",
               "less γ as trained", "95 % of it", "p of it"]  # fmt: skip
    caption = (
        "The family interaction of the files, and how it differs from their students', in percentage points: above 0, "
        "rounding costs students of a teacher of their own family less than others."
    )
    return [Table(columns, rows, caption)]


def _tabulate_controls(results: dict[str, Any]) -> list[Block]:
    """Returns how arms of a control compare with the plain ones where both are files of one type."""
    rows = [
        [
            Cell(own["kind"], own["kind"]),
            Cell(row["student"], row["student"], results["study"]["students"][row["student"]]["family"]),
            Cell(f"{row['left']} − {row['right']}", row["left"]),
            Cell(place := name_place(row["trained_on"], row["task"]), place),
            Cell(points(row["estimate"]), row["estimate"]),
            Cell(between(row["low"], row["high"]), row["low"]),
            p_cell(row["p_holm"]),
            p_cell(row["models"]["p"]),
        ]
        for own in results["quantization"]
        for row in own["contrasts"]
        if row["kind"] == "control"
    ]
    if not rows:
        return []
    caption = "Controls against the plain arms, both as files of one type, in percentage points, as among `Contrasts`."
    columns = ["type", "student", "contrast", "task", "difference", "95 %", "p, Holm", "p, models"]
    return [Table(columns, rows, caption)]


def _name(row: dict[str, Any]) -> tuple[str | int | None, ...]:
    return tuple(row[name] for name in ("supervision", "control", "trained_on", "task", "size", "method"))
