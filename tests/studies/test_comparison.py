from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from datamodules.files import write_json
from datamodules.rationales import write_table
from studies.comparison import compare, format_comparison, predictions_path
from studies.grid import Arm, StudentSpec, Study, TaskSpec, TeacherSpec, expand


def make_study(root: Path, families: str = "ab", **changes) -> Study:
    return Study(
        **{
            "name": "s",
            "tasks": {"obqa": TaskSpec("train.jsonl", ["test.jsonl"])},
            "students": {family: StudentSpec("m", family) for family in families},
            "teachers": {family: TeacherSpec(family, model="m") for family in families},
            "supervisions": ["rationale"],
            "seeds": 2,
            "root": str(root),
            **changes,
        }
    )


def write_arm(study: Study, arm: Arm, correct: list[bool | None], ids: list[str] | None = None, lost: int = 0) -> None:
    """Writes an arm's predictions; the first `lost` have no answer."""
    ids = ids or [f"q{number}" for number in range(len(correct))]
    records = [
        {"question_id": identifier, "correct_neutral": right, "answer_neutral": None if number < lost else "A"}
        for number, (identifier, right) in enumerate(zip(ids, correct, strict=True))
    ]
    write_table(predictions_path(study, arm), records, {})
    if arm.supervision != "untuned":
        write_json(Path(study.root) / study.name / arm.id / "DONE", {"train_examples": 17})


def fill(study: Study, share: float = 0.5, num_questions: int = 40) -> None:
    for arm in expand(study):
        write_arm(study, arm, [number < share * num_questions for number in range(num_questions)])


def test_cells_and_gamma_by_hand(tmp_path):
    study = make_study(tmp_path)
    right = {("a", "a"): (30, 32), ("b", "b"): (20, 22), ("a", "b"): (18, 14), ("b", "a"): (25, 27)}
    for arm in expand(study):
        number = right[arm.teacher, arm.student][arm.seed] if arm.teacher else 10
        write_arm(study, arm, [question < number for question in range(40)], lost=4)
    found = compare(study)
    assert found.num_questions == 40
    assert found.cells["rationale-a", "a"].accuracy == pytest.approx(31 / 40)
    assert found.cells["rationale-a", "b"].accuracy == pytest.approx(16 / 40)
    assert found.cells["untuned", "b"].accuracy == pytest.approx(10 / 40)
    assert found.cells["untuned", "b"].num_examples == 0 and found.cells["rationale-a", "b"].num_examples == 17
    assert found.cells["rationale-a", "b"].extracted == pytest.approx(0.9)
    assert found.cells["rationale-a", "b"].num_seeds == 2
    assert found.interaction is not None and found.interaction.families == ("a", "b")
    assert found.interaction.gamma == pytest.approx((31 + 21 - 16 - 26) / 40 / 2)
    assert found.interaction.low < found.interaction.gamma < found.interaction.high
    table = format_comparison(study, found)
    assert "| rationale-a | 77.5% [" in table and "γ = +12.5 points" in table and "40 held-out questions" in table


def test_the_order_of_the_answers_does_not_matter(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    before = compare(study)
    arm = expand(study)[0]
    write_arm(study, arm, [number >= 20 for number in range(40)], ids=[f"q{number}" for number in reversed(range(40))])
    after = compare(study)
    assert {key: cell.low for key, cell in before.cells.items()} == {key: cell.low for key, cell in after.cells.items()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_interval_is_at_least_wilsons(tmp_path, share):
    study = make_study(tmp_path)
    fill(study, share)
    expected = binomtest(round(40 * share), 40).proportion_ci(0.95, method="wilson")
    for cell in compare(study).cells.values():
        assert cell.low <= expected.low + 1e-12 and cell.high >= expected.high - 1e-12
        assert cell.low <= share <= cell.high


def test_interval_covers_seeds_that_disagree(tmp_path):
    study = make_study(tmp_path)
    for arm in expand(study):
        write_arm(study, arm, [arm.seed == 1] * 40)
    cell = compare(study).cells["rationale-a", "a"]
    assert (cell.accuracy, cell.low, cell.high) == pytest.approx((0.5, 0, 1))


def test_arms_that_answer_alike_have_no_gamma_and_no_width(tmp_path):
    # Questions are resampled once for all cells, so what they share cancels.
    study = make_study(tmp_path, seeds=1)
    rng = np.random.default_rng(0)
    answers = [bool(value) for value in rng.random(40) < 0.5]
    for arm in expand(study):
        write_arm(study, arm, answers)
    found = compare(study).interaction
    assert found is not None
    assert (found.gamma, found.low, found.high) == pytest.approx((0, 0, 0))


def test_comparison_repeats(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    first, second = compare(study), compare(study)
    assert format_comparison(study, first) == format_comparison(study, second)


@pytest.mark.parametrize(
    "changes",
    [
        {"families": "a"},
        {"families": "abc"},
        {"supervisions": ["label"]},
        {"teachers": {"a": TeacherSpec("a", model="m"), "c": TeacherSpec("c", model="m")}},
        {
            "teachers": {
                "a": TeacherSpec("a", model="m"),
                "b": TeacherSpec("b", model="m"),
                "b2": TeacherSpec("b", model="m"),
            }
        },
    ],
)
def test_gamma_needs_two_families_with_one_model_each(tmp_path, changes):
    study = make_study(tmp_path, **changes)
    fill(study)
    found = compare(study)
    assert found.interaction is None
    assert "needs one teacher and one student of each of two families" in format_comparison(study, found)


def test_missing_predictions_are_refused(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    path = predictions_path(study, expand(study)[3])
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name}: missing"):
        compare(study)


@pytest.mark.parametrize("ids", [["q0", "q1", "q9"], ["q0", "q1"], ["q0", "q1", "q2", "q3"]])
def test_other_questions_are_refused(tmp_path, ids):
    study = make_study(tmp_path)
    fill(study, num_questions=3)
    arm = expand(study)[4]
    write_arm(study, arm, [True] * len(ids), ids)
    with pytest.raises(ValueError, match="other questions"):
        compare(study)


def test_a_question_answered_twice_is_refused(tmp_path):
    study = make_study(tmp_path)
    fill(study, num_questions=3)
    write_arm(study, expand(study)[2], [True] * 4, ["q0", "q1", "q2", "q2"])
    with pytest.raises(ValueError, match="twice"):
        compare(study)


def test_questions_without_gold_are_refused(tmp_path):
    study = make_study(tmp_path)
    fill(study, num_questions=3)
    write_arm(study, expand(study)[2], [True, None, False])
    with pytest.raises(ValueError, match="gold"):
        compare(study)
