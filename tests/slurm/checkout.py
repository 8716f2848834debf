"""A user's clone of the repository on a cluster, from which jobs are submitted and watched."""

import re
import shutil
import sys
from pathlib import Path

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
ROOMS = ("configs", "datamodules", "lightning_modules", "losses", "scripts", "studies")
# What a site writes: its partition, and a launcher if tasks run in a container.
SITE = """\
export KINDRED_SITE=test SBATCH_PARTITION=low MASTER_ADDR=127.0.0.1 SLURM_WAIT=20 WANDB_MODE=disabled HF_HUB_OFFLINE=1
export SBATCH_SIGNAL=USR1@60
export PATH={bin}:$PATH KINDRED_MAX_RESTARTS=${{KINDRED_MAX_RESTARTS:-20}}
"""


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


def find_ids(output: str) -> dict[str, list[str]]:
    """Returns the arrays' ids by stage from what pipeline.sh and sweep.sh print."""
    found: dict[str, list[str]] = {}
    for identifier, stage in re.findall(r"^(\d+): \d+ x (\w+)", output, re.MULTILINE):
        found.setdefault(stage, []).append(identifier)
    return found
