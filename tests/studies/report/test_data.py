"""The data behind tables and figures: every number, unrounded, and no spreadsheet's formula."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.report.data import export, for_csv, format_csv
from studies.report.document import Cell, Figure, HeatMap, Mark, Panel, Parallel, Series, Table


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_a_table_has_its_numbers_unrounded_and_its_intervals_whole() -> None:
    row = [Cell("a, b"), Cell("33.3 %", 1 / 3), Cell("[30.0, 40.0]", 0.3), Cell("not run")]
    assert read(export(Table(["name", "share", "95 %", "n"], [row], ""))) == [
        ["name", "share", "95 %", "n"], ["a, b", repr(1 / 3), "[30.0, 40.0]", "not run"],
    ]  # fmt: skip


def test_figures_have_a_row_for_each_point() -> None:
    marks = [Mark("a", 50.0, 40.0, 60.0, "f", seeds=(45.0, 55.0)), Mark("b", -1.5)]
    assert read(export(Figure("intervals", "n", "c", [Panel("p", marks)], "x"))) == [
        ["panel", "label", "family", "x", "low", "high", "seed 0", "seed 1"],
        ["p", "a", "f", "50.0", "40.0", "60.0", "45.0", "55.0"], ["p", "b", "", "-1.5", "", "", "", ""],
    ]  # fmt: skip
    scatter = Figure("scatter", "n", "c", [Panel("p", [Mark("a", 2.0, x=1.0)])], "", "y")
    assert read(export(scatter))[1] == ["p", "a", "", "1.0", "2.0"]
    lines = Figure("lines", "n", "c", [Panel("p", series=[Series("l", [0, 5], [1.0, 0.5])])], "step", "nats")
    assert read(export(lines)) == [["panel", "line", "family", "step", "nats"],
                                   ["p", "l", "", "0", "1.0"], ["p", "l", "", "5", "0.5"]]  # fmt: skip
    heat_map = HeatMap("n", "c", "x", "y", [1.0, 2.0], [3.0], [[50.0, None]], [[2, 0]], "%", 1.0)
    assert read(export(heat_map))[1:] == [["1.0", "3.0", "50.0", "2"], ["2.0", "3.0", "", "0"]]
    assert read(export(Parallel("n", "c", ["x", "y"], [[1.0, 2.0]]))) == [["x", "y"], ["1.0", "2.0"]]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\n@", "\t", "\r=", "\x00=", "＝"])
def test_no_text_is_a_formula(start: str) -> None:
    assert for_csv(f"{start}HYPERLINK(1)").startswith("'")
    assert for_csv(-1.5) == "-1.5"  # a number is one


@given(st.lists(st.text(st.characters()), min_size=1))
def test_any_text_stays_in_its_field(texts: list[str]) -> None:
    [columns, row] = read(format_csv(texts, [texts]))
    assert columns == row == [for_csv(text) for text in texts]
    assert not any(field.lstrip()[:1] in ("=", "+", "-", "@") for field in row if field)
