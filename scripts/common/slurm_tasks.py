"""The tasks that SLURM started, as the trainer's processes; what would hang or train apart is refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# In jobs of these names Lightning takes each task for a run of its own.
INTERACTIVE = ("bash", "interactive")


@dataclass(frozen=True)
class SlurmTasks:
    """The tasks of a job step.

    Attributes:
        nodes: Number of nodes.
        per_node: Tasks on each of them.
    """

    nodes: int
    per_node: int

    def fit_trainer(self, devices: int | str | list[int], num_nodes: int) -> dict[str, int]:
        """Returns the trainer's `devices` and `num_nodes`: one task for each device; what is left at 1 follows.

        Raises:
            ValueError: The trainer was told other numbers.
        """
        # "0,1" and "0," name devices as a list does.
        named = devices.strip(",").split(",") if isinstance(devices, str) and "," in devices else devices
        given = len(named) if isinstance(named, list) else named
        if str(given) not in ("1", "auto", "-1", str(self.per_node)):
            raise ValueError(
                f"trainer.devices is {given}, but SLURM started {self.per_node} tasks a node; "
                "set --ntasks-per-node to the number of devices, or leave trainer.devices"
            )
        if num_nodes not in (1, self.nodes):
            raise ValueError(
                f"trainer.num_nodes is {num_nodes}, but SLURM started tasks on {self.nodes}; leave trainer.num_nodes"
            )
        return {"devices": self.per_node, "num_nodes": self.nodes}


def read_slurm_tasks(environment: Mapping[str, str]) -> SlurmTasks | None:
    """Returns the tasks of the job step that this process belongs to, None if it belongs to none.

    Raises:
        ValueError: The tasks would not find each other.
    """
    if "SLURM_JOB_ID" not in environment:
        return None
    if "SLURM_STEP_ID" not in environment:
        tasks = int(environment.get("SLURM_NTASKS", "1"))
        if tasks > 1:
            raise ValueError(f"SLURM gave this job {tasks} tasks, but the command was started as none; use srun")
        return None
    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    if tasks > 1 and environment.get("SLURM_JOB_NAME") in INTERACTIVE:
        raise ValueError(
            f"the SLURM job is named {environment['SLURM_JOB_NAME']!r}, and its {tasks} tasks would each train alone; "
            "give it another --job-name"
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise ValueError(f"SLURM was given --ntasks={tasks} alone; give --nodes and --ntasks-per-node")
    layout = environment["SLURM_STEP_TASKS_PER_NODE"]
    if not (even := re.fullmatch(r"(\d+)(?:\(x\d+\))?", layout)):
        raise ValueError(f"SLURM started unequal numbers of tasks on the nodes ({layout}); give --ntasks-per-node")
    return SlurmTasks(int(environment["SLURM_STEP_NUM_NODES"]), int(even[1]))
