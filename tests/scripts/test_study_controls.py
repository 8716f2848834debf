"""A whole study with every control, in small: what each arm learned from is what its control says."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.scripts.pipeline import run_study

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
STUDENT = {"a": {"model": "configs/models/microworld/a-student", "family": "a"}}
ONE_EACH = ["solved_by_all", "all_answers", "same_lengths", "answer_first", "answer_last", "shuffled", "by_b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the microworld's controls on a few questions, with one student and a paraphraser."""
    folder = tmp_path_factory.mktemp("controls")
    content = yaml.safe_load((ROOT / "configs/studies/microworld_controls.yaml").read_text())
    content["study"]["tasks"] = {"microworld": {"train": "microworld:train:24:0", "test": ["microworld:test:10:0"]}}
    content["study"] |= {"students": STUDENT, "seeds": 1}
    content["study"]["controls"] |= {
        "by_b": {"paraphraser": "b"},
        "shuffled_logits": {"supervision": "rationale+logits", "shuffled": True},
    }
    content["annotate"]["model"]["max_new_tokens"] = 48
    content["fit"]["trainer"]["max_epochs"] = 1
    with pytest.warns(UserWarning, match="all students are of the family a"):
        run_study(folder, content)
    return folder / "runs" / "microworld_controls"


def read_done(folder: Path, arm: str) -> dict:
    return json.loads((folder / f"a-{arm}-seed0" / "DONE").read_text())


def read_rationales(folder: Path, teacher: str, name: str = "microworld") -> list[dict]:
    return pq.read_table(folder / "teachers" / teacher / f"{name}.parquet").to_pylist()


def test_every_control_has_its_arms(folder):
    expected = {f"rationale-{teacher}-{control}" for teacher in "ab" for control in ONE_EACH}
    expected |= {"rationale-both_teachers", "rationale+logits-b-family_logits", "rationale+logits-a-shuffled_logits"}
    expected |= {"rationale+logits-both_logits"}
    expected |= {"untuned", "label", "rationale-a", "rationale-b", "rationale+logits-a"}
    found = {path.stem.removeprefix("a-").removesuffix("-seed0") for path in (folder / "predictions").glob("*.parquet")}
    assert found == expected
    assert (folder / "results.json").is_file()


def test_arms_learn_from_as_many_rationales_as_their_control_leaves(folder):
    right = {
        teacher: {record["question_id"] for record in read_rationales(folder, teacher) if record["correct"]}
        for teacher in "ab"
    }
    for teacher in "ab":
        plain = len(right[teacher])
        counts = {control: read_done(folder, f"rationale-{teacher}-{control}") for control in ONE_EACH}
        assert counts["solved_by_all"]["train_examples"] == len(right["a"] & right["b"])
        assert counts["all_answers"]["train_examples"] == 24
        assert counts["answer_first"]["train_examples"] == counts["answer_last"]["train_examples"] == plain
        assert plain - 1 <= counts["shuffled"]["train_examples"] <= plain
        assert counts["solved_by_all"]["num_left"]["rationales"] == 24
        assert counts["same_lengths"]["num_left"]["matched lengths"] == counts["same_lengths"]["train_examples"]
    together = read_done(folder, "rationale-both_teachers")
    assert together["train_examples"] == sum(map(len, right.values()))
    assert together["global_step"] <= read_done(folder, "rationale-a-all_answers")["global_step"]
    matched = [read_done(folder, f"rationale-{teacher}-same_lengths")["train_examples"] for teacher in "ab"]
    assert matched[0] == matched[1] > 0


def test_texts_are_whose_they_should_be(folder):
    configs = {
        arm: yaml.safe_load((folder / f"a-{arm}-seed0" / "config.yaml").read_text())["data"]
        for arm in (
            *("rationale+logits-b-family_logits", "rationale+logits-both_logits"),
            *("rationale-a-by_b", "rationale-a-shuffled"),
        )
    }
    mixed = configs["rationale+logits-both_logits"]
    assert mixed["controls"]["logit_weights"] == {"a-teacher": 1.0, "b-teacher": 1.0}
    assert mixed["alignment"]["kind"] == "strict"
    assert len(mixed["logits"]) == 4
    assert read_done(folder, "rationale+logits-both_logits")["alignment"]["strict"] > 0.5
    cross = configs["rationale+logits-b-family_logits"]
    assert (cross["filters"]["teachers"], cross["controls"]["logits_teacher"]) == (["b-teacher"], "a-teacher")
    assert configs["rationale-a-by_b"]["filters"]["teachers"] == ["a-teacher-by-b-teacher"]
    assert configs["rationale-a-shuffled"]["controls"]["shuffled"] is True
    rewritten = read_rationales(folder, "a", "microworld-by-b")
    assert {record["teacher"] for record in rewritten} == {"a-teacher-by-b-teacher"}
    answers = {record["question_id"]: record["answer"] for record in read_rationales(folder, "a")}
    assert all(record["answer"] for record in rewritten if answers[record["question_id"]])


def test_results_name_the_controls(folder):
    results = (folder / "results.json").read_text()
    assert all(control in results for control in [*ONE_EACH, "both_logits", "family_logits", "shuffled_logits"])
