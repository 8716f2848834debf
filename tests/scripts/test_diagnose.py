"""`study.py diagnose` of a study's file, with the results that its diagnostics predict, and of a file of its own."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from datamodules.rationales.store import write_rationales
from scripts import study as script
from studies.diagnostics.diagnosis import parse
from studies.diagnostics.sources import load_task
from tests.tiny import capture, make_questions, make_rationale, save_model, write_questions, write_store

FAMILIES = {"s": "f", "x": "g"}
SETTINGS = ["--num_questions=3", "--gradient_questions=0", "--own_tokens=4", "--num_resamples=20"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two students and four published teachers."""
    monkeypatch.chdir(tmp_path)
    questions = make_questions(5)
    write_questions(tmp_path / "colours_train.jsonl", questions)
    names = {"a": "model-a", "b": "model-b", "c": "model-c", "d": "model-d"}
    rationales = [
        make_rationale(item, name, sample=3 * number)
        for number, name in enumerate(names.values())
        for item in questions
    ]
    write_rationales(Path("r.parquet"), rationales, {})
    students = {name: {"model": save_model(tmp_path / name), "family": family} for name, family in FAMILIES.items()}
    study = {
        "name": "colours",
        "tasks": {"colours": {"train": "colours_train.jsonl", "test": ["colours_train.jsonl"]}},
        "students": students,
        "teachers": {
            key: {"family": "fg"[number % 2], "rationales": "r.parquet", "name": name}
            for number, (key, name) in enumerate(names.items())
        },
        "supervisions": ["rationale"],
    }
    data = {"questions": "colours_train.jsonl"}
    fit = {"model": {"student": "s"}, "data": {**data, "rationales": ["r.parquet"], "prompt": "plain"}}
    evaluate = {"model": {"student": "s"}, "data": {**data, "prompt": "direct"}, "output": "p.parquet"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": study, "fit": fit, "evaluate": evaluate}))
    return tmp_path


def test_a_studys_teachers_are_diagnosed_and_its_results_predicted(folder: Path, capsys: pytest.CaptureFixture) -> None:
    script.main(["diagnose", "--config=study.yaml", *SETTINGS])
    output = capsys.readouterr().out
    assert "colours, read by s" in output and "Spearman" not in output and "runs/colours/" in output
    content = json.loads((folder / "runs/colours/diagnostics.json").read_text())
    assert [(row["student"], row["teacher"], row["teacher_family"]) for row in content["rows"]] == [
        (student, teacher, "fg"[number % 2]) for student in "sx" for number, teacher in enumerate("abcd")
    ]
    plain = {"trained_on": "colours", "task": "colours", "supervision": "rationale", "control": None}
    cells = [
        {**plain, "student": student, "student_family": FAMILIES[student], "teacher": teacher,
         "teacher_family": "fg"[number % 2], "accuracy": 0.1 * number}
        for student, (number, teacher) in product("sx", enumerate("abcd"))
    ]  # fmt: skip
    specs = {
        "students": {name: {"parts": {}} for name in "sx"},
        "teachers": {name: {"parts": {}} for name in "abcd"},
    }
    (folder / "runs/colours/results.json").write_text(json.dumps({"cells": cells, "study": specs}))
    script.main(["diagnose", "--config=study.yaml", *SETTINGS])
    output = capsys.readouterr().out
    # Teachers write the longer, the better their students do.
    assert "| tokens | +1.00 |" in re.sub(" +", " ", output)
    content = json.loads((folder / "runs/colours/diagnostics.json").read_text())
    assert content["predictions"][0]["num_cells"] == 8


def test_a_studys_model_teachers_bring_their_tokenizer_and_their_cache(folder: Path) -> None:
    content = yaml.safe_load(Path("study.yaml").read_text())
    model = save_model(folder / "m", seed=5)
    content["study"]["teachers"] = {"m": {"family": "f", "model": "m"}, "a": content["study"]["teachers"]["a"]}
    content["study"]["supervisions"].append("rationale+logits")
    content["annotate"] = {"model": {"teacher": "m"}, "data": {"questions": "q"}, "output": "o.parquet"}
    content["cache_logits"] = {"model": {"teacher": "m"}, "data": {"questions": "q"}, "output": "o"}
    Path("study.yaml").write_text(yaml.safe_dump(content))
    own = Path("runs/colours/teachers/m/colours.parquet")
    # As an annotation leaves it that another scheduler ran.
    script.main(["jobs", "--config=study.yaml"])
    own.parent.mkdir(parents=True)
    write_store(own, [make_rationale(item, "m") for item in make_questions(5)], model)
    script.main(["diagnose", "--config=study.yaml", *SETTINGS])
    rows = json.loads(Path("runs/colours/diagnostics.json").read_text())["rows"]
    assert [(row["teacher"], row.get("vocabulary_overlap")) for row in rows if row["student"] == "s"] == [
        ("a", None), ("m", 1.0),
    ]  # fmt: skip
    assert not any("kl" in row for row in rows)
    capture(own.parent / "colours-logits", model, "colours_train.jsonl", [str(own)])
    script.main(["diagnose", "--config=study.yaml", *SETTINGS])
    rows = json.loads(Path("runs/colours/diagnostics.json").read_text())["rows"]
    assert {(row["student"], row["teacher"]) for row in rows if "kl" in row} == {("s", "m"), ("x", "m")}


def test_a_teacher_at_an_endpoint_is_diagnosed_without_its_tokenizer(folder: Path) -> None:
    content = yaml.safe_load(Path("study.yaml").read_text())
    content["study"]["teachers"] = {
        "g": {"family": "f", "model": "gpt-4o-mini"},
        "a": content["study"]["teachers"]["a"],
    }
    served = {"class_path": "OpenAIBackend"}
    content["annotate"] = {
        "model": {"teacher": "g", "backend": served},
        "data": {"questions": "q"},
        "output": "o.parquet",
    }
    Path("study.yaml").write_text(yaml.safe_dump(content))
    script.main(["jobs", "--config=study.yaml"])
    own = Path("runs/colours/teachers/g/colours.parquet")
    own.parent.mkdir(parents=True)
    write_rationales(own, [make_rationale(item, "gpt-4o-mini") for item in make_questions(5)], {})
    script.main(["diagnose", "--config=study.yaml", *SETTINGS])
    rows = json.loads(Path("runs/colours/diagnostics.json").read_text())["rows"]
    assert {row["teacher"] for row in rows} == {"g", "a"} and not any("vocabulary_overlap" in row for row in rows)


def test_a_file_may_list_its_own_teachers(folder: Path, capsys: pytest.CaptureFixture) -> None:
    content = {
        "name": "own",
        "prompt": "plain",
        "students": {"s": {"model": "s", "family": "f"}},
        "tasks": {
            "colours": {
                "questions": "colours_train.jsonl",
                "rationales": ["r.parquet"],
                "teachers": {"model-b": {"gold_conditioned": True}},
            }
        },
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    script.main(["diagnose", "--config", "own.yaml", *SETTINGS])
    assert "shown the gold answer; 3 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name exactly one study's file"),
        (["--config=study.yaml", "--num_question=3"], "num_question"),
        (["--config=study.yaml", "--num_questions=0"], "num_questions"),
    ],
)
def test_mistakes_are_refused(folder: Path, args: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        script.main(["diagnose", *args])
    assert not (folder / "runs").exists()


def test_the_published_config_is_complete(shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its teachers are in the files, and share questions, of which those with an empty rationale are left out."""
    diagnosis = parse([f"--config={Path(__file__).parents[2] / 'configs/studies/diagnose_published.yaml'}"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "published").symlink_to(shared_data)
    monkeypatch.chdir(tmp_path)
    numbers = {}
    for name, spec in diagnosis.tasks.items():
        with pytest.warns(UserWarning, match="were shown the gold answers"):
            data = load_task(name, spec, 10_000, 0)
        numbers[name] = (len(data.teachers), len(data.questions))
        assert "unknown" not in {source.family for source in data.teachers.values()}
    assert numbers == {"openbookqa": (12, 4915), "strategyqa": (12, 1277), "svamp": (15, 196)}
