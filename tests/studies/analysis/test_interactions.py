"""Tests of the family interactions of text and of distributions, and of their difference."""

from pathlib import Path

import numpy as np
import pytest

from studies.analysis.comparison import analyze, format_results
from studies.analysis.predictions import predictions_path
from studies.design.controls import ControlSpec
from studies.design.grid import Study, TeacherSpec, expand
from tests.studies.analysis.small_study import fill, make_study, write_arm

RIGHT = {  # of 40 questions, by the control, the supervision, the student and the teacher
    (None, "rationale"): {"aA": 20, "aB": 16, "bA": 12, "bB": 24},
    (None, "rationale+logits"): {"aA": 30, "aB": 20, "bA": 14, "bB": 32},
    (None, "on-policy"): {"aA": 31, "aB": 27, "bA": 23, "bB": 29},
    ("own", "rationale+logits"): {"aB": 26, "bA": 18},
    ("bytes", "rationale+logits"): {"aB": 22, "bA": 15},
    ("more", "rationale+logits"): {"aA": 32, "aB": 25, "bA": 20, "bB": 33},
    ("last", "rationale"): {"aA": 32, "aB": 25, "bA": 20, "bB": 34},
}


def fill_both(study: Study) -> None:
    """Cells whose accuracies are round numbers; two seeds that differ by a question."""
    for arm in expand(study):
        number = RIGHT[arm.control, arm.supervision][f"{arm.student}{arm.teacher}"] if arm.teacher else 10
        write_arm(study, arm, [question < number + arm.seed for question in range(40)])


def make_crossed(root: Path, **changes) -> Study:
    controls = {
        "own": ControlSpec("rationale+logits", in_family_logits=True),
        "bytes": ControlSpec("rationale+logits", alignment="bytes"),
    }
    fields = {"supervisions": ["rationale", "rationale+logits"], "alignment": "strict", "controls": controls}
    return make_study(root, **{**fields, **changes})


def test_gammas_of_text_and_of_distributions_and_their_difference_by_hand(tmp_path):
    study = make_crossed(tmp_path)
    fill_both(study)
    results = analyze(study)
    assert results["warnings"] == []
    gammas = {(row["supervision"], row["control"]): row["estimate"] for row in results["gamma"]}
    by_hand = {
        ("rationale", None): (20 + 24 - 16 - 12) / 80,
        ("rationale+logits", None): (30 + 32 - 20 - 14) / 80,
        # Within the family these have the plain arms.
        ("rationale+logits", "own"): (30 + 32 - 26 - 18) / 80,
        ("rationale+logits", "bytes"): (30 + 32 - 22 - 15) / 80,
    }
    assert gammas == pytest.approx(by_hand)
    found = {(row["left"], row["right"]): row for row in results["gamma_differences"]}
    sides = {"rationale+logits": ("rationale+logits", None), "rationale+logits-bytes": ("rationale+logits", "bytes")}
    others = {"rationale": ("rationale", None), "rationale+logits-own": ("rationale+logits", "own")}
    assert set(found) == {(left, right) for left in sides for right in others}
    for (left, right), row in found.items():
        assert row["estimate"] == pytest.approx(by_hand[sides[left]] - by_hand[others[right]])
        assert (row["left_gamma"], row["right_gamma"]) == pytest.approx((by_hand[sides[left]], by_hand[others[right]]))
        assert row["low"] < row["estimate"] < row["high"] and row["holds_text"] == (right != "rationale")
        assert (row["method"], row["num_seeds"], row["num_questions"]) == ("difference in differences", 2, 40)
    table = format_results(results)
    assert "γ = +35.0 points (rationale+logits), text alone γ = +20.0 points (rationale)" in table
    assert "the distributions add +15.0 points [" in table
    pairs = {(row["kind"], row["left"], row["right"]) for row in results["contrasts"] if row["student"] == "a"}
    assert {
        ("logits", "rationale+logits-B", "rationale-B"),
        ("control", "rationale+logits-B-own", "rationale+logits-B"),
        ("control", "rationale+logits-B-bytes", "rationale+logits-B"),
        ("logits", "rationale+logits-B-bytes", "rationale-B"),
    } <= pairs


