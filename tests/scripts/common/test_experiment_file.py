"""Tests of an experiment's file: a section for each stage, and generic files that any pair of models fills in."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import fit, on_policy, study
from scripts.common.experiment_file import find_section, name_pair, select_sections, split_args

GENERIC = """
annotate: {model: {teacher: $teacher}, output: "data/$pair/r.parquet"}
fit: {model: {student: $student, price: $students}, data: {rationales: ["data/$pair/r.parquet"]}}
"""
PAIR = ["--teacher=model:qwen2.5-7b-instruct", "--student=Qwen/Qwen2.5-0.5B"]


@pytest.fixture
def generic(tmp_path: Path) -> str:
    (tmp_path / "pair.yaml").write_text(GENERIC)
    return str(tmp_path / "pair.yaml")


def read(args: list[str], stage: str) -> dict:
    first, *rest = select_sections(args, stage)
    assert first.startswith("--config=") and not rest
    return json.loads(first.removeprefix("--config="))


def test_one_file_serves_any_pair_in_every_stage(generic: str) -> None:
    args = ["--config", generic, *PAIR]
    name = "qwen2.5-7b-instruct-to-Qwen2.5-0.5B"
    output = f"data/{name}/r.parquet"
    assert read(args, "annotate") == {"model": {"teacher": "model:qwen2.5-7b-instruct"}, "output": output}
    # Only whole words are names.
    student = {"student": "Qwen/Qwen2.5-0.5B", "price": "$students"}
    assert read(args, "fit") == {"model": student, "data": {"rationales": [output]}}


def test_a_file_may_name_its_pair_and_the_command_line_another(generic: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "mine.yaml"
    path.write_text("base: ../pair.yaml\nteacher: big\nstudent: small\n")
    assert read([f"--config={path}"], "annotate")["output"] == "data/big-to-small/r.parquet"
    assert read([f"--config={path}", "--student", "tiny"], "annotate")["output"] == "data/big-to-tiny/r.parquet"
    assert find_section([f"--config={path}"], "fit") == read([f"--config={path}"], "fit")
    assert find_section([f"--config={path}"], "evaluate") is None


def test_other_settings_stay_in_their_order_behind_the_file(generic: str) -> None:
    selected = select_sections(["--a=1", *PAIR, "--config", generic, "--b", "2"], "fit")
    assert selected[1:] == ["--a=1", "--b", "2"]


@pytest.mark.parametrize(("model", "name"), [
    ("../../etc/passwd", "passwd"), ("/models/My Model/", "My-Model"), ("owner/name", "name"), ("a$(b);c", "a-b-c"),
])  # fmt: skip
def test_names_of_pairs_are_names_of_files(model: str, name: str) -> None:
    assert name_pair({"teacher": model, "student": "s"}) == f"{name}-to-s"


def test_yaml_in_a_models_name_stays_text(generic: str) -> None:
    section = read(["--config", generic, "--teacher=x, output: y}", "--student=$teacher"], "annotate")
    assert section["model"] == {"teacher": "x, output: y}"}


@pytest.mark.parametrize(("args", "message"), [
    ([], r"pair\.yaml: is for any teacher and student: add --teacher=MODEL --student=MODEL, each a folder, "),
    (["--teacher=t"], r"pair\.yaml: is for any student: add --student=MODEL, "),
    (["--teacher=t", "--student= "], r"is for any student"),
])  # fmt: skip
def test_a_generic_file_without_its_pair_is_refused(generic: str, args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_sections(["--config", generic, *args], "fit")


def test_what_would_be_ignored_is_refused(generic: str, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("fit: {model: {student: s}}\n")
    with pytest.raises(ValueError, match=r"--student: .*plain\.yaml has no \$student, so that it would be ignored"):
        select_sections([f"--config={tmp_path}/plain.yaml", "--student=s"], "fit")
    (tmp_path / "more.yaml").write_text("base: pair.yaml\nteacher: t\nstudent: s\nfit: {}\n")
    with pytest.raises(ValueError, match=r"more\.yaml: has base, .* but not fit"):
        select_sections([f"--config={tmp_path}/more.yaml"], "fit")
    (tmp_path / "list.yaml").write_text("base: [pair.yaml]\n")
    with pytest.raises(ValueError, match=r"list\.yaml: base, teacher and student must each be a text"):
        select_sections([f"--config={tmp_path}/list.yaml"], "fit")


def test_a_study_has_one_file_and_its_pair() -> None:
    assert split_args(["--config", "f", "--seeds=2", "--student=s"]) == (["--config=f", "--student=s"], ["--seeds=2"])
    for args in ([], ["--config=a", "--config=b"], ["--student=s"]):
        with pytest.raises(ValueError, match="name exactly one study's file"):
            split_args(args)


@pytest.mark.parametrize("script", [on_policy, study, fit])
def test_a_section_that_is_no_mapping_is_refused_in_one_line(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("on_policy: {name: n}\nstudy: {name: s}\nfit: {}\ncache_logits: 3\n")
    commands = {on_policy: ["status"], study: ["status"], fit: []}
    with pytest.raises(ValueError, match=r"^[^\n]*x\.yaml: section cache_logits: expected a mapping$"):
        script.main([*commands[script], f"--config={path}"])
