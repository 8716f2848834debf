"""Tests of the command that a stage names at its end: it is the next stage's, and does what was done here."""

import shlex
from pathlib import Path

import pytest
import yaml

from scripts.common.experiment_file import load_setting
from scripts.common.next_step import suggest

SECTIONS = {
    "cache_logits": {"model": {"teacher": "t"}, "data": {"questions": "q.jsonl", "rationales": ["r.parquet"]}},
    "fit": {"model": {"student": "s", "loss": {"kl_weight": 0.5}}},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "an experiment.yaml"
    path.write_text(yaml.safe_dump(SECTIONS))
    return str(path)


def test_what_the_section_says_is_left_out(config: str) -> None:
    settings = {"data.questions": "QUESTIONS", "data.rationales": ["r.parquet"]}
    command = suggest("cache_logits", ["--config", config], ["data.questions"], settings)
    assert shlex.split(command) == ["python", "-m", "scripts.cache_logits", f"--config={config}"]


def test_what_was_given_here_is_carried_on(config: str) -> None:
    args = [f"--config={config}", "--data.questions", "my questions.jsonl", "--data.limit=3", "--model.seed=1"]
    settings = {"data.questions": "QUESTIONS", "data.rationales": ["mine.parquet"]}
    command = suggest("cache_logits", args, ["data.questions", "data.limit"], settings)
    more = ["--data.questions=my questions.jsonl", "--data.limit=3", '--data.rationales=["mine.parquet"]']
    assert shlex.split(command) == ["python", "-m", "scripts.cache_logits", f"--config={config}", *more]


def test_a_file_of_any_name_is_read_by_the_next_stage(config: str) -> None:
    command = suggest("cache_logits", [f"--config={config}"], [], {"data.rationales": ["é 🙂'\".parquet"]})
    [option] = [arg for arg in shlex.split(command) if arg.startswith("--data.rationales=")]
    # YAML, unlike JSON, has no pairs of surrogates.
    assert load_setting(option.partition("=")[2]) == ["é 🙂'\".parquet"]


def test_what_the_stage_made_comes_before_what_was_given(config: str) -> None:
    args = ["--config", config, "--data.rationales=[old.parquet]"]
    command = suggest("fit", args, ["data."], {"data.rationales": ["new.parquet"], "model.loss.kl_weight": "KL_WEIGHT"})
    assert shlex.split(command)[3:] == [f"--config={config}", '--data.rationales=["new.parquet"]']


def test_without_a_section_everything_is_said_or_left_open(config: str) -> None:
    settings = {"data.questions": "QUESTIONS", "model.student": "$(touch x)"}
    for args in ([], ["--config", config]):
        command = suggest("evaluate", args, [], settings)
        expected = ["--data.questions=QUESTIONS", "--model.student=$(touch x)"]
        assert shlex.split(command) == ["python", "-m", "scripts.evaluate", *expected]
        assert "'--model.student=$(touch x)'" in command


@pytest.mark.parametrize("text", [None, "fit: [", "fit: {model: {student: $student}}\n"])
def test_a_file_that_changed_meanwhile_ends_no_stage(config: str, text: str | None) -> None:
    Path(config).unlink() if text is None else Path(config).write_text(text)
    command = suggest("fit", [f"--config={config}"], [], {"data.questions": "QUESTIONS"})
    assert shlex.split(command) == ["python", "-m", "scripts.fit", "--data.questions=QUESTIONS"]


def test_a_pair_is_named_again(tmp_path: Path) -> None:
    path = tmp_path / "pair.yaml"
    path.write_text("fit: {model: {student: $student}}\nevaluate: {model: {student: $student}}\n")
    command = suggest("evaluate", [f"--config={path}", "--student", "s"], [], {"model.student": "s"})
    assert shlex.split(command)[3:] == [f"--config={path}", "--student=s"]
