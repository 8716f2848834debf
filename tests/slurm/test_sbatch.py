"""The shell's part of the sbatch files: what is refused, how many tasks start and what they see, what is requeued."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import wait_for

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
SBATCH = sorted((ROOT / "slurm").glob("*.sbatch"))
CONFIG = "configs/experiments/microworld.yaml"


@pytest.mark.parametrize("path", [*SBATCH, *sorted((ROOT / "slurm").glob("*.sh"))], ids=lambda path: path.name)
def test_scripts_are_clean(path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "--external-sources", path], check=True, cwd=ROOT)
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.name)
def test_sbatch_accepts(checkout, path):
    checkout.shell(f"sbatch --test-only --nodes=2 slurm/{path.name} {CONFIG}")


def test_example_of_a_site_sets_what_the_scripts_read(checkout):
    shutil.copy(ROOT / "slurm" / "site.env.example", checkout.site)
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    (checkout.folder / ".venv" / "bin" / "activate").touch()
    used = set(re.findall(r"\bKINDRED_[A-Z_]+|\bCONTAINER\b", (ROOT / "slurm" / "common.sh").read_text()))
    example = checkout.site.read_text()
    assert {name for name in used if name not in example} == set()
    shown = checkout.shell("env")
    assert "SBATCH_PARTITION=gpu" in shown and "KINDRED_SITE=my-cluster" in shown


def test_a_user_errors_first_line_says_what_to_do(checkout, launcher):
    launcher()
    fit = f"slurm/fit.sbatch {CONFIG}"
    assert "--nodes and --ntasks-per-node" in checkout.refuse(f"--ntasks=4 {fit}")
    line = checkout.refuse(f"--gres=gpu:2 --ntasks-per-node=1 {fit}")
    assert "--ntasks-per-node=1, but 2 GPUs" in line
    assert "2 tasks on a node, but 1 CPUs" in checkout.refuse(f"--gres=gpu:2 {fit}")
    assert "no file CONFIG='nowhere.yaml'" in checkout.refuse("slurm/fit.sbatch nowhere.yaml")
    assert "a time limit of 60 s, of which the last 60 s are for saving" in checkout.refuse(f"--time=1 {fit}")
    (checkout.folder / "jobs.jsonl").touch()
    assert "--array=" in checkout.refuse("slurm/fit.sbatch jobs.jsonl")
    job = checkout.cluster.run("sbatch", "--parsable", "slurm/fit.sbatch", CONFIG, cwd=checkout.folder).strip()
    assert "site.env was not loaded" in checkout.finish(job, "FAILED")
    hidden = checkout.site.rename(checkout.folder / "site.env")
    command = f"source {hidden.name} && sbatch --parsable {fit}"
    job = checkout.cluster.run("bash", "-c", command, cwd=checkout.folder).strip()
    assert "copy slurm/site.env.example" in checkout.finish(job, "FAILED")


def test_submitting_elsewhere_is_refused(checkout, tmp_path):
    command = f"source slurm/site.env && cd scripts && sbatch --parsable --output={tmp_path}/elsewhere.log"
    job = checkout.cluster.run("bash", "-c", f"{command} ../slurm/fit.sbatch x", cwd=checkout.folder).strip()
    assert checkout.cluster.wait(job) == "FAILED"
    assert "error: submit from the repository's root" in (tmp_path / "elsewhere.log").read_text()


def test_an_unknown_partition_is_refused_before_the_queue(checkout):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        checkout.submit(f"--partition=nowhere slurm/fit.sbatch {CONFIG}")
    assert "invalid partition specified: nowhere" in refused.value.stderr


@pytest.mark.parametrize("script", ["pipeline.sh", "sweep.sh"])
def test_submitting_nothing_or_without_a_site_is_one_line(checkout, script):
    for prepare, line in [("true", "error: usage: slurm/"), ("rm slurm/site.env", "error: slurm/site.env is missing")]:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            checkout.cluster.run("bash", "-c", f"{prepare} && slurm/{script} nowhere.yaml", cwd=checkout.folder)
        [shown] = refused.value.stderr.splitlines()
        assert shown.startswith(line) and refused.value.returncode == 2


def read_tasks(log: str) -> list[tuple[int, str, str]]:
    """Returns (rank, node, visible devices) of each task that the launcher saw."""
    found = re.findall(r"^task (\d+) of \d+ on (\w+): CUDA_VISIBLE_DEVICES=(\S*)", log, re.MULTILINE)
    return sorted((int(rank), node, devices) for rank, node, devices in found)


@pytest.mark.parametrize(
    "options", ["--gres=gpu:2 --cpus-per-gpu=1", "--gpus-per-node=2 --cpus-per-gpu=2", "--gres=gpu:2 --cpus-per-task=2"]
)
def test_each_gpu_gets_a_task_that_sees_its_nodes_gpus(checkout, launcher, options):
    launcher()
    log = checkout.finish(checkout.submit(f"--nodes=2 {options} slurm/fit.sbatch {CONFIG} --model.x=1"))
    tasks = read_tasks(log)
    assert [rank for rank, _, _ in tasks] == [0, 1, 2, 3]
    assert [tasks[0][1], tasks[2][1]] == [tasks[1][1], tasks[3][1]] and tasks[0][1] != tasks[2][1]
    assert {devices for _, _, devices in tasks} == {"0,1"}
    assert f"python -u -m scripts.fit --config {CONFIG} --model.x=1" in log


def test_a_teachers_engine_may_have_all_gpus_in_one_task(checkout, launcher):
    launcher()
    options = "--gres=gpu:2 --ntasks-per-node=1 --cpus-per-task=2"
    log = checkout.finish(checkout.submit(f"{options} slurm/annotate.sbatch {CONFIG}"))
    assert [(rank, devices) for rank, _, devices in read_tasks(log)] == [(0, "0,1")]


def test_a_nodes_gpus_are_divided_among_engines(checkout, launcher):
    launcher('echo "cpus $SLURM_CPUS_PER_TASK tres ${SLURM_TRES_PER_TASK:-none}"')
    options = "--nodes=2 --gres=gpu:2 --cpus-per-gpu=2"
    for stage in ("annotate", "cache_logits"):
        one = checkout.finish(checkout.submit(f"{options} --ntasks-per-node=1 slurm/{stage}.sbatch {CONFIG}"))
        assert [rank for rank, _, _ in read_tasks(one)] == [0, 1]
        # A task is told of its processors, all of its node's here.
        assert one.count("cpus 4 tres none") == 2
        line = checkout.refuse(f"{options} --ntasks-per-node=3 slurm/{stage}.sbatch {CONFIG}")
        assert "--ntasks-per-node=3 does not divide the 2 GPUs" in line
    both = checkout.finish(checkout.submit(f"{options} slurm/cache_logits.sbatch {CONFIG}"))
    assert [rank for rank, _, _ in read_tasks(both)] == [0, 1, 2, 3] and both.count("cpus 2 tres none") == 4


def test_without_gpus_there_are_as_many_tasks_as_said(checkout, launcher):
    launcher()
    log = checkout.finish(checkout.submit(f"--nodes=3 --ntasks-per-node=2 slurm/evaluate.sbatch {CONFIG}"))
    assert [rank for rank, _, _ in read_tasks(log)] == [*range(6)]
    log = checkout.finish(checkout.submit(f"--nodes=2 slurm/report.sbatch {CONFIG}"))
    assert [rank for rank, _, _ in read_tasks(log)] == [0]


def test_exit_75_sends_the_one_task_of_an_array_back(checkout, launcher):
    launcher("[[ -n $SLURM_RESTART_COUNT || $SLURM_ARRAY_TASK_ID == 0 ]] || exit 75")
    (checkout.folder / "jobs.jsonl").touch()
    job = checkout.submit("--array=0-2 --output=slurm/logs/%x-%A_%a.log slurm/fit.sbatch jobs.jsonl")
    logs = [checkout.finish(f"{job}_{task}") for task in range(3)]
    assert [log.count("attempt ") for log in logs] == [1, 2, 2]
    assert [checkout.cluster.find_restarts(f"{job}_{task}") for task in range(3)] == [0, 1, 1]


def test_restarts_are_bounded(checkout, launcher):
    launcher("exit 75")
    log = checkout.finish(checkout.submit(f"--export=ALL,KINDRED_MAX_RESTARTS=1 slurm/fit.sbatch {CONFIG}"), "FAILED")
    assert log.count("attempt ") == 2 and "error: stopped after 1 restarts" in log


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_not_tried_again(checkout, launcher, code):
    launcher(f"exit {code}")
    log = checkout.finish(checkout.submit(f"slurm/fit.sbatch {CONFIG}"), "FAILED")
    assert log.count("attempt ") == 1


def test_a_cancelled_job_stays_cancelled(checkout, launcher):
    launcher('trap "exit 75" TERM; touch started; while true; do sleep 0.2; done')
    job = checkout.submit(f"slurm/fit.sbatch {CONFIG}")
    wait_for((checkout.folder / "started").exists, "the task's start")
    checkout.cluster.run("scancel", job)
    wait_for(lambda: "ended by SLURM" in checkout.log(job), "the last line")
    assert checkout.cluster.find_state(job) == "CANCELLED"


def test_a_signal_before_python_listens_only_delays(checkout, launcher):
    launcher("[[ -n $SLURM_RESTART_COUNT ]] || { touch started; exec sleep 600; }")
    job = checkout.submit(f"slurm/fit.sbatch {CONFIG}")
    wait_for((checkout.folder / "started").exists, "the task's start")
    checkout.cluster.run("scancel", "--signal=USR1", job)
    assert checkout.finish(job).count("attempt ") == 2
