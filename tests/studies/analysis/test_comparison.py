import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datamodules.files.atomic import write_json
from datamodules.rationales.store import write_table
from studies.analysis.comparison import analyze, format_results
from studies.analysis.predictions import predictions_path
from studies.design.controls import ControlSpec
from studies.design.grid import Arm, TaskSpec, TeacherSpec, expand
from tests.studies.analysis.small_study import BUDGET, fill, find, make_study, write_arm


def test_cells_gains_and_gamma_by_hand(tmp_path):
    study = make_study(tmp_path)
    right = {("A", "a"): (30, 32), ("B", "b"): (20, 22), ("A", "b"): (18, 14), ("B", "a"): (25, 27)}
    for arm in expand(study):
        number = right[arm.teacher, arm.student][arm.seed] if arm.teacher else 10
        write_arm(study, arm, [question < number for question in range(40)], lost=4)
    results = analyze(study)
    assert results["num_questions"] == {"t": 40} and results["warnings"] == []
    cell = find(results["cells"], condition="rationale-A", student="b")
    assert cell["accuracy"] == cell["accuracy_by_extractor"]["neutral"] == pytest.approx(16 / 40)
    assert (cell["num_examples"], cell["num_seeds"], cell["num_questions"]) == (17, 2, 40)
    assert (cell["student_family"], cell["teacher_family"]) == ("b", "a")
    assert cell["extraction_rate"] == pytest.approx(0.9)
    assert cell["gain"] == pytest.approx(6 / 40) and cell["gain_low"] < cell["gain"] < cell["gain_high"]
    untuned = find(results["cells"], condition="untuned", student="b")
    assert (untuned["accuracy"], untuned["gain"], untuned["num_examples"]) == (10 / 40, None, 0)
    gamma = find(results["gamma"])
    assert gamma["estimate"] == pytest.approx((31 + 21 - 16 - 26) / 40 / 2)
    assert gamma["low"] < gamma["estimate"] < gamma["high"]
    assert gamma["families"] == ["a", "b"] and "one teacher of each family" in gamma["note"]
    better = find(results["effects"], kind="teacher", name="A")
    assert better["estimate"] == pytest.approx((31 + 16 - 26 - 21) / 40 / 4)
    table = format_results(results)
    assert re.search(r"\| rationale-A +\| 77.5% \[", table) and "(17; +52.5)" in table and "γ = +12.5 points" in table
    assert json.loads(json.dumps(results)) == results


def test_contrasts_are_paired_and_adjusted(tmp_path):
    controls = {"shuffled": ControlSpec(shuffled=True)}
    study = make_study(tmp_path, supervisions=["label", "rationale", "rationale+logits"], controls=controls)
    fill(study)
    results = analyze(study)
    cells = {(cell["student"], cell["condition"]): cell["accuracy"] for cell in results["cells"]}
    pairs = {(row["kind"], row["student"], row["left"], row["right"]) for row in results["contrasts"]}
    expected = {("logits", s, f"rationale+logits-{s.upper()}", f"rationale-{s.upper()}") for s in "ab"}
    expected |= {("rationale", s, f"rationale-{t}", "label") for s in "ab" for t in "AB"}
    expected |= {("control", s, f"rationale-{t}-shuffled", f"rationale-{t}") for s in "ab" for t in "AB"}
    for end in ("", "-shuffled"):
        expected |= {("family", s, f"rationale-{t}{end}", f"rationale-{u}{end}") for s, t, u in ("aAB", "bBA")}
    assert pairs == expected
    for row in results["contrasts"]:
        left, right = cells[row["student"], row["left"]], cells[row["student"], row["right"]]
        assert row["estimate"] == pytest.approx(left - right)
        assert row["low"] <= row["estimate"] <= row["high"] and row["p"] <= row["p_holm"] <= 1
        assert row["models"]["low"] <= row["estimate"] <= row["models"]["high"]
    # Each grid has its own interaction: the control's, too.
    assert {row["control"] for row in results["gamma"]} == {None, "shuffled"}


def test_logits_on_another_teachers_text_are_compared_both_ways(tmp_path):
    controls = {"cross": ControlSpec("rationale+logits", in_family_logits=True)}
    study = make_study(tmp_path, supervisions=["rationale", "rationale+logits"], controls=controls)
    fill(study)
    rows = [row for row in analyze(study)["contrasts"] if row["left"] == "rationale+logits-B-cross"]
    assert {(row["kind"], row["right"]) for row in rows} == {("control", "rationale-B"), ("text", "rationale+logits-A")}


