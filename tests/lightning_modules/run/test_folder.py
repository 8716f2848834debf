"""Tests of a run's folder: whose it is, and what is left in it."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from datamodules.files.atomic import write_jsonl
from lightning_modules.run.folder import RunFolder, RunSettings


def hold(settings: RunSettings, is_held: object) -> None:
    """Holds a run's folder, in a process with a worker of its own that outlives it."""
    with RunFolder(settings, {}).lock():
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(3,)).start()
        is_held.set()
        time.sleep(600)


def test_a_killed_process_leaves_its_folder_to_the_next_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    settings, is_held = RunSettings(root=str(tmp_path), id="run"), context.Event()
    process = context.Process(target=hold, args=(settings, is_held))
    process.start()
    assert is_held.wait(600)
    run = RunFolder(settings, {})
    with pytest.raises(ValueError, match=rf"another process trains this run \(process {process.pid} on "), run.lock():
        pass
    process.kill()
    process.join()
    with run.lock():
        pass


def test_an_error_before_the_first_step_leaves_nothing_and_the_lock_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, removed, unlink = RunFolder(RunSettings(root=str(tmp_path / "runs"), id="run"), {}), list[str](), os.unlink

    def note(path: Any, **options: Any) -> None:
        removed.append(Path(path).name)
        unlink(path, **options)

    with pytest.raises(KeyError), run.lock():
        run.begin("", {}, {}, "32-true", 0)
        (run.path / "wandb").mkdir()
        (run.path / "wandb" / "log").touch()
        monkeypatch.setattr(os, "unlink", note)
        raise KeyError
    assert sorted(removed[:-1]) == ["config.yaml", "log", "meta.json"] and removed[-1] == ".lock"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_another_process_has_ended_meanwhile_is_not_trained_again(tmp_path: Path) -> None:
    run = RunFolder(RunSettings(root=str(tmp_path), id="run"), {})
    with run.lock():
        run.begin("", {}, {}, "32-true", 0)
        write_jsonl(run.path / "metrics.jsonl", [{"step": 0, "train/loss": 1}])
        run.finish({})
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ValueError, match=r"run: another process has just written here; run the same command again"):
        run.lock().__enter__()
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before