def analyze_three(root: Path, right: dict[str, int]) -> tuple[list[dict] | None, str]:
    """Returns what is fragile of three families, and the table; a cell has so many right answers of 200, or 100."""
    study = make_study(root, "abc")
    for arm in expand(study):
        number = right.get(f"{arm.student}{arm.teacher}", 100)
        rng = np.random.default_rng(arm.seed)
        write_arm(study, arm, (rng.permutation(200) < number).tolist())
    results = analyze(study)
    asked, *others = results["gamma"]
    assert others and all(row["fragile"] is None for row in others)
    return asked["fragile"], format_results(results)


def test_a_cell_that_makes_the_headline_is_named_with_what_is_said_without_it(tmp_path):
    found, table = analyze_three(tmp_path, {"aA": 190})
    assert [(row["student"], row["teacher"]) for row in found] == [("a", "A")]
    assert found[0]["estimate"] == pytest.approx(0, abs=1e-12) and found[0]["low"] < 0 < found[0]["high"]
    [line] = [line for line in table.splitlines() if "fragile" in line]
    assert "γ = +15.0 points" in line and "; fragile: without student a from teacher A it is " in line
    assert line.count("fragile") == 1 and "more of the cells" not in line


def test_what_no_single_cell_makes_is_not_fragile(tmp_path):
    found, table = analyze_three(tmp_path, {"aA": 160, "bB": 160, "cC": 162})
    assert found == [] and "fragile" not in table


def test_a_cell_that_hides_the_headline_or_turns_its_sign_is_named_first(tmp_path):
    found, table = analyze_three(tmp_path, {"aA": 20, "bB": 130, "cC": 130})
    assert (found[0]["student"], found[0]["teacher"]) == ("a", "A")
    assert found[0]["estimate"] == pytest.approx(0.15) and found[0]["low"] > 0
    assert "fragile: without student a from teacher A it is +15.0 points [" in table


def test_of_two_by_two_no_cell_can_be_left_out(tmp_path):
    study = make_crossed(tmp_path)
    fill_both(study)
    results = analyze(study)
    assert all(row["fragile"] is None for row in results["gamma"])
    assert "fragile" not in format_results(results)


def test_coverage_of_alignment_is_a_mean_over_seeds_of_the_arms_that_have_one(tmp_path):
    study = make_study(tmp_path, supervisions=["rationale", "rationale+logits"], alignment="strict")
    for arm in expand(study):
        is_aligned = arm.supervision == "rationale+logits" and arm.teacher != arm.student.upper()
        coverage = {"none": 0.1 * arm.seed, "strict": 1 - 0.1 * arm.seed} if is_aligned else {}
        write_arm(study, arm, [True, False, True, False], alignment=coverage)
    results = analyze(study)
    found = {(cell["condition"], cell["student"]): cell["coverage"] for cell in results["cells"] if cell["coverage"]}
    assert set(found) == {("rationale+logits-B", "a"), ("rationale+logits-A", "b")}
    assert found["rationale+logits-B", "a"] == pytest.approx({"none": 0.05, "strict": 0.95})
    line = "- rationale+logits-B, student a: of its tokens the teacher's lie 5.0% none, 95.0% strict"
    assert line in format_results(results).splitlines()


def test_a_difference_of_gammas_has_the_interval_of_one_contrast_of_all_cells(tmp_path):
    # Questions that are hard for the text are as hard with distributions: what both grids share must cancel.
    study = make_study(tmp_path, supervisions=["rationale", "rationale+logits"], alignment="chunks", seeds=3)
    fill_both(study)
    results = analyze(study)
    [row] = results["gamma_differences"]
    apart = sum((gamma["high"] - gamma["estimate"]) ** 2 for gamma in results["gamma"]) ** 0.5
    assert row["high"] - row["estimate"] < apart