def test_teachers_together_are_compared_with_each_alone(tmp_path):
    study = make_study(tmp_path, controls={"both": ControlSpec(together=["A", "B"])})
    fill(study)
    results = analyze(study)
    cells = {cell["condition"]: cell["accuracy"] for cell in results["cells"] if cell["student"] == "a"}
    row = find(results["contrasts"], kind="control", student="a")
    assert (row["left"], row["right"]) == ("rationale-both", "rationale-A, rationale-B")
    alone = (cells["rationale-A"] + cells["rationale-B"]) / 2
    assert row["estimate"] == pytest.approx(cells["rationale-both"] - alone)


def test_many_teachers_give_an_interval_over_teachers(tmp_path):
    teachers = {name: TeacherSpec(name[0], model="m") for name in ("a1", "a2", "a3", "b1", "b2")}
    study = make_study(tmp_path, teachers=teachers, seeds=1)
    fill(study)
    gammas = {row["method"]: row for row in analyze(study)["gamma"]}
    assert set(gammas) == {"difference in differences", "teachers", "mixed model"}
    assert len({round(row["estimate"], 12) for row in gammas.values()}) == 1
    assert gammas["teachers"]["note"] == "3 degrees of freedom: very few"
    assert gammas["difference in differences"]["note"] == ""


def test_tasks_are_kept_apart(tmp_path):
    tasks = {name: TaskSpec("train", ["x", "y"]) for name in ("one", "two")}
    study = make_study(tmp_path, tasks=tasks, seeds=1)
    for index, arm in enumerate(expand(study)):
        records = [
            {
                "task": task,
                "split": "test",
                "question_id": f"{n}",
                "correct_neutral": n % (2 + index) == 0,
                "answer_neutral": "A",
            }
            for task, size in (("x", 30), ("y", 50))
            for n in range(size)
        ]
        write_table(predictions_path(study, arm), records, {})
        write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)
    results = analyze(study)
    assert results["num_questions"] == {"x": 30, "y": 50}
    where = {(row["trained_on"], row["task"]) for row in results["gamma"]}
    assert where == {(trained, task) for trained in ("one", "two") for task in "xy"}
    assert format_results(results).count("Trained on") == 4


def test_rationales_in_another_language_are_another_task_that_arms_are_compared_with(tmp_path):
    tasks = {"same": TaskSpec("train", ["x"], against="pivot"), "pivot": TaskSpec("train", ["x"])}
    study = make_study(tmp_path, tasks=tasks, supervisions=["label", "rationale"])
    for arm in expand(study):
        # Native rationales help by 4 questions of 40, and 6 more within a family.
        right = 10 + (arm.supervision == "rationale") * (4 * (arm.task == "same"))
        right += 6 * (arm.task == "same" and arm.teacher == arm.student.upper())
        records = [
            {"task": "mgsm", "split": "test", "question_id": f"{n}-{language}", "language": language,
             "correct_neutral": n < right, "answer_neutral": "1", "group": f"mgsm-{n}"}
            for language in ("de", "th") for n in range(40)
        ]  # fmt: skip
        write_table(predictions_path(study, arm), records, {})
        if arm.supervision != "untuned":
            write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)
    results = analyze(study)
    places = ("mgsm/de", "mgsm/th", "mgsm/de+th")
    rows = [row for row in results["contrasts"] if row["kind"] == "task"]
    assert {(row["trained_on"], row["task"]) for row in rows} == {("same", place) for place in places}
    row = find(rows, student="a", left="rationale-A after same", task="mgsm/de+th")
    assert row["right"] == "rationale-A after pivot" and row["estimate"] == pytest.approx(10 / 40)
    assert find(rows, student="b", left="rationale-A after same", task="mgsm/de")["estimate"] == pytest.approx(4 / 40)
    alone, together = (
        find(results["gamma"], method="less γ after pivot", task=place) for place in ("mgsm/de", "mgsm/de+th")
    )
    assert alone["estimate"] == together["estimate"] == pytest.approx(6 / 40)
    assert together["low"] == pytest.approx(alone["low"], abs=0.01)
    assert not [row for row in results["gamma"] if row["trained_on"] == "pivot" and "less" in row["method"]]
    assert "less γ after pivot" in format_results(results)


