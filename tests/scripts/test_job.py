"""One job of a list: its own command is run, and what it needs is looked for first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_job(folder: Path, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "job.py", *args]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)


@pytest.fixture
def jobs(tmp_path):
    """A list whose second job needs the first, and prints the tasks."""
    first = {"name": "first", "stage": "fit", "args": [], "done": "runs/first/DONE", "needs": []}
    second = {"name": "second", "stage": "status", "args": ["runs"], "done": "second", "needs": ["first"]}
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in (first, second)))
    return tmp_path


def test_a_job_is_its_own_command(jobs):
    (jobs / "runs" / "first").mkdir(parents=True)
    (jobs / "runs" / "first" / "DONE").touch()
    done = run_job(jobs, "jobs.jsonl", "1")
    assert done.returncode == 0 and done.stdout == "runs: no runs\n\n", done.stderr


@pytest.mark.parametrize("is_done", [True, False])
def test_checkpoints_that_no_job_needs_any_more_go_with_whichever_job_ends(jobs, is_done):
    third = {"name": "third", "stage": "fit", "args": ["--run.continues=runs/first"], "needs": ["first"]}
    with (jobs / "jobs.jsonl").open("a") as file:
        file.write(json.dumps(third | {"done": "runs/third/DONE"}) + "\n")
    (jobs / "runs" / "first" / "checkpoints").mkdir(parents=True)
    (jobs / "runs" / "third").mkdir()
    for run in ("first", "third") if is_done else ("first",):
        (jobs / "runs" / run / "DONE").touch()
    done = run_job(jobs, "jobs.jsonl", "1")
    assert done.returncode == 0, done.stderr
    assert (jobs / "runs" / "first" / "checkpoints").exists() == (not is_done)


@pytest.mark.parametrize(
    "args, line",
    [
        (["jobs.jsonl", "1"], "error: second needs first, which is not finished: there is no runs/first/DONE\n"),
        (["jobs.jsonl", "2"], "error: jobs.jsonl has 2 jobs, counted from 0; there is no 2\n"),
        (["jobs.jsonl", "x"], "error: usage: python -m scripts.job JOBS.jsonl LINE [overrides]\n"),
    ],
)
def test_what_cannot_run_is_refused_at_once(jobs, args, line):
    refused = run_job(jobs, *args)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", line)