def test_gamma_on_policy_and_how_it_differs_from_gamma_off_policy_by_hand(tmp_path):
    supervisions = ["rationale", "rationale+logits", "on-policy"]
    study = make_study(tmp_path, supervisions=supervisions, alignment="strict")
    fill_both(study)
    results = analyze(study)
    found = {(row["left"], row["right"]): row["estimate"] for row in results["gamma_differences"]}
    gammas = {"rationale": 16 / 80, "rationale+logits": 28 / 80, "on-policy": (31 + 29 - 27 - 23) / 80}
    pairs = [("rationale+logits", "rationale"), ("on-policy", "rationale"), ("on-policy", "rationale+logits")]
    assert found == pytest.approx({(left, right): gammas[left] - gammas[right] for left, right in pairs})
    assert "On-policy gives γ = +12.5 points (on-policy), off-policy γ = +20.0 points" in format_results(results)
    kinds = {(row["kind"], row["left"], row["right"]) for row in results["contrasts"] if row["student"] == "a"}
    assert {("on-policy", "on-policy-B", f"{other}-B") for other in ("rationale", "rationale+logits")} <= kinds


def test_gamma_on_policy_is_held_against_arms_that_go_on_from_another_by_hand(tmp_path):
    controls = {
        "more": ControlSpec("rationale+logits", start="rationale"),
        "last": ControlSpec(answer_position="last", start="rationale"),
    }
    supervisions = ["rationale", "on-policy"]
    study = make_study(tmp_path, supervisions=supervisions, alignment="strict", controls=controls)
    fill_both(study)
    results = analyze(study)
    found = {(row["left"], row["right"]): row for row in results["gamma_differences"]}
    assert set(found) == {("on-policy", "rationale"), ("on-policy", "rationale+logits-more")}
    row = found["on-policy", "rationale+logits-more"]
    assert row["estimate"] == pytest.approx((31 + 29 - 27 - 23) / 80 - (32 + 33 - 25 - 20) / 80)
    # Two seeds of 40 questions each: one interval of the difference, not two side by side.
    assert row["low"] < row["estimate"] < row["high"] and row["num_seeds"] == 2
    kinds = {(row["kind"], row["left"], row["right"]) for row in results["contrasts"] if row["student"] == "a"}
    assert ("on-policy", "on-policy-B", "rationale+logits-B-more") in kinds


def test_the_teachers_that_both_grids_have_are_compared(tmp_path):
    teachers = {name: TeacherSpec(name.lower(), model="m") for name in "AB"}
    teachers["G"] = TeacherSpec("gpt", rationales="g.jsonl", name="gpt-4o")
    study = make_study(
        tmp_path, supervisions=["rationale", "rationale+logits"], alignment="strict", teachers=teachers, seeds=1
    )
    fill(study)
    results = analyze(study)
    cells = {cell["condition"][-1] + cell["student"]: cell for cell in results["cells"]}
    assert "Ga" in cells and {row["num_teachers"] for row in results["gamma"]} == {2, 3}
    accuracies = {(row["condition"], row["student"]): row["accuracy"] for row in results["cells"]}
    text = {pair: accuracies[f"rationale-{pair[0]}", pair[1]] for pair in ("Aa", "Ab", "Ba", "Bb")}
    for row in results["gamma_differences"]:
        assert row["right_gamma"] == pytest.approx((text["Aa"] + text["Bb"] - text["Ab"] - text["Ba"]) / 2)
        assert row["num_teachers"] == 2


def test_a_difference_that_is_not_identified_is_named(tmp_path):
    study = make_study(tmp_path, supervisions=["rationale", "rationale+logits"])
    fill(study)
    results = analyze(study)
    assert results["gamma_differences"] == []
    [warning] = results["warnings"]
    assert warning.startswith("rationale+logits, obqa, t: the family interaction is not identified: logits come from")
    # Each grid alone would do, but they have no two teachers in common.
    study = make_study(
        tmp_path / "apart", families="abc", supervisions=["rationale", "rationale+logits"], alignment="bytes", seeds=1
    )
    fill(study)
    lost = {"rationale": "A", "rationale+logits": "B"}
    for arm in expand(study):
        if arm.student == "a" and arm.teacher == lost.get(arm.supervision):
            predictions_path(study, arm).unlink()
    results = analyze(study)
    assert {row["supervision"] for row in results["gamma"]} == {"rationale", "rationale+logits"}
    assert results["gamma_differences"] == []
    assert any(
        "the difference of family interactions is not identified: all teachers are of the family c" in warning
        for warning in results["warnings"]
    )