def test_splits_of_a_task_are_kept_apart(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    for arm in expand(study):
        path = predictions_path(study, arm)
        records = pq.read_table(path).to_pylist()
        later = [{**record, "split": "dev" if index % 4 == 0 else "test"} for index, record in enumerate(records)]
        write_table(path, later, {})
    results = analyze(study)
    assert set(results["num_questions"]) == {"t/dev", "t/test"}
    assert results["num_questions"]["t/test"] == 3 * results["num_questions"]["t/dev"]


def test_a_single_seed_takes_the_variance_of_the_others_and_says_so(tmp_path):
    study = make_study(tmp_path, seeds=3)
    fill(study)
    before = find(analyze(study)["gamma"])
    assert before["seed_variance"] == "own"
    for seed in (1, 2):
        predictions_path(study, Arm("b", "rationale", "A", seed)).unlink()
    results = analyze(study)
    gamma = find(results["gamma"])
    assert gamma["seed_variance"] == "pooled"
    assert find(results["cells"], student="b", condition="rationale-A")["seed_variance"] == "pooled"
    assert any("the variance over seeds is pooled" in warning for warning in results["warnings"])
    assert "pooled over the cells with several" in format_results(results)


def test_one_seed_everywhere_says_what_intervals_leave_out(tmp_path):
    study = make_study(tmp_path, seeds=1)
    fill(study)
    results = analyze(study)
    assert find(results["gamma"])["seed_variance"] == "left out"
    assert {row["method"] for row in (*results["contrasts"], *results["effects"])} <= {"questions alone"}
    assert {cell["seed_variance"] for cell in results["cells"]} == {"left out", "none"}
    text = format_results(results)
    assert "intervals over questions alone, not over the training seeds" in text
    assert "it leaves out what other training seeds would change" in text


def test_intervals_are_over_groups_of_questions(tmp_path):
    wide, narrow = (make_study(tmp_path, name=name) for name in ("groups", "alone"))
    groups = [f"passage {number // 10}" for number in range(80)]
    for arm in expand(wide):
        # All questions of a passage are answered alike, and by both seeds of an arm.
        passages = np.random.default_rng([*f"{arm.student} {arm.condition}".encode()]).random(8) < 0.5
        correct = passages.repeat(10).tolist()
        write_arm(wide, arm, correct, groups=groups)
        write_arm(narrow, arm, correct)
    found, alone = analyze(wide), analyze(narrow)
    assert (found["num_groups"], alone["num_groups"]) == ({"t": 8}, {})
    for kind in ("cells", "gamma", "effects"):
        for row, other in zip(found[kind], alone[kind], strict=True):
            assert row["high"] - row["low"] > 2 * (other["high"] - other["low"])
    for cell, other in zip(found["cells"], alone["cells"], strict=True):
        assert cell["gain"] is None or cell["gain_high"] - cell["gain"] > 2 * (other["gain_high"] - other["gain"])
    for row, other in zip(found["contrasts"], alone["contrasts"], strict=True):
        assert row["models"]["high"] - row["models"]["low"] > 2 * (other["models"]["high"] - other["models"]["low"])
        assert row["models"]["p"] >= other["models"]["p"]
    assert "80 questions of t in 8 groups" in format_results(found)


def test_translations_are_compared_by_language_and_together_as_one_question(tmp_path):
    study = make_study(tmp_path)
    for arm in expand(study):
        # Each question is answered alike in both languages.
        rng = np.random.default_rng([*f"{arm.student} {arm.condition} {arm.seed}".encode()])
        correct = (rng.random(40) < 0.5).tolist()
        records = [
            {"task": "mgsm", "split": "test", "question_id": f"{number}-{language}", "language": language,
             "correct_neutral": right, "answer_neutral": "1", "group": f"mgsm-{number}"}
            for language in ("de", "th") for number, right in enumerate(correct)
        ]  # fmt: skip
        write_table(predictions_path(study, arm), records, {})
        if arm.supervision != "untuned":
            write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)
    results = analyze(study)
    assert results["num_questions"] == {"mgsm/de": 40, "mgsm/th": 40, "mgsm/de+th": 80}
    assert results["num_groups"] == {"mgsm/de+th": 40}
    for kind in ("gamma", "contrasts"):
        german, together = ([row for row in results[kind] if row["task"] == f"mgsm/{name}"] for name in ("de", "de+th"))
        assert german and len(german) == len(together)
        for row, other in zip(german, together, strict=True):
            for name in ("estimate", "low", "high"):
                # Twice the questions, and not a narrower interval.
                assert other[name] == pytest.approx(row[name], abs=0.015)
    assert "80 questions of mgsm/de+th in 40 groups" in format_results(results)


def test_one_family_has_no_gamma_and_says_what_is_missing(tmp_path):
    study = make_study(tmp_path, "a")
    fill(study)
    results = analyze(study)
    assert results["gamma"] == [] and results["effects"] == []
    assert any("not identified: all students are of the family a" in warning for warning in results["warnings"])
    assert "γ: not identified" in format_results(results)


def test_analysis_repeats(tmp_path):
    study = make_study(tmp_path)
    fill(study)
    assert analyze(study) == analyze(replace(study))
