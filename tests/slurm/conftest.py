"""A cluster that all tests of this folder share, and folders from which a user submits."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, find_missing, wait_for

ROOT = Path(__file__).parents[2]
ROOMS = ("configs", "datamodules", "lightning_modules", "losses", "scripts", "studies")
# What a site writes: its partition, and a launcher if tasks run in a container.
SITE = """\
export KINDRED_SITE=test SBATCH_PARTITION=low MASTER_ADDR=127.0.0.1 SLURM_WAIT=20 WANDB_MODE=disabled HF_HUB_OFFLINE=1
export PATH={bin}:$PATH KINDRED_MAX_RESTARTS=${{KINDRED_MAX_RESTARTS:-20}}
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of four CPUs and two fake GPUs each."""
    if missing := find_missing():
        pytest.skip(missing)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Checkout:
    """A user's clone, whose site.env describes the cluster: the repository's own files behind links.

    Args:
        folder: Where it is made.
        cluster: Where its jobs go.
    """

    def __init__(self, folder: Path, cluster: Cluster):
        self.folder, self.cluster = folder, cluster
        for room in ROOMS:
            (folder / room).symlink_to(ROOT / room)
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("*.log", "site.env"))
        self.site = folder / "slurm" / "site.env"
        self.site.write_text(SITE.format(bin=Path(sys.executable).parent))

    def shell(self, command: str) -> str:
        """Runs a command in a shell that has loaded site.env, as a user's has."""
        return self.cluster.run("bash", "-c", f"source slurm/site.env && {command}", cwd=self.folder)

    def submit(self, arguments: str) -> str:
        """Submits with `sbatch`; returns the job's id."""
        return self.shell(f"sbatch --parsable {arguments}").strip()

    def log(self, job: str) -> str:
        """Returns what a job, or a task of an array, has written so far."""
        [log] = [*self.folder.glob(f"slurm/logs/*-{job}.log"), *self.folder.glob(f"runs/*/logs/*-{job}.log")]
        return log.read_text()

    def finish(self, job: str, state: str = "COMPLETED") -> str:
        """Waits for a job's end, which must be the given one; returns its log."""
        ended = self.cluster.wait(job)
        assert ended == state, self.log(job)
        return self.log(job)

    def refuse(self, arguments: str) -> str:
        """Submits a job that must refuse its input in the first and only line of its log; returns the line."""
        [line] = [line for line in self.finish(self.submit(arguments), "FAILED").splitlines() if "srun: " not in line]
        assert line.startswith("error: ")
        return line


@pytest.fixture
def checkout(tmp_path: Path, cluster: Cluster) -> Checkout:
    """A clone for one test."""
    return Checkout(tmp_path, cluster)


# A launcher that stands before `python` in place of a container's, prints what the task was given, and starts nothing.
LAUNCHER = """\
#!/bin/bash
echo "task $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES $*"
{more}
"""


@pytest.fixture
def launcher(checkout: Checkout) -> Iterator:
    """Makes the checkout's tasks run a few lines of bash in place of Python, for what is the shell's part alone."""

    def use(more: str = "") -> None:
        path = checkout.folder / "launcher.sh"
        path.write_text(LAUNCHER.format(more=more))
        path.chmod(0o755)
        checkout.site.write_text(checkout.site.read_text() + "CONTAINER=(./launcher.sh)\n")

    return use  # type: ignore[return-value]


def find_ids(output: str) -> dict[str, list[str]]:
    """Returns the arrays' ids by stage from what pipeline.sh and sweep.sh print."""
    found: dict[str, list[str]] = {}
    for identifier, stage in re.findall(r"^(\d+): \d+ x (\w+)", output, re.MULTILINE):
        found.setdefault(stage, []).append(identifier)
    return found


__all__ = ["Checkout", "find_ids", "wait_for"]
