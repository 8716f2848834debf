"""Prediction and mediation on grids with known effects, and on a published one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import statsmodels.formula.api as smf
from pandas import DataFrame
from scipy.stats import spearmanr

from studies.analysis.cell_means import read_grid
from studies.diagnostics.prediction import (
    Cell,
    average_spearman,
    correlate,
    format_predictions,
    join_cells,
    leave_families_out,
    mediate,
    mediate_parts,
    predict,
)

# arXiv 2601.14249: the teachers' own accuracy, and their Table 4 for the two students among whose rounded accuracies
# there are no ties.
PERFORMANCE = {
    "DeepSeek-R1": 91.1, "Qwen3-235B-Thinking": 91.2, "GPT-OSS-120B": 88.3, "Nemotron-Super": 82.3, "QwQ-32B": 85.2,
    "Qwen3-30B-Thinking": 92.3, "Magistral-Small": 71.0, "GPT-OSS-20B": 83.4, "Phi-4-Reasoning-Plus": 72.7,
    "Qwen3-8B": 82.5, "Qwen3-4B-Thinking": 87.3,
}  # fmt: skip
CORRELATIONS = [("Qwen3-14B", 0.49), ("LLaMA-3.1-8B", 0.34)]


def list_published(*students: str) -> list[Cell]:
    """Returns the published grid, or some students' part of it."""
    grid = read_grid(Path(__file__).parents[3] / "studies" / "published" / "rsr.csv")
    return [
        Cell(
            teacher=teacher,
            student=student,
            in_family=grid.students[student] == family,
            accuracy=float(grid.accuracy_ST[row, column]),
            diagnostics={"teacher_accuracy": PERFORMANCE[teacher.split(" ")[0]]},
        )
        for row, student in enumerate(grid.students)
        for column, (teacher, family) in enumerate(grid.teachers.items())
        if not students or student in students
    ]


def simulate(seed: int, mediated: float, direct: float, num_students: int = 6, num_teachers: int = 6) -> list[Cell]:
    """Accuracy gains `mediated` points through a diagnostic that families raise by 1, and `direct` points beside it."""
    rng = np.random.default_rng(seed)
    student_effects, teacher_effects = rng.normal(0, 5, num_students), rng.normal(0, 5, num_teachers)
    cells = []
    for student in range(num_students):
        for teacher in range(num_teachers):
            same = student % 2 == teacher % 2
            fit = 1.0 * same + rng.normal(0, 0.7) + 0.1 * teacher_effects[teacher]
            points = 50 + student_effects[student] + teacher_effects[teacher] + mediated * fit + direct * same
            other = {"fit": fit, "noise": rng.normal(), "size": float(teacher)}
            cells.append(Cell(f"t{teacher}", f"s{student}", same, (points + rng.normal(0, 0.5)) / 100, other))
    return cells


@pytest.mark.parametrize(("student", "expected"), CORRELATIONS)
def test_the_published_correlation_of_teachers_own_accuracy(student: str, expected: float) -> None:
    found = correlate(list_published(student), "teacher_accuracy", 0)
    assert found.estimate is not None and found.estimate == pytest.approx(expected, abs=0.006)
    assert found.low is not None and found.high is not None and found.low < found.estimate < found.high
    assert (found.num_students, found.num_teachers) == (1, 11)


def test_the_published_grid_has_next_to_no_family_interaction() -> None:
    """Qwen teachers' lead over others with Qwen students is +1.35 points above that with the Llama student."""
    cells = list_published()
    found = mediate(cells, None)
    assert found.gamma is not None and found.low is not None and found.high is not None
    qwen = {c.teacher for c in cells if c.in_family}
    means = {}
    for is_llama in (True, False):
        for by_qwen in (True, False):
            chosen = [c for c in cells if (c.student == "LLaMA-3.1-8B") is is_llama and (c.teacher in qwen) is by_qwen]
            means[is_llama, by_qwen] = np.mean([100 * c.accuracy for c in chosen])
    difference = means[False, True] - means[False, False] - (means[True, True] - means[True, False])
    assert difference == pytest.approx(1.35, abs=0.03)
    # No teacher is a Llama, so that the other in-family cells of a two by two are not there to be halved with.
    assert found.gamma == pytest.approx(difference, abs=1e-6)
    assert found.low < 0 < found.high


