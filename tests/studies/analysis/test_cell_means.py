import re
from pathlib import Path

import numpy as np
import pytest

from scripts.study import main
from studies.analysis.cell_means import read_grid
from studies.inference.interaction import decompose, gamma_over_teachers

PUBLISHED = Path(__file__).parents[3] / "studies" / "published"


def find_differences(name: str) -> dict[str, tuple[float, int, float, int, float]]:
    """Returns, by student, the in-family and the cross-family teachers' means and numbers, and the difference."""
    grid = read_grid(PUBLISHED / name)
    found = {}
    for (student, family), row_T in zip(grid.students.items(), 100 * grid.accuracy_ST, strict=True):
        own, other = (row_T[[(known == family) == same for known in grid.families[1]]] for same in (True, False))
        found[student] = (own.mean(), len(own), other.mean(), len(other), own.mean() - other.mean())
    return found


def test_rsr_is_a_teachers_main_effect():
    grid = read_grid(PUBLISHED / "rsr.csv")
    assert grid.accuracy_ST.shape == (5, 11)
    qwen_T = np.array([family == "qwen" for family in grid.families[1]])
    better_S = 100 * (grid.accuracy_ST[:, qwen_T].mean(1) - grid.accuracy_ST[:, ~qwen_T].mean(1))
    expected = {"Qwen3-14B": 7.5, "LLaMA-3.1-8B": 5.7, "Qwen2.5-7B": 6.5, "Qwen3-4B": 9.1, "Qwen2.5-3B": 5.2}
    assert dict(zip(grid.students, better_S, strict=True)) == pytest.approx(expected, abs=0.05)
    # Qwen students against the Llama student.
    assert (better_S.sum() - better_S[1]) / 4 - better_S[1] == pytest.approx(1.35, abs=0.005)
    assert 100 * (decompose(*grid.families).gamma_ST * grid.accuracy_ST).sum() == pytest.approx(1.35, abs=0.005)


def test_car_favours_the_family_for_some_students_only():
    expected = {
        "Qwen2-1.5B": (3.76, 8, 3.02, 11, 0.74),
        "Qwen2.5-3B": (13.34, 8, 10.66, 11, 2.68),
        "Gemma-2-2B": (11.77, 3, 6.13, 16, 5.64),
        "Llama-3.2-3B": (4.80, 5, 6.33, 14, -1.53),
        "Llama-3.1-Minitron-4B": (6.69, 5, 8.64, 14, -1.95),
    }
    found = find_differences("car.csv")
    assert found.keys() == expected.keys()
    for student, row in expected.items():
        assert found[student] == pytest.approx(row, abs=0.0051)
    # The paper's table 3 prints two of these cells again.
    grid = read_grid(PUBLISHED / "car.csv")
    gemma = dict(zip(grid.students, 100 * grid.accuracy_ST[:, list(grid.teachers).index("Gemma-2-9b")], strict=True))
    assert gemma["Llama-3.1-Minitron-4B"] == pytest.approx(13.565) and gemma["Qwen2.5-3B"] == pytest.approx(16.59)
    found, df = gamma_over_teachers(grid.accuracy_ST, *grid.families)
    assert df == 15 and found.low < 0 < found.high


def test_a_csv_is_analyzed(capsys):
    main(["analyze", str(PUBLISHED / "rsr.csv")])
    table = capsys.readouterr().out
    assert "γ = +1.35 points" in table and re.search(r"\| LLaMA-3.1-8B \(llama\) +\| +– \|", table)


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    text = (PUBLISHED / "car.csv").read_text()
    (tmp_path / "grid.csv").write_text(text[text.index("student,") :], encoding="utf-8-sig")
    assert read_grid(tmp_path / "grid.csv").students == read_grid(PUBLISHED / "car.csv").students


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["student,teacher", "a,b"], "needs rows with the columns"),
        (["a,l,T,l,0.5", "a,q,U,q,0.5"], "student a has two families"),
        (["a,l,T,l,0.5", "b,q,U,q,0.5"], "student a and teacher U is missing"),
        (["a,l,T,l,0.5", "a,l,T,l,0.6"], "student a and teacher T is there twice"),
        (["a,l,T,l,high"], "could not convert string to float: 'high'"),
        (["a,l,T,l,0,5"], "a row has more fields than columns: a, l, T, l, 0"),
        (["a,l,T,l,50"], "student a and teacher T is 50.0, no share from 0 to 1"),
        (["a,l,T,l,-0.5"], "student a and teacher T is -0.5, no share from 0 to 1"),
    ],
)
def test_bad_grids_are_named(tmp_path, lines, message):
    header = [] if lines[0].startswith("student") else ["student,student_family,teacher,teacher_family,accuracy"]
    path = tmp_path / "grid.csv"
    path.write_text("\n".join([*header, *lines]))
    with pytest.raises(ValueError, match=rf"grid\.csv.*{message}"):
        read_grid(path)
