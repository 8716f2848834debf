"""What a group's files and SLURM's queue say of its runs."""

import json

import pytest

from studies.jobs import run_status
from studies.jobs.run_status import count_restarts, describe_group, find_reason, read_progress
from studies.jobs.submission import QueuedJob


@pytest.mark.parametrize(
    "log, state, reason",
    [
        ("attempt 1: x\nerror: r.parquet: no such file\nsrun: error: n1: task 0: Exited with exit code 2\n",
         "failed", "error: r.parquet: no such file"),
        ("attempt 1: x\nTraceback (most recent call last):\n  File\nRuntimeError: boom\n[rank0]: noise\n",
         "failed", "RuntimeError: boom"),
        ("attempt 1: x\nerror: old\nattempt 2: x\nEpoch 1\rEpoch 2\rEpoch 3\n", "stopped", "Epoch 3"),
        ("attempt 1: x\nslurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 12 DUE TO TIME LIMIT ***\nEpoch 9\n",
         "stopped", "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 12 DUE TO TIME LIMIT ***"),
    ],
)  # fmt: skip
def test_the_reason_is_the_clearest_line_of_the_last_attempt(tmp_path, log, state, reason):
    (tmp_path / "log").write_text(log)
    assert find_reason(tmp_path / "log") == (state, reason)


def test_restarts_are_counted_in_the_log(tmp_path):
    (tmp_path / "log").write_text("attempt 1: x\nrequeued\nattempt 2: x\nrequeued\nattempt 3: x\n")
    assert count_restarts(tmp_path / "log") == 2 and count_restarts(tmp_path / "none") == 0


def test_progress_ends_at_the_last_whole_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 4, "train/loss": 2.0}\n{"step": 5, "val/loss": 1.5}\n{"step": 5, "x": 1}\n{"step": 6, "tra'
    )
    assert read_progress(tmp_path) == ("5", "val/loss 1.5")


def test_each_state_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "g"
    (folder / "logs").mkdir(parents=True)
    queue = {"7_0": QueuedJob("RUNNING", "None"), "7_1": QueuedJob("PENDING", "Priority")}
    queue["7_2"] = QueuedJob("PENDING", "BeginTime")
    monkeypatch.setattr(run_status, "read_queue", lambda: queue)
    submitted = {}
    logs = ["attempt 1: x\n", None, "attempt 1: x\nrequeued\n", "error: bad\n", "attempt 1: x\nEpoch 1\n", "x\n"]
    for index, log in enumerate(logs):
        path = folder / "logs" / f"{index}.log"
        if log is not None:
            path.write_text(log)
        done = str(folder / f"arm{index}" / "DONE")
        submitted[f"fit-arm{index}"] = {"job": f"7_{index}", "log": str(path), "done": done}
    (folder / "logs" / "2.log").write_text("attempt 1: x\nrequeued\nattempt 2: x\nrequeued\n")
    (folder / "arm5").mkdir()
    (folder / "arm5" / "DONE").write_text('{"ended_early": "after 2 of 9 steps: a callback stopped it"}')
    (folder / "local").mkdir()
    (folder / "local" / "meta.json").write_text("{}")
    (folder / "submitted.json").write_text(json.dumps(submitted))
    rows = {row["job"]: row for row in describe_group(folder)}
    states = {name.removeprefix("fit-"): row["state"] for name, row in rows.items()}
    assert states == {
        "arm0": "running", "arm1": "queued", "arm2": "preempted", "arm3": "failed", "arm4": "stopped", "arm5": "done",
        "local": "pending",
    }  # fmt: skip
    assert rows["fit-arm1"]["why"] == "Priority" and rows["fit-arm2"]["restarts"] == "1"
    assert rows["fit-arm5"]["why"] == "ended early, after 2 of 9 steps: a callback stopped it"


def test_an_unknown_group_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        describe_group(tmp_path / "nowhere")
