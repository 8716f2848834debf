"""Tests of what a study reads of its arms' predictions: what is missing, refused, or named."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datamodules.files.atomic import write_json
from datamodules.rationales.store import write_table
from studies.analysis.comparison import analyze
from studies.analysis.predictions import predictions_path
from studies.design.grid import Arm, expand
from tests.studies.analysis.small_study import BUDGET, fill, find, make_study, write_arm


def test_a_training_that_ended_early_is_named(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    arm = next(arm for arm in expand(study) if arm.supervision != "untuned")
    done = Path(study.root) / study.name / arm.id / "DONE"
    write_json(done, BUDGET | {"ended_early": "after 2 of 9 steps: trainer.max_time was over"})
    said = [line for line in analyze(study)["warnings"] if "ended early" in line]
    assert said == [f"{arm.id}: its training ended early, after 2 of 9 steps: trainer.max_time was over"]


def test_the_order_of_the_answers_does_not_matter(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    before = analyze(study)
    for arm in expand(study):
        path = predictions_path(study, arm)
        pq.write_table(pq.read_table(path).sort_by([("question_id", "descending")]), path)
    assert analyze(study) == before


def test_missing_arms_are_named_and_left_out(tmp_path):
    study = make_study(tmp_path, families="abc")
    fill(study)
    for seed in range(2):
        predictions_path(study, Arm("b", "rationale", "A", seed)).unlink()
    results = analyze(study)
    assert any("2 of 21 arms" in warning and "b-rationale-A-seed1" in warning for warning in results["warnings"])
    assert any("leaves out, since cells are missing, A" in warning for warning in results["warnings"])
    gamma = find(results["gamma"], method="difference in differences")
    assert gamma["num_teachers"] == 2 and gamma["families"] == ["b", "c"]


def test_a_missing_seed_is_named(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    predictions_path(study, Arm("b", "rationale", "A", 1)).unlink()
    results = analyze(study)
    assert "b-rationale-A-seed1" in results["warnings"][0]
    assert find(results["cells"], student="b", condition="rationale-A")["num_seeds"] == 1
    assert any("one training seed" in warning and "rationale-A" in warning for warning in results["warnings"])


@pytest.mark.parametrize(("correct", "groups"), [([True], None), ([True, False, True], ["a", "a", "a"])])
def test_one_question_or_group_is_refused(tmp_path, correct: list, groups: list | None):
    study = make_study(tmp_path)
    for arm in expand(study):
        write_arm(study, arm, correct, groups=groups)
    with pytest.raises(
        ValueError, match=r"^task t: one question, or one group of them, tells no interval; test on more"
    ):
        analyze(study)


def test_groups_that_differ_between_arms_are_refused(tmp_path):
    study = make_study(tmp_path)
    for index, arm in enumerate(expand(study)):
        write_arm(study, arm, [True] * 4, groups=["a", "a", "b", None if index else "b"])
    with pytest.raises(ValueError, match="task t: the questions' groups differ between"):
        analyze(study)


def test_a_study_without_predictions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no predictions yet"):
        analyze(make_study(tmp_path))


def test_other_questions_are_named_and_only_the_common_ones_compared(tmp_path):
    study = make_study(tmp_path)
    fill(study, 30)
    arm = expand(study)[3]
    write_arm(study, arm, [True] * 20, [f"q{number}" for number in range(20)])
    results = analyze(study)
    assert results["num_questions"] == {"t": 20}
    assert any(f"20 of 30 that all answered ({arm.id} answered 20)" in warning for warning in results["warnings"])
    write_arm(study, arm, [True] * 20, [f"other{number}" for number in range(20)])
    with pytest.raises(ValueError, match="no question that all arms answered"):
        analyze(study)


@pytest.mark.parametrize(
    ("correct", "ids", "message"),
    [([True, False], ["q0", "q0"], "'q0' is there twice"), ([True, None], None, "'q1' has no gold answer")],
)
def test_bad_predictions_are_refused(tmp_path, correct, ids, message):
    study = make_study(tmp_path)
    fill(study, 2)
    write_arm(study, expand(study)[2], correct, ids)
    with pytest.raises(ValueError, match=rf"{expand(study)[2].id}\.parquet: question {message}"):
        analyze(study)


def test_mixed_extractors_are_named(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    arm = expand(study)[2]
    records = [
        {
            "task": "t",
            "split": "test",
            "question_id": f"q{n}",
            "correct_neutral": True,
            "answer_neutral": "A",
            "correct_new": True,
        }
        for n in range(40)
    ]
    for other in expand(study):
        if other != arm:
            write_table(predictions_path(study, other), records, {})
    results = analyze(study)
    assert any("lack extractors" in warning and arm.id in warning for warning in results["warnings"])
    assert all(set(cell["accuracy_by_extractor"]) == {"neutral"} for cell in results["cells"])
    write_table(predictions_path(study, arm), [{"task": "t", "question_id": "q0", "correct_letter": True}], {})
    with pytest.raises(ValueError, match="no column correct_neutral"):
        analyze(study)


def test_versions_of_an_extractor_are_named(tmp_path):
    study = make_study(tmp_path, quantization=["none", "Q4_0"])
    fill(study)
    assert not [line for line in analyze(study)["warnings"] if "versions" in line]
    older, newer = expand(study)[2:4]
    # The paper's extractor is not one that all arms' tables have, and is not compared.
    write_arm(study, older, [True, False] * 20, extractors=["neutral-4", "paper-1"])
    write_arm(study, newer, [True, False] * 20, kind="Q4_0", extractors=["neutral-6", "paper-2"])
    assert [line for line in analyze(study)["warnings"] if "versions" in line] == [
        f"versions of neutral read the answers, which may explain a difference: neutral-4 those of {older.id}; "
        f"neutral-6 those of {newer.id} in Q4_0; neutral-5 the others; evaluate the older ones again"
    ]


def test_budgets_that_differ_are_named(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    write_arm(study, Arm("a", "rationale", "B", 1), [True] * 40, train_examples=15)
    [warning] = analyze(study)["warnings"]
    assert "train_examples 15 (student a, teacher B) to 17" in warning and "global_step" not in warning


def test_teachers_of_the_same_texts_are_named(tmp_path):
    study = make_study(tmp_path, families="abc")
    for arm in expand(study):
        # A and B have written the same, other than C, but for a text that a's budget has no room for.
        text = {"A": "x", "B": "x", "C": "y"}.get(arm.teacher, "") + (
            "!" if (arm.student, arm.teacher) == ("a", "B") else ""
        )
        write_arm(study, arm, [True, False] * 20, texts=text)
    [warning] = analyze(study)["warnings"]
    assert "students b, c learned the same texts from A, B, which" in warning


@pytest.mark.parametrize(
    ("rows", "student", "named"),
    [
        ({"arm": "rationale-B"}, None, "holds predictions of rationale-B, seed 0, not of rationale-A, seed 0"),
        ({"seed": 1}, None, "holds predictions of rationale-A, seed 1, not of rationale-A, seed 0"),
        ({}, "b-rationale-A-seed0", "holds predictions of the student of b-rationale-A-seed0, not of a-rationale-A"),
        (
            {"gold": "B"},
            None,
            "task t: question 'q0' has the gold answer 'A' in .*, and 'B' in a-rat.*; evaluate",
        ),
    ],
)
def test_predictions_of_another_arm_or_of_other_gold_answers_are_refused(tmp_path, rows, student, named):
    study = make_study(tmp_path)
    fill(study)
    for arm in expand(study):
        is_it = arm == Arm("a", "rationale", "A", 0)
        path = predictions_path(study, arm)
        own = {"arm": arm.condition, "seed": arm.seed, "gold": "A"} | (rows if is_it else {})
        records = [record | own for record in pq.read_table(path).to_pylist()]
        run = student if student and is_it else arm.id
        write_table(path, records, {"student": str(tmp_path / "runs" / run / "student")})
    with pytest.raises(ValueError, match=named):
        analyze(study)
