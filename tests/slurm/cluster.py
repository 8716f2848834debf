"""A real SLURM on this machine: one controller and three nodes of two fake GPUs each, in a folder, on free ports.

No systemd, munge, cgroups or database: `auth/none`, `proctrack/linuxproc` and a log of ended jobs do for tests. It
needs root, since slurmd starts tasks as their user.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = (1, 2, 3)
CONFIG = """\
ClusterName=kindred
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/none
AuthInfo=cred_expire=10
CredType=cred/none
CryptoType=crypto/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmdTimeout=20
MessageTimeout=60
MinJobAge=86400
ReturnToService=2
MpiDefault=none
KillWait=20
JobRequeue=1
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
JobCompType=jobcomp/filetxt
JobCompLoc={root}/ended.log
{nodes}
PartitionName=low Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n[1-3] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def find_missing() -> str | None:
    """Says what a cluster here would lack, or None."""
    for tool in ("slurmctld", "slurmd", "sbatch", "shellcheck"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (on Debian: slurmctld, slurmd, slurm-client, shellcheck)"
    return None if os.geteuid() == 0 else "slurmd needs root to start tasks"


def free_ports(number: int) -> list[int]:
    """Returns ports that nobody listens on, below those that the system gives to who asks for any.

    A daemon that starts again needs the port that it had, which nobody may have been given meanwhile.
    """
    found: list[int] = []
    port = 10_000 + os.getpid() % 20_000
    while len(found) < number:
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            found.append(port)
        port += 1
    return found


def wait_for(condition: Callable[[], object], what: str, seconds: float = 900) -> None:
    """Waits until a condition holds; fails with what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.25)


class Cluster:
    """Starts and ends the daemons, and asks them about jobs.

    Args:
        root: Folder of its state and logs.
    """

    def __init__(self, root: Path):
        self.root, self.daemons = root, dict[str, subprocess.Popen]()
        host, (port, *node_ports) = socket.gethostname().split(".")[0], free_ports(1 + len(NODES))
        (root / "state").mkdir(parents=True)
        nodes = [
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} "
            "CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
            for number, node_port in zip(NODES, node_ports, strict=True)
        ]
        (root / "slurm.conf").write_text(CONFIG.format(host=host, port=port, root=root, nodes="\n".join(nodes)))
        for number in (0, 1):
            # SLURM takes character devices only; this one is /dev/null.
            os.mknod(root / f"gpu{number}", 0o600 | 0o020000, os.makedev(1, 3))
        (root / "gres.conf").write_text(f"NodeName=n[1-3] Name=gpu File={root}/gpu[0-1]\n")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.env["SLURM_CONF"] = str(root / "slurm.conf")

    def start(self) -> None:
        """Starts all daemons and waits until every node is idle."""
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for number in NODES:
            self.start_node(number)
        wait_for(lambda: self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() == "3", "idle nodes")

    def start_node(self, number: int) -> None:
        """Starts a node's daemon."""
        self._start(f"n{number}", "slurmd", "-D", "-N", f"n{number}")

    def kill_node(self, number: int) -> None:
        """Lets a node die, with all that runs on it."""
        daemon = self.daemons.pop(f"n{number}")
        daemon.kill()
        daemon.wait()
        tasks = self.find_processes(f"SLURMD_NODENAME=n{number}")
        # Those that watch over tasks go first, since they would report the tasks' ends.
        for process in [*{find_step(task) for task in tasks} - {None}, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def find_processes(self, *settings: str) -> list[int]:
        """Returns the processes of this cluster's jobs that have some `NAME=value` in their environment."""
        wanted, found = {setting.encode() for setting in (f"SLURM_CONF={self.env['SLURM_CONF']}", *settings)}, []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                        found.append(int(folder.name))
        return found

    def _start(self, name: str, *command: str) -> None:
        with (self.root / f"{name}.out").open("a") as output:
            self.daemons[name] = subprocess.Popen(
                command, env=self.env, stdout=output, stderr=output, start_new_session=True
            )

    def stop(self) -> None:
        """Cancels all jobs and ends the daemons."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
            self.run("scancel", "--user=root")
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not self.run("squeue", "-h"), "an empty queue", 20)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str, **options) -> str:
        """Runs a command on the login node; returns what it printed, and shows it when it fails."""
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=600, **options)
        if done.returncode:
            print(done.stdout, done.stderr)
        done.check_returncode()
        return done.stdout

    def find_state(self, job: str) -> str:
        """Returns a job's state; the controller forgets none."""
        shown = subprocess.run(
            ["scontrol", "show", "job", "-o", job], env=self.env, text=True, capture_output=True, timeout=600
        )
        found = re.search(r"JobState=(\w+)", shown.stdout)
        assert found, shown.stderr
        return found[1]

    def find_restarts(self, job: str) -> int:
        """Returns how often a job was requeued."""
        found = re.search(r"Restarts=(\d+)", self.run("scontrol", "show", "job", "-o", job))
        assert found
        return int(found[1])

    def wait(self, job: str, *states: str) -> str:
        """Waits until a job ended, or is in one of `states`; returns its state."""
        ends = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        wait_for(lambda: self.find_state(job) in ends, f"job {job} in {ends}")
        return self.find_state(job)


def find_step(process: int) -> int | None:
    """Returns the slurmstepd that started a process, None if another one did."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
        if Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd":
            return parent
    return None