def test_a_mediated_interaction_is_gone_once_its_diagnostic_is_added() -> None:
    shares, directs, noises, covered = [], [], [], 0
    for seed in range(40):
        mediated, direct = simulate(seed, 4.0, 0.0), simulate(seed, 0.0, 4.0)
        before, after = mediate(mediated, None), mediate(mediated, "fit")
        assert before.gamma is not None and after.gamma is not None
        assert after.low is not None and after.high is not None
        covered += after.low <= 0 <= after.high
        shares.append((before.gamma, after.gamma, after.slope))
        directs.append(mediate(direct, "fit").gamma)
        noises.append(mediate(mediated, "noise").gamma)
    before_mean, after_mean, _ = np.mean(shares, 0)
    # The family raises the diagnostic by 1, which raises accuracy by 4 points.
    assert before_mean == pytest.approx(4, abs=0.4) and after_mean == pytest.approx(0, abs=0.2)
    assert covered >= 34
    assert np.mean(directs) == pytest.approx(4, abs=0.2) and np.mean(noises) == pytest.approx(4, abs=0.4)


def test_the_regression_is_that_of_statsmodels() -> None:
    cells = simulate(3, 4.0, 1.0)
    table = DataFrame(
        [(c.student, c.teacher, float(c.in_family), c.diagnostics["fit"], 100 * c.accuracy) for c in cells],
        columns=["student", "teacher", "same", "fit", "accuracy"],
    )
    table["z"] = (table.fit - table.fit.mean()) / table.fit.std(ddof=0)
    reference = smf.ols("accuracy ~ C(student) + C(teacher) + same + z", table).fit()
    found = mediate(cells, "fit")
    low, high = reference.conf_int().loc["same"]
    assert (found.gamma, found.low, found.high) == pytest.approx((reference.params["same"], low, high))
    assert found.slope == pytest.approx(reference.params["z"])


def test_two_by_two_is_the_contrast_and_has_no_interval() -> None:
    accuracy = {("a", "a"): 0.9, ("b", "b"): 0.8, ("a", "b"): 0.6, ("b", "a"): 0.7}
    cells = [
        Cell(teacher, student, teacher == student, value, {"nll": value})
        for (teacher, student), value in accuracy.items()
    ]
    found = mediate(cells, None)
    assert found.gamma == pytest.approx(100 * (0.9 + 0.8 - 0.6 - 0.7) / 2)
    assert found.low is None and found.note == "4 cells leave no error"
    assert mediate(cells, "nll").gamma is None
    few = correlate(cells, "nll", 0)
    assert few.estimate == pytest.approx(1) and few.low is None and "only 2 teachers" in str(few.note)


def test_spearman_is_scipys_averaged_over_students() -> None:
    rng = np.random.default_rng(0)
    x_ST, y_ST = rng.integers(4, size=(3, 8)).astype(float), rng.normal(size=(3, 8))
    expected = np.mean([spearmanr(x, y).statistic for x, y in zip(x_ST, y_ST, strict=True)])
    assert average_spearman(x_ST[None], y_ST[None])[0] == pytest.approx(expected)
    x_ST[1] = 2.0
    expected = np.mean([spearmanr(x_ST[number], y_ST[number]).statistic for number in (0, 2)])
    assert average_spearman(x_ST[None], y_ST[None])[0] == pytest.approx(expected)


def test_correlations_of_known_orders() -> None:
    cells = simulate(1, 6.0, 0.0)
    fit, noise = correlate(cells, "fit", 0), correlate(cells, "noise", 0)
    assert fit.estimate is not None and noise.estimate is not None and fit.low is not None
    assert fit.estimate > 0.5 and abs(noise.estimate) < fit.estimate
    assert correlate(cells, "fit", 0) == fit


def test_predictions_of_a_study() -> None:
    cells = simulate(0, 4.0, 0.0)
    rows = [
        {
            "teacher": c.teacher,
            "student": c.student,
            "task": "t",
            **c.diagnostics,
            "intervals": dict.fromkeys(c.diagnostics),
        }
        for c in cells
    ]
    base = {"trained_on": "t", "task": "t-test", "supervision": "rationale", "control": None}
    results = {
        "cells": [
            {**base, "teacher": c.teacher, "student": c.student, "accuracy": c.accuracy,
             "teacher_family": int(c.teacher[1]) % 2, "student_family": int(c.student[1]) % 2}
            for c in cells
        ],
        "study": {
            f"{role}s": {vars(c)[role]: {"parts": {"style": vars(c)[role][1]}} for c in cells}
            for role in ("teacher", "student")
        },
    }  # fmt: skip
    results["cells"].append({**results["cells"][0], "control": "shuffled", "accuracy": 0.0})
    results["cells"].append({**results["cells"][0], "teacher": None, "supervision": "label", "accuracy": 0.0})
    [prediction] = predict(rows, ["fit", "noise", "size", "absent"], results, 0)
    assert prediction["num_cells"] == 36
    assert {item["metric"] for item in prediction["correlations"]} == {"fit", "noise", "size"}
    # `size` differs between teachers alone, so that it cannot account for an interaction.
    assert [item["metric"] for item in prediction["mediations"]] == [None, "fit", "noise"]
    assert prediction["mediations"][1]["left"] < 0.3 < prediction["mediations"][2]["left"]
    assert {row["part"] for row in prediction["parts"]} == {"style"}
    table = format_predictions([prediction])
    assert "γ of style that is left" in table
    assert "t, answering t-test: 36 cells; family interaction of the cells: +" in table
    assert re.search(r"\| fit +\| \+", table)
    with pytest.raises(ValueError, match=r"share no teacher, student and task"):
        join_cells(rows, results | {"cells": [{**results["cells"][0], "trained_on": "other"}]})


