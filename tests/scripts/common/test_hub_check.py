"""Tests of what the hub is asked before a stage imports what takes seconds: nothing listens at its place."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from datamodules.files.hub import is_reachable
from scripts.common.front import check_command
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
    check_command(stage, f"scripts/{stage}.py", [*(["run"] if stage == "study" else []), f"--config={config}", *more])


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "fit", "evaluate", "study"])
def test_a_model_that_cannot_be_had_is_named_at_once(stage: str) -> None:
    with pytest.raises(ValueError, match=f"^model {STUDENT} is not in .* hf download {STUDENT} ") as said:
        check(stage, HUB)
    assert "http://127.0.0.1:9 cannot be reached" in str(said.value) and "(its folder, or a" in str(said.value)


@pytest.mark.parametrize(
    ("stage", "options"),
    [("evaluate", ["--model.student", str(ROOT)]), ("study", [f"--students.smollm2.model={ROOT}"])],
)
def test_a_task_that_cannot_be_had_is_named_at_once(tmp_path: Path, stage: str, options: list[str]) -> None:
    command = r"\(task:openbookqa:\w+@FOLDER\), .*hf download allenai/openbookqa --repo-type dataset"
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
