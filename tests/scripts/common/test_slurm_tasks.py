"""Tests of how the trainer follows the tasks that SLURM started, and of what is refused."""

import pytest

from scripts.common.slurm_tasks import SlurmTasks, read_slurm_tasks

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "fit.sbatch",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NTASKS_PER_NODE": "4",
}


def test_outside_of_slurm_and_in_a_jobs_own_shell_the_trainer_is_left_alone() -> None:
    assert read_slurm_tasks({}) is None
    assert read_slurm_tasks({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    ("changed", "nodes", "per_node"),
    [
        ({}, 2, 4),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}, 1, 2),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, 1, 1),
    ],
)
def test_tasks_are_read_from_the_job_step(changed: dict, nodes: int, per_node: int) -> None:
    assert read_slurm_tasks({**STEP, **changed}) == SlurmTasks(nodes, per_node)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**STEP, "SLURM_JOB_NAME": "bash"}, "job is named 'bash', and its 8 tasks would each train alone; give it"),
        ({**STEP, "SLURM_JOB_NAME": "interactive"}, "give it another --job-name"),
        ({key: STEP[key] for key in STEP if key != "SLURM_NTASKS_PER_NODE"}, "--ntasks=8 alone; give --nodes and"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4,3"}, r"unequal numbers of tasks on the nodes \(4,3\); give"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, "8 tasks, but the command was started as none; use srun"),
    ],
)
def test_tasks_that_would_not_find_each_other_are_refused(environment: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_slurm_tasks(environment)


@pytest.mark.parametrize("devices", [1, 4, "4", "auto", -1, [0, 1, 2, 3], "0,1,2,3"])
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_what_is_left_at_its_default_or_agrees_follows(devices: int | str | list, num_nodes: int) -> None:
    assert SlurmTasks(2, 4).fit_trainer(devices, num_nodes) == {"devices": 4, "num_nodes": 2}


@pytest.mark.parametrize("devices", [2, "2", [0, 1], "0,1"])
def test_other_devices_are_refused_with_both_numbers(devices: int | str | list) -> None:
    with pytest.raises(
        ValueError, match=r"trainer.devices is 2, but SLURM started 4 tasks a node; set --ntasks-per-no"
    ):
        SlurmTasks(2, 4).fit_trainer(devices, 2)


def test_another_number_of_nodes_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"trainer.num_nodes is 3, but SLURM started tasks on 2; leave"):
        SlurmTasks(2, 4).fit_trainer(4, 3)
