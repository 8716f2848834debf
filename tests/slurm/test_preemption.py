"""One fit on two nodes, ended in every way that a cluster knows, has the weights of a fit that nothing ended.

Where it is ended is decided by progress, not by time: its processes are stopped in their tracks (SIGSTOP) after some
steps, and go on when SLURM has done its part.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.slurm.checkout import Checkout
from tests.slurm.cluster import Cluster, find_step, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

EXPERIMENT = {
    "fit": {
        "model": {"student": "configs/models/microworld/a-student", "loss": {"kl_weight": 0.0}},
        "data": {
            "questions": "microworld:train:48:0",
            "supervision": "label",
            "prompt": "plain",
            "encoding": {"max_length": 512},
            "batches": {"tokens_per_batch": 1024},
        },
        "trainer": {"max_epochs": 25, "log_every_n_steps": 1},
        "run": {"group": "g", "checkpoint_steps": 4},
    }
}


def find_tasks(cluster: Cluster, job: str) -> list[int]:
    """Returns the processes that SLURM started as a job's tasks; their data loaders' workers are not among them."""
    tasks = [process for process in cluster.find_processes(f"SLURM_JOB_ID={job}") if find_step(process)]
    return [task for task in tasks if b"scripts.fit" in Path(f"/proc/{task}/cmdline").read_bytes()]


@contextlib.contextmanager
def frozen(cluster: Cluster, job: str) -> Iterator[list[int]]:
    """Stops a job's tasks, and lets those that are left go on."""
    tasks = find_tasks(cluster, job)
    for task in tasks:
        os.kill(task, signal.SIGSTOP)
    try:
        yield tasks
    finally:
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(task, signal.SIGCONT)


def was_sent(task: int, number: signal.Signals) -> bool:
    """Says whether a stopped process has been sent a signal; one that SLURM woke up may have ended by it already."""
    try:
        status = Path(f"/proc/{task}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def read_steps(run: Path) -> list[tuple[int, float]]:
    """Returns the steps and their training losses that a run has logged."""
    if not (run / "metrics.jsonl").is_file():
        return []
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    return [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]


class Fit:
    """A fit on two nodes of the cluster.

    Args:
        checkout: Where it is submitted.
        run_id: Of its run.
    """

    def __init__(self, checkout: Checkout, run_id: str):
        self.checkout, self.cluster = checkout, checkout.cluster
        self.run = checkout.folder / "runs" / "g" / run_id
        options = "--nodes=2 --time=60"
        self.job = checkout.submit(f"{options} slurm/fit.sbatch experiment.yaml --run.id={run_id}")
        self.restarts = 0

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[list[int]]:
        """Freezes it some steps further than it was; afterwards waits until it is back in the queue or beyond."""
        before = len(read_steps(self.run))
        wait_for(lambda: len(read_steps(self.run)) >= before + 3, f"steps of job {self.job}")
        with frozen(self.cluster, self.job) as tasks:
            assert len(tasks) == 2
            yield tasks
        wait_for(lambda: self.cluster.find_restarts(self.job) > self.restarts, f"a restart of {self.job}")
        self.restarts = self.cluster.find_restarts(self.job)


def end_by_time(fit: Fit, tasks: list[int]) -> None:
    """Lets the time limit come within two minutes, and waits for the signal that goes before it."""
    shown = fit.cluster.run("squeue", "--noheader", "--format=%M", f"--jobs={fit.job}").strip().split(":")
    fit.cluster.run("scontrol", "update", f"jobid={fit.job}", f"TimeLimit={int(shown[-2]) + 2}")
    wait_for(lambda: all(was_sent(task, signal.SIGUSR1) for task in tasks), "the time limit's signal")


def end_by_signal(fit: Fit, tasks: list[int], number: signal.Signals) -> None:
    """Sends a signal to each task."""
    fit.cluster.run("scancel", f"--signal={number.name.removeprefix('SIG')}", fit.job)
    wait_for(lambda: all(was_sent(task, number) for task in tasks), number.name)


def end_by_preemption(fit: Fit) -> str:
    """Submits a job of a higher partition that needs all nodes, and waits until the fit must go; returns its id."""
    command = "sbatch --parsable --partition=high --nodes=3 --exclusive --output=/dev/null --wrap true"
    high = fit.checkout.shell(command).strip()
    # SLURM wakes the tasks up before it ends them.
    wait_for(lambda: fit.cluster.find_restarts(fit.job) > fit.restarts, "the preemption")
    return high


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, Fit, Fit]:
    """An uninterrupted fit, and one that was ended six times."""
    checkout = Checkout(tmp_path_factory.mktemp("preemption"), cluster)
    (checkout.folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    whole = Fit(checkout, "whole")
    checkout.finish(whole.job)
    fit = Fit(checkout, "ended")
    wait_for(lambda: cluster.find_state(fit.job) == "RUNNING", "a start")
    with fit.interrupted() as tasks:
        end_by_time(fit, tasks)
    cluster.run("scontrol", "update", f"jobid={fit.job}", "TimeLimit=60")
    with fit.interrupted() as tasks:
        end_by_signal(fit, tasks, signal.SIGUSR1)
    with fit.interrupted() as tasks:
        end_by_signal(fit, tasks, signal.SIGTERM)
    with fit.interrupted():
        high = end_by_preemption(fit)
    assert cluster.wait(high) == "COMPLETED"
    with fit.interrupted():
        cluster.run("scontrol", "requeue", fit.job)
    with fit.interrupted():
        node = cluster.run("squeue", "--noheader", "--format=%B", f"--jobs={fit.job}").strip()
        cluster.kill_node(int(node.removeprefix("n")))
    cluster.start_node(int(node.removeprefix("n")))
    checkout.finish(fit.job)
    return checkout, whole, fit


def test_the_weights_are_the_same(runs):
    _, whole, fit = runs
    weights = "student/model.safetensors"
    assert (fit.run / weights).read_bytes() == (whole.run / weights).read_bytes()


def test_the_metrics_have_no_gap_and_no_repeat(runs):
    _, whole, fit = runs
    steps = read_steps(whole.run)
    assert [step for step, _ in steps] == [*range(len(steps))] and len(steps) > 40
    assert read_steps(fit.run) == steps


def test_status_counts_the_restarts(runs):
    checkout, _, fit = runs
    log = checkout.log(fit.job)
    assert fit.restarts == log.count("attempt ") - 1 == 6


def test_a_config_changed_between_attempts_is_refused(runs):
    checkout, _, _ = runs
    job = checkout.submit("slurm/fit.sbatch experiment.yaml --run.id=ended --model.learning_rate=0.5")
    log = checkout.finish(job, "FAILED")
    [line] = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "runs/g/ended" in line and "learning_rate" in line
