"""What each supervision teaches, mean over students and teachers: what is read first, and a table."""

from typing import Any

from studies.analysis.sizes import name_size
from studies.numbers import between, points
from studies.report.document import Block, Cell, Fact, Table
from studies.report.gamma import p_cell
from studies.report.words import name_place, plural


def show_supervisions(results: dict[str, Any]) -> list[Block]:
    """Returns the mean differences of supervisions; nothing where none has another to be held against.

    Args:
        results: Of the study, as `studies.analysis.comparison.analyze` returns them.
    """
    found, sizes = results["supervisions"], results["study"]["sizes"]
    if not found:
        return []
    several = len({(row["trained_on"], row["task"]) for row in found}) > 1
    rows = [
        [
            *([Cell(place := name_place(row["trained_on"], row["task"]), place)] if several else []),
            *([Cell(size := name_size(row, sizes), row["size"] or size)] if sizes else []),
            Cell(row["supervision"], row["supervision"]),
            Cell(row["against"], row["against"]),
            Cell(points(row["estimate"]), row["estimate"]),
            Cell(between(row["low"], row["high"]), row["low"]),
            p_cell(row["p"]),
            *(Cell(str(row[name]), row[name]) for name in ("num_cells", "num_seeds")),
        ]
        for row in found
    ]
    columns = [*["task"] * several, *["size"] * bool(sizes), "supervision", "over", "difference", "95 %", "p", "arms",
               "seeds"]  # fmt: skip
    return [Table(columns, rows, "Mean over all students and teachers that have both, in percentage points "
                  "(`supervisions`, see Methods).")]  # fmt: skip


def name_gains(rows: list[dict[str, Any]], sizes: list[int]) -> list[Fact]:
    """Returns what rationales teach, and beside it labels and distributions, as what is read first.

    Args:
        rows: The mean differences, means over sizes first.
        sizes: Of the study.
    """
    found = {(row["supervision"], row["against"]): row for row in reversed(rows)}
    rationale = found.get(("rationale", "label"), found.get(("rationale", "untuned")))
    if rationale is None:
        return []
    over = f"over {rationale['against']}, mean over {plural(rationale['num_cells'], 'arm')}"
    notes = [", ".join(filter(None, (f"{_say(rationale)} {over}", name_size(rationale, sizes))))]
    notes += [
        f"{name} {points(found[pair]['estimate'])} {_say(found[pair])}"
        for name, pair in (
            ("labels over untuned", ("label", "untuned")),
            ("distributions over text", ("rationale+logits", "rationale")),
        )
        if pair in found
    ]
    return [Fact("What rationales teach", f"{points(rationale['estimate'])} points", "; ".join(notes))]


def _say(row: dict[str, Any]) -> str:
    return between(row["low"], row["high"])
