"""What the report says of traits: shifts, ratios, and intervals without an end."""

import math

from studies.report.document import Figure, Table
from studies.report.traits import show_traits


def make_row(**fields: object) -> dict:
    shift = {"estimate": 0.5, "low": -0.25, "high": 1.25}
    return {
        "trait": "gold", "student": "a", "teacher": "A", "trained_on": "t", "control": "text", "size": None,
        "supervision": "rationale", "against": "text_without", "num_questions": 9, "num_seeds": 3, "ratio": 0.25,
        "low": -0.125, "high": 0.75, "student_shift": shift, "teacher_shift": {**shift, "estimate": 2.0}, **fields,
    }  # fmt: skip


def test_each_arm_has_its_shifts_and_its_ratio() -> None:
    study = {"students": {"a": {"family": "f"}}, "teachers": {"A": {"family": "g"}}}
    rows = [make_row(), make_row(control="logits", high=math.inf), make_row(ratio=None, low=None, high=None)]
    _, figure, table = show_traits({"study": study, "traits": rows})
    assert isinstance(figure, Figure) and isinstance(table, Table)
    # An interval without an end cannot be drawn.
    assert [(mark.estimate, mark.low, mark.high) for mark in figure.panels[0].marks] == [(0.25, -0.125, 0.75)]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0] == [
        "gold", "a", "rationale from A, text, after t", "text_without", "+0.50 [−0.25, +1.25]", "+2.00 [−0.25, +1.25]",
        "+0.250", "[−0.125, +0.750]", "9", "3",
    ]  # fmt: skip
    assert texts[1][6:8] == ["+0.250", "[−0.125, ∞]"] and texts[2][6:8] == ["–", "–"]
    assert show_traits({"study": study, "traits": []}) == []
