"""Folders of rounds that several test modules use."""

import shutil
from pathlib import Path

import pytest

from scripts import on_policy
from scripts.common.stages import MAINS
from tests.scripts.on_policy.small_rounds import run_rounds, write_config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the teacher's own text and its logits."""
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        plan = on_policy.parse(write_config())
        for job in plan.teach():
            MAINS[job.stage](job.args)
    return folder


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the rounds ran without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "rounds"
    shutil.copytree(teacher, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        run_rounds(write_config())
    return folder


@pytest.fixture
def inside(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(teacher, tmp_path / "rounds")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return folder
