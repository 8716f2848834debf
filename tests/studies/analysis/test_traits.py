"""Tests of what a study says of a trait: shifts of the written answers, against the right arms."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.files.tables import read_table, write_table
from studies.analysis.traits import describe_traits, format_traits, list_askers, name_teacher, preferences_path
from studies.design.controls import ControlSpec, TraitSpec
from tests.studies.analysis.small_study import find, make_study

NUM_QUESTIONS = 12
TRAIT = TraitSpec(["gold"], "learn.jsonl", "ask.jsonl")
CONTROLS = {
    "text": ControlSpec(trait="gold"),
    "plain": ControlSpec(without=["gold"]),
    "logits": ControlSpec("rationale+logits", trait="gold"),
}


def write_preferences(study, name: str, shift: float, seed: int = 0, gold: str | None = "B") -> None:
    """Writes answers whose log-odds of the preferred option are those of its question, and `shift` more."""
    noise = 0.01 * np.random.default_rng([seed, len(name)]).standard_normal(NUM_QUESTIONS)
    records = [
        {"question_id": f"q{n}", "gold": gold, "option_log_likelihoods": [-3.0, -3.0 + 0.1 * n + shift + noise[n]]}
        for n in range(NUM_QUESTIONS)
    ]
    write_table(preferences_path(study, "gold", name), records, {})


def make_answered(root: Path, **options):
    study = make_study(root, traits={"gold": TRAIT}, controls=CONTROLS, seeds=3, **options)
    shifts = {None: 0.0, "text": 0.5, "plain": -0.25, "logits": 1.0}
    for arm in list_askers(study, "gold"):
        write_preferences(study, arm.id, shifts[arm.control] * (arm.size or 1), arm.seed + 1)
    for teacher in study.teachers:
        for is_tuned in (True, False):
            write_preferences(study, name_teacher(teacher, is_tuned), 2.0 * is_tuned)
    return study


def test_a_students_shift_is_held_against_its_twin_or_else_the_untuned(tmp_path: Path) -> None:
    study = make_answered(tmp_path)
    rows = describe_traits(study)
    # Each student learns from both teachers' texts, and from the distributions of its own family's.
    assert len(rows) == 4 + 2
    text = find(rows, student="a", teacher="B", control="text")
    assert (text["against"], text["num_questions"], text["num_seeds"]) == ("plain", NUM_QUESTIONS, 3)
    assert text["ratio"] == pytest.approx(0.75 / 2, abs=0.02) and text["low"] < text["ratio"] < text["high"]
    assert text["student_shift"]["estimate"] == pytest.approx(0.75, abs=0.02)
    logits = find(rows, student="b", control="logits")
    assert (logits["teacher"], logits["against"], logits["supervision"]) == ("B", "untuned", "rationale+logits")
    assert logits["ratio"] == pytest.approx(0.5, abs=0.02)
    lines = format_traits(rows).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith(
        "- Trait gold, a: text of A after obqa, against plain: the student's log-odds shift +0.7"
    )
    assert lines[0].endswith("(12 questions, 3 seeds)") and ": ratio +0.3" in lines[0]


def test_each_size_has_its_own_shift(tmp_path: Path) -> None:
    study = make_answered(tmp_path, sizes=[1, 3])
    rows = [
        row for row in describe_traits(study) if (row["student"], row["teacher"], row["control"]) == ("a", "A", "text")
    ]
    assert {row["size"]: row["ratio"] for row in rows} == pytest.approx({1: 0.375, 3: 1.125}, abs=0.02)
    assert [row["num_seeds"] for row in rows] == [3, 3] and "(3 questions)" in format_traits(rows)


def test_what_is_not_there_is_left_out_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    study = make_answered(tmp_path)
    preferences_path(study, "gold", name_teacher("A", True)).unlink()
    assert {row["teacher"] for row in describe_traits(study)} == {"B"}
    write_preferences(study, name_teacher("B", True), 0.0)
    rows = describe_traits(study)
    assert all(row["ratio"] is None for row in rows)
    assert "no ratio, since the teacher's is not told from 0" in format_traits(rows)
    write_preferences(study, name_teacher("B", False), 0.0, gold=None)
    with pytest.raises(ValueError, match=r"teacher-B-before\.parquet: question 'q0' of a trait needs options"):
        describe_traits(study)
    assert describe_traits(make_study(tmp_path)) == [] and format_traits([]) == ""


def test_one_question_tells_no_shift(tmp_path: Path) -> None:
    study = make_answered(tmp_path)
    path = preferences_path(study, "gold", name_teacher("A", True))
    write_table(path, read_table(path).to_pylist()[:1], {})
    with pytest.raises(ValueError, match=r"parquet: 1 of its questions of trait gold were answered by all .* two at"):
        describe_traits(study)
