"""Every script's exit code: 0 done, 2 wrong input, 75 stopped and continues, 130 interrupted, 1 a bug."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.run.stop_signal import StopListener, leave
from scripts.common.entry import run_main
from tests.scripts.conftest import COMMANDS
from tests.scripts.pipeline import MAINS, ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if '"__main__"' in path.read_text())


def call(script: str, *args: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"scripts.{script}", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)


def stop_of(action) -> int:
    with pytest.raises(SystemExit) as stopped:
        run_main(action, str(ROOT / "scripts" / "fit.py"))
    return stopped.value.code


def fail() -> None:
    raise AttributeError("'NoneType' object has no attribute 'shape'")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_mistake_of_kindreds_own_shows_its_traceback_and_asks_for_a_report(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fit.py", "--run.id=a b"])
    assert stop_of(fail) == 1
    *trace, line = capsys.readouterr().err.splitlines()
    assert trace[0] == "Traceback (most recent call last):" and trace[-1].startswith("AttributeError: ")
    assert re.fullmatch(
        r"bug: this is a mistake of Kindred's own; please report it with the lines above, the command "
        r"`\S+scripts/fit\.py '--run\.id=a b'`, Python 3\S+, torch \S+, lightning \S+, transformers \S+",
        line,
    )


def test_a_gpu_without_enough_memory_is_a_line_and_2(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    def fill() -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 1.00 "
            "MiB is free. See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
        )

    monkeypatch.delenv("KINDRED_DEBUG", raising=False)
    assert stop_of(fill) == 2
    wanted = "error: CUDA out of memory. Tried to allocate 20.00 MiB; lower data.batches.tokens_per_batch, or see "
    assert capsys.readouterr().err == f"{wanted}docs/guides/your-models.md\n"


def test_a_wrong_input_is_a_line_and_2(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("x.jsonl:3:\n  is wrong")

    monkeypatch.delenv("KINDRED_DEBUG", raising=False)
    assert stop_of(refuse) == 2
    assert capsys.readouterr().err == "error: x.jsonl:3: is wrong\n"
    monkeypatch.setenv("KINDRED_DEBUG", "1")
    assert stop_of(refuse) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_stop_is_75_and_an_interrupt_130() -> None:
    assert StopListener().received is None
    assert stop_of(lambda: leave("here")) == 75
    assert stop_of(interrupt) == 130


def test_what_is_done_is_not_entered_again_by_what_is_wrong(bench) -> None:
    for stage, wrong in (
        ("annotate", "--model.max_new_tokens=5"),
        ("cache_logits", "--model.top_k=4"),
        ("fit", "--model.learning_rate=2e-3"),
        ("evaluate", "--model.max_new_tokens=5"),
    ):
        bench.run(stage)
        # Neither writes anything, nor ends with 0 or 75.
        bench.refuse(stage, wrong)
        bench.refuse(stage, "--data.questions=nowhere.jsonl")
        assert "already" in bench.run(stage)


@pytest.mark.parametrize("code", [75, *(pytest.param(code, marks=pytest.mark.slow) for code in (0, 1, 2))])
def test_a_job_ends_as_its_stage_does(tmp_path: Path, code: int) -> None:
    done = tmp_path / "done"
    jobs = [{"name": "a", "stage": "status", "args": [str(tmp_path)], "done": str(done), "needs": []}]
    (tmp_path / "jobs.jsonl").write_text(json.dumps(jobs[0]) + "\n")
    ends = {
        0: "return None",
        1: "raise AttributeError('x')",
        2: "raise ValueError('x')",
        75: "from lightning_modules.run.stop_signal import leave; leave('here')",
    }
    program = (
        "import runpy, sys\nfrom scripts.common import entry\nown = entry.run_main\n"
        f"def end():\n    {ends[code]}\n"
        "entry.run_main = lambda main, script: own(end, script)\n"
        f"sys.argv = ['job', {str(tmp_path / 'jobs.jsonl')!r}, '0']\n"
        "runpy.run_module('scripts.job', run_name='__main__', alter_sys=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert ended.returncode == code, ended.stderr


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1]", "is no job"),
        ('{"name": "a"}', "is no job"),
        ('{"name": "a", "stage": "fit", "args": [1], "done": "d", "needs": []}', "lists of texts"),
        ('{"name": "a", "stage": "fit", "args": [], "done": "d", "needs": ["b"]}', "none of the jobs"),
        ('{"name": "a", "stage": "../fit", "args": [], "done": "d", "needs": []}', "no script"),
        ('{"name": "a", "stage": "no.where", "args": [], "done": "d", "needs": []}', "no script"),
        (None, "cannot be read"),
    ],
)
def test_a_list_of_jobs_is_wrong(tmp_path: Path, content: str | None, named: str) -> None:
    if content is not None:
        (tmp_path / "jobs.jsonl").write_text(content)
    ended = call("job", "jobs.jsonl", "0", folder=tmp_path)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: jobs.jsonl") and named in line


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_ends_with_2_on_what_is_wrong(tmp_path: Path, script: str) -> None:
    ended = call(script, "--nonsense", folder=tmp_path)
    assert ended.returncode == 2, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if not line.startswith("warning:")]
    assert line.startswith("error: ")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_ends_with_0(tmp_path: Path, script: str) -> None:
    if script != "job":
        assert call(script, "--help", folder=tmp_path).returncode == 0


def test_every_stage_is_covered() -> None:
    assert set(COMMANDS) == set(MAINS) <= set(SCRIPTS)
