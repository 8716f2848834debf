"""Tests of what the hub is asked before a stage imports what takes seconds: nothing listens at its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from datamodules.files.hub import is_reachable
from scripts.common.front import GROUP_COMMANDS, check_command
from tests.scripts.pipeline import ROOT

OWN = ROOT / "configs" / "experiments" / "microworld.yaml"
HUB = ROOT / "configs" / "experiments" / "obqa_smollm2.yaml"
STUDENT = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    is_reachable.cache_clear()
    yield
    is_reachable.cache_clear()


def check(stage: str, config: Path, *more: str) -> None:
    command = ["run"] if stage in GROUP_COMMANDS else []
    check_command(stage, f"scripts/{stage}.py", [*command, f"--config={config}", *more])


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "fit", "evaluate", "study"])
def test_a_model_that_cannot_be_had_is_named_at_once(stage: str) -> None:
    with pytest.raises(ValueError, match=f"^model {STUDENT} is not in .* hf download {STUDENT} ") as said:
        check(stage, HUB)
    assert "http://127.0.0.1:9 cannot be reached" in str(said.value) and "(its folder, or a" in str(said.value)
    assert str(said.value).endswith(f"names: python -m scripts.prefetch --config={HUB}")


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("evaluate", ["--model.student", str(ROOT)]),
        ("study", [f"--students.smollm2.model={ROOT}", f"--teachers.smollm2.model={ROOT}"]),
    ],
)
def test_a_task_that_cannot_be_had_is_named_at_once(tmp_path: Path, stage: str, options: list[str]) -> None:
    command = r"\(task:openbookqa:\w+@FOLDER\), .*hf download allenai/openbookqa --repo-type dataset.*scripts\.prefetch"
    with pytest.raises(ValueError, match=command):
        check(stage, HUB, *options)
    # What one of its caches has may be enough.
    (tmp_path / "datasets" / "allenai___openbookqa").mkdir(parents=True)
    check(stage, HUB, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--model.student=model.gguf"],
        ['--model={"student": "owner/name"}'],
        ["--model.student=owner/name", "--output=there.parquet"],
        ["--model.student=owner/name", "--print_config"],
        ["--model.student=owner/cached"],
    ],
    ids=lambda options: options[-1],
)
def test_what_may_need_no_hub_is_left_to_the_stage(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "there.parquet").touch()
    snapshot = tmp_path / "hub" / "models--owner--cached" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub" / "models--owner--cached" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--cached" / "refs" / "main").write_text("0" * 40)
    check("evaluate", OWN, *options)


def test_a_pairs_models_are_in_the_command_that_fetches_all_and_without_a_config_there_is_none() -> None:
    generic, pair = ROOT / "configs" / "experiments" / "pair.yaml", ["--teacher=owner/one", "--student=owner/two"]
    with pytest.raises(ValueError, match=r"^model owner/two is not .*prefetch --config=\S+ --teacher=owner/one --st"):
        check("fit", generic, *pair)
    with pytest.raises(ValueError, match=r"^model owner/two is not in ") as said:
        check_command(
            "evaluate", "evaluate.py", ["--model.student=owner/two", "--data.questions=x", "--output=y.parquet"]
        )
    assert "prefetch" not in str(said.value)
    with pytest.raises(ValueError) as said:
        check("evaluate", OWN, "--model.student=x.gguf", "--data.questions=task:nonsense:test")
    assert "nonsense" in str(said.value) and "prefetch" not in str(said.value)


def test_a_served_teacher_is_not_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^model owner/name is not"):
        check("annotate", OWN, "--model.teacher=owner/name", "--output=o.parquet")
    check("annotate", OWN, "--model.teacher=owner/name", "--output=o.parquet", "--model.backend=OpenAIBackend")


def test_a_studys_tasks_are_asked_for_in_its_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("datamodules.tasks.benchmarks.require_source", asked.append)
    monkeypatch.setattr("datamodules.model_sources.is_out_of_reach", lambda *model: False)
    check("study", ROOT / "configs" / "studies" / "msvamp_languages.yaml")
    tags = {"msvamp": ["de", "sw", "th", "en"], "mgsm": ["de", "sw", "th"]}
    assert asked == [f"task:{task}:test:{tag}" for task in tags for tag in tags[task]]


@pytest.mark.parametrize(
    ("begun", "options", "asks"),
    [
        (None, [], True),
        ("obqa_smollm2/other", [], True),
        ("obqa_smollm2/other", ["--run.id=own"], True),
        ("obqa_smollm2/own", ["--run.id=own"], False),
        ("obqa_smollm2/by-hash", [], False),
    ],
)
def test_a_fit_is_let_be_by_its_own_run_alone(
    tmp_path: Path, begun: str | None, options: list[str], asks: bool
) -> None:
    if begun is not None:
        run = tmp_path / "runs" / begun
        run.mkdir(parents=True)
        student = STUDENT if run.name == "by-hash" else "another"
        meta = {"config_hash": "0", "config": {"model": {"student": student}}}
        (run / "meta.json").write_text(json.dumps(meta))
    if not asks:
        check("fit", HUB, *options)
        return
    with pytest.raises(ValueError, match=f"^model {STUDENT} is not in "):
        check("fit", HUB, *options)


def test_a_studys_teachers_are_asked_for_unless_a_backend_stands_for_them(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "study": {
            "name": "n",
            "tasks": {"t": {"train": "t.jsonl", "test": ["t.jsonl"]}},
            "students": {"s": {"model": str(tmp_path)}},
            "teachers": {"own": {"rationales": "r.jsonl", "name": "r"}, "t": {"model": "owner/teacher"}},
            "supervisions": ["rationale"],
        }
    }
    config = tmp_path / "study.yaml"
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^model owner/teacher is not in "):
        check("study", config)
    content["study"]["teachers"]["t"]["annotate"] = ["--model.backend=OpenAIBackend"]
    config.write_text(json.dumps(content))
    check("study", config)


@pytest.mark.parametrize(
    ("rounds", "missing"),
    [
        ({}, ["owner/student", "owner/reader", "owner/writer"]),
        ({"start": "runs/other/done"}, ["owner/reader", "owner/writer"]),
        ({"teacher": "self", "teacher_prompt": "with_gold"}, ["owner/student", "owner/writer", "owner/reader"]),
        ({"teacher": "self", "teacher_prompt": "with_gold", "mix": 0}, ["owner/student"]),
        ({"teachers": {"owner/one": 1, "owner/two": 2}, "mix": 0}, ["owner/student", "owner/one", "owner/two"]),
        ({"mix": 0}, ["owner/student", "owner/reader"]),
        ({"mix": 0, "teachers": {}}, ["owner/student", "owner/reader"]),
    ],
    ids=str,
)
def test_who_writes_and_who_reads_in_rounds_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: dict[str, Any], missing: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("datamodules.model_sources.is_out_of_reach", lambda model, revision: asked.append(model))
    content = {
        "on_policy": {"name": "n", "rounds": 2, "questions": 4, **rounds},
        "annotate": {"model": {"teacher": "owner/writer"}, "output": "texts.parquet"},
        "cache_logits": {"model": {"teacher": "owner/reader"}, "output": "texts-logits"},
        "fit": {
            "model": {"student": "owner/student"},
            "data": {"questions": "q.jsonl", "rationales": ["texts.parquet"], "logits": ["texts-logits"]},
        },
        "evaluate": {"data": {"questions": "task:openbookqa:test"}},
    }
    config = tmp_path / "rounds.yaml"
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"\(task:openbookqa:\w+@FOLDER\)"):
        check("on_policy", config)
    assert set(asked) == set(missing)


def test_readers_that_an_option_names_are_left_to_the_rounds(tmp_path: Path) -> None:
    content = {
        "on_policy": {"name": "n", "rounds": 2, "questions": 4, "mix": 0},
        "cache_logits": {"model": {"teacher": "owner/reader"}},
        "fit": {"model": {"student": str(tmp_path)}},
    }
    (tmp_path / "rounds.yaml").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^model owner/reader is not in "):
        check("on_policy", tmp_path / "rounds.yaml")
    check("on_policy", tmp_path / "rounds.yaml", "--teachers={one: 1, two: 1}")


def test_rounds_that_have_begun_are_left_to_themselves(tmp_path: Path) -> None:
    content = {"on_policy": {"name": "n", "rounds": 2, "questions": 4}, "fit": {"model": {"student": "owner/student"}}}
    (tmp_path / "rounds.yaml").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^model owner/student is not in "):
        check("on_policy", tmp_path / "rounds.yaml")
    (tmp_path / "runs" / "n").mkdir(parents=True)
    check("on_policy", tmp_path / "rounds.yaml")
