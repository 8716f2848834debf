"""Which part of the family it was: known effects of a study's cells, Holm over parts, and the sentence."""

import pytest

from datamodules.model_cards import Parts
from studies.analysis.comparison import analyze, format_results
from studies.design.grid import StudentSpec, TeacherSpec, expand
from tests.studies.analysis.small_study import find, make_factorial, make_study, write_arm


def fill_parts(study, tokenizer: int, style: int) -> None:
    """Of 200 questions, a shared tokenizer, and a shared style, make so many more right; seeds differ by one."""
    for arm in expand(study):
        own, other = study.students[arm.student].parts, study.teachers[arm.teacher].parts if arm.teacher else Parts()
        shared = tokenizer * (own.tokenizer == other.tokenizer) + style * (own.style == other.style)
        number = 60 + 4 * list(study.students).index(arm.student) + shared + arm.seed
        write_arm(study, arm, [question < number for question in range(200)])


def test_effects_of_parts_by_hand_and_the_sentence(tmp_path):
    study = make_factorial(tmp_path)
    fill_parts(study, tokenizer=30, style=0)
    results = analyze(study)
    rows = {(tuple(row["parts"]), row["method"]): row for row in results["parts"]}
    both, style = ("tokenizer", "architecture"), ("style",)
    # The parts explain all cells, which leaves no spread over pairs.
    assert set(rows) == {(parts, "difference in differences") for parts in (both, style)}
    row = rows[both, "difference in differences"]
    assert row["estimate"] == pytest.approx(0.15) and row["low"] < 0.15 < row["high"]
    assert rows[style, "difference in differences"]["estimate"] == pytest.approx(0)
    assert row["p_holm"] == pytest.approx(2 * row["p"])
    assert (row["num_students"], row["num_teachers"], row["num_seeds"], row["num_questions"]) == (4, 4, 2, 200)
    refused = find(results["parts_refused"])
    assert refused["parts"] == ["lineage"] and refused["reason"].startswith("all students are of the lineage one")
    table = format_results(results)
    assert "- γ of tokenizer + architecture = +15.0 points [" in table
    said = next(line for line in table.splitlines() if line.startswith("- rationale: Which part"))
    assert "Which part of the family it was: tokenizer + architecture (+15.0 points [" in said
    assert "could make nothing of style" in said and "always go together in this grid: it may be any of them" in said
    assert "Of lineage it says nothing: all students" in said


def test_effects_over_pairs_have_an_interval_where_pairs_differ(tmp_path):
    study = make_factorial(tmp_path)
    fill_parts(study, tokenizer=30, style=0)
    arm = next(arm for arm in expand(study) if arm.teacher)
    write_arm(study, arm, [question < 110 for question in range(200)])
    rows = [row for row in analyze(study)["parts"] if row["method"] == "mixed model"]
    assert len(rows) == 2 and all(row["low"] < row["estimate"] < row["high"] for row in rows)


def test_where_nothing_shows_the_sentence_says_so(tmp_path):
    study = make_factorial(tmp_path)
    fill_parts(study, tokenizer=1, style=0)
    assert "Which part of the family it was does not show: no part's γ can be told from 0." in format_results(
        analyze(study)
    )


def test_parts_are_told_apart_within_one_family(tmp_path):
    # Two weight seeds of one model: there is no family interaction, and one of the lineage.
    students = {name: StudentSpec("m", "pythia", parts=Parts("neox", "neox", name, "base")) for name in ("s1", "s2")}
    teachers = {name: TeacherSpec("pythia", "m", parts=Parts("neox", "neox", name, "base")) for name in ("s1", "s2")}
    study = make_study(tmp_path, students=students, teachers=teachers)
    for arm in expand(study):
        write_arm(study, arm, [question < 20 + 8 * (arm.student == arm.teacher) + arm.seed for question in range(40)])
    results = analyze(study)
    assert results["gamma"] == [] and "the family interaction is not identified" in results["warnings"][0]
    [row] = results["parts"]
    assert row["parts"] == ["lineage"] and row["estimate"] == pytest.approx(0.2)
    assert {tuple(row["parts"]) for row in results["parts_refused"]} == {("tokenizer",), ("architecture",), ("style",)}


def test_a_study_that_names_no_parts_has_none(tmp_path):
    study = make_study(tmp_path)
    for arm in expand(study):
        write_arm(study, arm, [True, False] * 5)
    results = analyze(study)
    assert results["parts"] == results["parts_refused"] == [] and "γ of" not in format_results(results)