def make_parted(effects: dict[str, float], slope: float, noise: float = 0.0, seed: int = 0) -> list[Cell]:
    """Teachers and students of two tokenizers and two styles; `d` follows the shared tokenizer, noisily."""
    rng = np.random.default_rng(seed)
    models = {f"{token}{style}": {"tokenizer": token, "style": style} for token in "ub" for style in "xy"}
    mains = rng.normal(0, 0.05, (2, 4))
    cells = []
    for s, (student, own) in enumerate(models.items()):
        for t, (teacher, other) in enumerate(models.items()):
            shared = {part: own[part] == other[part] for part in own}
            d = 2.0 * shared["tokenizer"] + rng.normal()
            accuracy = 0.5 + mains[0, s] + mains[1, t] + sum(effects[part] * shared[part] for part in own) + slope * d
            accuracy += rng.normal(0, noise)
            cells.append(Cell(teacher, student, own == other, accuracy, {"d": d}, (teacher, student), (other, own)))
    return cells


@pytest.mark.parametrize(("direct", "slope"), [(0.0, 0.05), (0.04, 0.03), (0.06, 0.0)], ids=["all", "part", "none"])
def test_what_a_part_does_beside_a_diagnostic_is_recovered_with_coverage(direct: float, slope: float) -> None:
    """The tokenizer does `direct` by itself, and the slope twice by way of `d`; style does all by itself."""
    truth, studies = {"tokenizer": 100 * direct, "style": 3.0}, 250
    found: dict[str, list[float]] = {"tokenizer": [], "style": []}
    covered, plain = dict.fromkeys(truth, 0), []
    for seed in range(studies):
        cells = make_parted({"tokenizer": direct, "style": 0.03}, slope, 0.02, seed)
        plain += [row["gamma"] for row in mediate_parts(cells, None) if row["part"] == "tokenizer"]
        for row in mediate_parts(cells, "d"):
            found[row["part"]].append(row["gamma"])
            covered[row["part"]] += row["low"] <= truth[row["part"]] <= row["high"]
    assert np.mean(plain) == pytest.approx(100 * (direct + 2 * slope), abs=0.6)
    for part, value in truth.items():
        assert np.mean(found[part]) == pytest.approx(value, abs=0.3)
        assert 0.92 <= covered[part] / studies <= 0.98, part


def test_what_is_left_needs_a_grid_with_parts_and_a_diagnostic_that_says_more() -> None:
    cells = make_parted({"tokenizer": 0.0, "style": 0.03}, slope=0.05)
    left = {row["part"]: row["gamma"] for row in mediate_parts(cells, "d")}
    assert left == pytest.approx({"tokenizer": 0, "style": 3}, abs=1e-9)
    assert mediate_parts(cells[1:], "d") == []
    assert mediate_parts([replace(cell, parts=({}, {})) for cell in cells], "d") == []
    same = [replace(cell, diagnostics={"d": float(cell.parts[0] == cell.parts[1])}) for cell in cells]
    shared = [replace(c, diagnostics={"d": float(c.parts[0]["style"] == c.parts[1]["style"])}) for c in cells]
    assert len(mediate_parts(same, "d")) == 2 and mediate_parts(shared, "d") == []


def test_a_correlation_that_one_family_makes_has_another_range() -> None:
    cells = make_parted({"tokenizer": 0.0, "style": 0.0}, slope=0.05)
    found = leave_families_out(cells, correlate(cells, "d", 0), 0)
    assert found.lowest is not None and found.highest is not None and found.lowest <= found.highest
    by_hand = [
        correlate([cell for cell in cells if name not in cell.families], "d", 0).estimate
        for name in ("ux", "uy", "bx", "by")
    ]
    assert (found.lowest, found.highest) == (min(by_hand), max(by_hand))


def test_a_perfect_order_and_cells_that_are_explained_whole_have_no_interval() -> None:
    cells = [
        Cell(f"t{place}", f"s{other}", (place < 2) == (other < 1), 0.1 * place, {"d": float(place)})
        for place in range(5)
        for other in range(2)
    ]
    found = correlate(cells, "d", 0)
    assert found.estimate == pytest.approx(1) and (found.low, found.high) == (None, None)
    assert "no interval" in str(found.note)
    plain = mediate(cells, None)
    assert plain.gamma == pytest.approx(0, abs=1e-9) and (plain.low, plain.high) == (None, None)
    assert "leave no error" in str(plain.note)
