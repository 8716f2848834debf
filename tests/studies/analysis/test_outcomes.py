"""Outcomes beside accuracy: their values by hand, and γ of each by accuracy's method."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from datamodules.files.atomic import write_json
from datamodules.rationales.store import write_table
from studies.analysis.comparison import analyze, format_results
from studies.analysis.outcome_values import measure_outcome
from studies.analysis.predictions import predictions_path
from studies.design.grid import Study, TaskSpec, TeacherSpec, expand
from studies.report.outcomes import show_outcomes
from tests.studies.analysis.small_study import BUDGET, find, make_study


def fill_outcomes(study: Study, has_references: bool = True) -> None:
    """All answer alike; within a family the gold option has 0.2 more probability, and 3 of 10 tokens more agree."""
    for arm in expand(study):
        own = arm.teacher == arm.student.upper()
        chance = 0.5 + 0.2 * own + 0.01 * arm.seed
        other = math.log((1 - chance) / 2) - 5
        shared = 4.0 + 3 * own if has_references else None
        records = [
            {
                "task": "t", "split": "test", "question_id": f"q{n}", "gold": "B", "answer_neutral": "B",
                "correct_neutral": n % 2 == 0,
                "option_log_likelihoods": [other, math.log(chance) - 5, other],
                "references": [
                    {"teacher": teacher, "num_compared": 10 if has_references else None, "agreement": shared}
                    for teacher in ("m/A", "m/B")
                ],
            }
            for n in range(20)
        ]  # fmt: skip
        write_table(predictions_path(study, arm), records, {})
        if arm.teacher:
            write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)


def make(root: Path) -> Study:
    teachers = {name: TeacherSpec(name.lower(), model=f"m/{name}") for name in "AB"}
    return make_study(root, teachers=teachers, outcomes=["likelihood", "agreement"])


def test_each_outcome_has_its_gamma_where_accuracy_shows_none(tmp_path):
    study = make(tmp_path)
    fill_outcomes(study)
    results = analyze(study)
    assert find(results["gamma"])["estimate"] == pytest.approx(0)
    likelihood, agreement = results["outcomes"]
    assert (likelihood["outcome"], agreement["outcome"]) == ("likelihood", "agreement")
    row = find(likelihood["gamma"])
    assert row["estimate"] == pytest.approx(0.2) and 0 < row["low"] < 0.2 < row["high"]
    assert find(agreement["gamma"])["estimate"] == pytest.approx(0.3)
    cell = find(likelihood["cells"], student="a", condition="rationale-A")
    assert cell["mean"] == pytest.approx(0.705)
    assert find(likelihood["cells"], student="a", condition="untuned")["mean"] == pytest.approx(0.5)
    # Nobody taught the untuned student.
    assert {cell["condition"] for cell in agreement["cells"]} == {"rationale-A", "rationale-B"}
    table = format_results(results)
    assert "likelihood (probability of the gold option among the options" in table
    assert table.count("Family interaction γ = ") == 3 and "γ = +20.0 points [" in table
    texts = [block.text for block in show_outcomes(results)[::3]]
    assert [text.split("**")[1] for text in texts] == ["likelihood", "agreement"]


def test_references_are_as_likely_as_their_tokens_are_in_the_geometric_mean(tmp_path: Path) -> None:
    """Arms that learned labels, and the untuned ones, are told as the others are, and compared with them."""
    task = TaskSpec("train.jsonl", ["test.jsonl"], references=["r.parquet"])
    study = make_study(
        tmp_path, families="a", tasks={"obqa": task}, supervisions=["label", "rationale"],
        outcomes=["reference_likelihood"],
    )  # fmt: skip
    chances = {"untuned": 0.2, "label": 0.1, "rationale": 0.4}
    for arm in expand(study):
        # 0.4 and 0.1 a token, of which there are as many: questions differ, and seeds a little.
        chance = chances[arm.supervision] + 0.002 * arm.seed
        means = [math.log(chance - 0.05), math.log(chance + 0.05)]
        records = [
            {
                "task": "t", "split": "test", "question_id": f"q{n}", "gold": "1", "answer_neutral": None,
                "correct_neutral": False, "option_log_likelihoods": None,
                "references": [
                    {"teacher": f"w{k}", "num_tokens": 10 + k, "log_likelihood": (10 + k) * mean}
                    for k, mean in enumerate(means)
                ],
            }
            for n in range(20)
        ]  # fmt: skip
        write_table(predictions_path(study, arm), records, {})
        if arm.supervision != "untuned":
            write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)
    results = analyze(study)
    [own] = results["outcomes"]
    assert find(own["cells"], condition="rationale-A")["mean"] == pytest.approx(0.401)
    assert find(own["cells"], condition="rationale-A")["gain"]["estimate"] == pytest.approx(0.201)
    assert find(own["cells"], condition="untuned")["gain"] is None
    assert find(own["contrasts"], kind="rationale")["estimate"] == pytest.approx(0.3)
    table = format_results(results)
    assert "- rationale-A, student a: 40.1% [" in table and "a: rationale-A against label: +30.0 points" in table
    effects = show_outcomes(results)[1]
    assert effects.rows[0][0].text == "a: less label" and effects.rows[0][3].text == "+30.0"


def test_a_gain_has_the_interval_of_paired_differences_and_no_question_more(tmp_path: Path) -> None:
    study = make_study(tmp_path, outcomes=["likelihood"], seeds=1)
    chances = {True: np.linspace(0.5, 0.6, 20), False: np.linspace(0.3, 0.45, 20) ** 1.1}
    for arm in expand(study):
        records = [
            {
                "task": "t", "split": "test", "question_id": f"q{n:02}", "gold": "B", "answer_neutral": "B",
                "correct_neutral": True, "option_log_likelihoods": [math.log(1 - chance), math.log(chance)],
            }
            for n, chance in enumerate(chances[arm.teacher is not None].tolist())
        ]  # fmt: skip
        write_table(predictions_path(study, arm), records, {})
        if arm.teacher:
            write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)
    [likelihood] = analyze(study)["outcomes"]
    gain = find(likelihood["cells"], student="a", condition="rationale-A")["gain"]
    expected = ttest_rel(chances[True], chances[False]).confidence_interval()
    assert (gain["low"], gain["high"]) == pytest.approx(tuple(expected))


def test_an_outcome_that_predictions_do_not_tell_is_named(tmp_path):
    study = make(tmp_path)
    fill_outcomes(study, has_references=False)
    results = analyze(study)
    assert results["warnings"] == ["t: some arms' predictions do not tell agreement (column references)"]
    assert results["outcomes"][1]["gamma"] == []


def test_a_question_without_options_or_of_another_teacher_tells_nothing():
    record = {"option_log_likelihoods": None, "gold": "12", "references": None}
    assert measure_outcome("likelihood", record, "t") is measure_outcome("agreement", record, "t") is None
    other = {"references": [{"teacher": "u", "num_compared": 4, "agreement": 2.0}]}
    assert measure_outcome("agreement", other, "t") is None and measure_outcome("agreement", other, "u") == 0.5
