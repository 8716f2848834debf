"""Tests of what a study says of several languages together: each answered by the arm that learned it."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.files.atomic import write_json
from datamodules.files.tables import write_table
from studies.analysis.comparison import analyze, format_results
from studies.analysis.predictions import predictions_path, read_answers
from studies.design.controls import ControlSpec
from studies.design.grid import Arm, Study, TaskSpec, expand
from studies.design.tasks import LanguageSpec
from studies.inference.statistics import estimate_contrast
from tests.studies.analysis.small_study import BUDGET, find, make_study

pytestmark = pytest.mark.filterwarnings("ignore:.*is not sealed")
TAGS, NUM = ("de", "th"), 30
WHOLE = "m/de+th"


def write(study: Study, arm: Arm, right: dict[str, list[bool]]) -> None:
    """Writes an arm's answers by language; a question and its translation are a group."""
    records = [
        {
            **{"task": "m", "split": "test", "question_id": f"m-{number}-{tag}", "group": f"m-{number}"},
            **{"language": tag, "correct_neutral": bool(is_right), "answer_neutral": "A"},
        }
        for tag, own in right.items()
        for number, is_right in enumerate(own)
    ]
    write_table(predictions_path(study, arm), records, {})
    if arm.supervision != "untuned":
        write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two families in two languages, with rationales of the same language and English pivots."""
    study = make_study(
        tmp_path_factory.mktemp("pooled"),
        tasks={"m": TaskSpec("m:{language}", ["m:{language}"])},
        languages=LanguageSpec([*TAGS], ["same", "pivot"]),
        controls={"in_words": ControlSpec(translator="A")},
    )
    for index, arm in enumerate(expand(study)):
        rng = np.random.default_rng(index)
        tags = [study.learned[arm.task].language] if arm.task else TAGS
        # Every arm also answers questions in English, which are of no language's own.
        right = {str(tag): (rng.random(NUM) < 0.4 + 0.01 * index).tolist() for tag in tags}
        write(study, arm, right | {"en": [True, False]})
    return study


def test_each_language_is_answered_by_the_arm_that_learned_it(study: Study) -> None:
    answers = read_answers(study)
    pooled = {key: cell for key, cell in answers.cells.items() if key.trained_on == "m-same"}
    assert {key.task for key in pooled} == {WHOLE} and len(pooled) == 4
    for key, cell in pooled.items():
        alone = [answers.cells[key._replace(trained_on=f"m-{tag}-same", task=f"m/{tag}")] for tag in TAGS]
        assert cell.correct_SQ.shape == (2, 2 * NUM)
        assert cell.correct_SQ.mean(1) == pytest.approx(np.mean([own.correct_SQ.mean(1) for own in alone], 0))
        assert cell.budget == {name: [2 * number] * 2 for name, number in BUDGET.items()}
    groups_Q = answers.groups[WHOLE]
    assert groups_Q is not None and np.bincount(groups_Q).tolist() == [2] * NUM
    # What the untuned student answers beside them is left out, too.
    assert {key.task for key in answers.cells if key.supervision == "untuned"} > {WHOLE, "m/de+en+th"}


def test_gamma_and_same_less_pivot_are_of_each_language_and_of_all(study: Study) -> None:
    results = analyze(study)
    answers = read_answers(study)
    for trained_on, against, task in [
        *((f"m-{tag}-same", f"m-{tag}-pivot", f"m/{tag}") for tag in TAGS),
        ("m-same", "m-pivot", WHOLE),
    ]:
        rows = [row for row in results["gamma"] if (row["trained_on"], row["task"]) == (trained_on, task)]
        own, less = (find(rows, method=name) for name in ("difference in differences", f"less γ after {against}"))
        pivot = find(
            [
                row
                for row in results["gamma"]
                if (row["trained_on"], row["task"]) == (against, task) and not row["control"]
            ],
            method="difference in differences",
        )
        assert less["estimate"] == pytest.approx(own["estimate"] - pivot["estimate"])
        differences = [row for row in results["contrasts"] if (row["kind"], row["task"]) == ("task", task)]
        names = [f"rationale-{teacher} after {against}" for teacher in "AB"]
        assert [row["right"] for row in differences if row["trained_on"] == trained_on] == names * 2
        # Translated pivots are held against what was written in the language.
        translated = [row for row in differences if row["trained_on"] == against]
        assert [row["right"] for row in translated] == [f"rationale-{by} after {trained_on}" for by in "AB"] * 2
        assert all(row["left"].endswith(f"-in_words after {against}") for row in translated)
    # Questions and their translations are one: the interval is that of a contrast over groups.
    keys = [key for key in answers.cells if key.trained_on == "m-same"]
    cells = [answers.cells[key].correct_SQ for key in keys]
    row = find(results["gamma"], trained_on="m-same", task=WHOLE, method="difference in differences")
    expected = estimate_contrast(cells, [0.5, -0.5, -0.5, 0.5], groups_Q=answers.groups[WHOLE], pool=cells)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert "Trained on m-same, 60 questions of m/de+th in 30 groups, over which the intervals are:" in format_results(
        results
    )


def test_an_arm_that_is_missing_in_a_language_is_in_no_pooled_one(study: Study) -> None:
    gone = next(arm for arm in expand(study) if arm.task == "m-th-same")
    path = predictions_path(study, gone)
    path.rename(path.with_suffix(".away"))
    try:
        answers = read_answers(study)
    finally:
        path.with_suffix(".away").rename(path)
    seeds = [cell.seeds for key, cell in answers.cells.items() if key.trained_on == "m-same"]
    assert sorted(seeds) == [[0, 1], [0, 1], [0, 1], [1]]
