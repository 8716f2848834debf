"""A study of two training tasks: every arm learns one of them and answers the tests of its own and of the other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from datamodules.tasks.questions import load_questions
from tests.scripts.pipeline import ROOT, run_study
from tests.tiny import write_questions

pytestmark = pytest.mark.slow
TASKS = ("things", "tools")
FAMILIES = "ab"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a study of two tasks, made of the microworld's questions."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = {}
    for number, name in enumerate(TASKS):
        for split, count in (("train", 8), ("test", 6 + number)):
            items = load_questions(f"microworld:{split}:{count}:{number}")
            own = [replace(item, task=name, id=f"{name}-{item.id}") for item in items]
            write_questions(folder / f"{name}_{split}.jsonl", own)
        other = next(task for task in TASKS if task != name)
        tests = [f"{folder}/{task}_test.jsonl" for task in (name, other)]
        tasks[name] = {"train": f"{folder}/{name}_train.jsonl", "test": tests}
    content = yaml.safe_load((ROOT / "configs/experiments/microworld.yaml").read_text())
    content["study"] |= {"name": "tasks", "tasks": tasks, "supervisions": ["rationale"], "seeds": 1}
    content["annotate"]["model"]["max_new_tokens"] = content["evaluate"]["model"]["max_new_tokens"] = 48
    content["fit"]["trainer"]["max_epochs"] = 1
    content["fit"]["data"]["filters"] = {"correct_only": False}
    run_study(folder, content)
    return folder / "runs" / "tasks"


def test_every_task_has_its_arms_and_the_untuned_students_are_asked_once(folder):
    expected = {f"{student}-untuned-seed0" for student in FAMILIES}
    expected |= {f"{s}-{task}-rationale-{t}-seed0" for s in FAMILIES for t in FAMILIES for task in TASKS}
    assert {path.stem for path in (folder / "predictions").glob("*.parquet")} == expected


def test_an_arm_learns_its_own_task_and_answers_both(folder):
    for path in (folder / "predictions").glob("*.parquet"):
        assert {record["task"] for record in pq.read_table(path).to_pylist()} == set(TASKS)
    for student in FAMILIES:
        for task in TASKS:
            data = yaml.safe_load((folder / f"{student}-{task}-rationale-a-seed0" / "config.yaml").read_text())["data"]
            assert Path(data["questions"]).name == f"{task}_train.jsonl"
            assert [Path(name).parts[-2:] for name in data["rationales"]] == [("a", f"{task}.parquet")]


def test_estimates_are_of_one_pair_of_training_and_test_task_each(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results["num_questions"] == {"things": 6, "tools": 7}
    right = {}
    for path in (folder / "predictions").glob("*.parquet"):
        for task in TASKS:
            own = [record for record in pq.read_table(path).to_pylist() if record["task"] == task]
            right[path.stem, task] = np.mean([record["correct_neutral"] for record in own])
    for cell in results["cells"]:
        trained_on = f"{cell['trained_on']}-" if cell["trained_on"] else ""
        arm = f"{cell['student']}-{trained_on}{cell['condition']}-seed0"
        assert cell["accuracy"] == pytest.approx(right[arm, cell["task"]])
    gammas = {(row["trained_on"], row["task"]): row["estimate"] for row in results["gamma"]}
    assert set(gammas) == {(trained_on, task) for trained_on in TASKS for task in TASKS}
    for (trained_on, task), gamma in gammas.items():
        a_ST = [[right[f"{s}-{trained_on}-rationale-{t}-seed0", task] for t in FAMILIES] for s in FAMILIES]
        assert gamma == pytest.approx((a_ST[0][0] + a_ST[1][1] - a_ST[0][1] - a_ST[1][0]) / 2)


def test_table_and_page_name_every_pair(folder):
    for name in ("table.md", "report.html"):
        text = (folder / name).read_text()
        for trained_on in TASKS:
            for task in TASKS:
                assert f"rained on {trained_on}" in text and task in text
    titles = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("Trained on ")]
    numbers = {"things": 6, "tools": 7}
    assert set(titles) == {f"Trained on {one}, {numbers[two]} questions of {two}:" for one in TASKS for two in TASKS}
