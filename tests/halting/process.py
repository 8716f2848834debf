"""Waiting for another process, whatever keeps it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Seconds that nothing takes, however loaded the machine is: who waits longer waits for what hangs.
PATIENCE = 600


def wait_until(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    """Waits until the files are as wanted; fails if the process ends before."""
    until = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[None]:
    """Lets another process have a file locked meanwhile, as a job has its log."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        yield
        process.stdin.close()


def is_halted(process_id: int) -> bool:
    """Says whether a process has stopped in its tracks; one that has not ended."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def wait_until_halted(process: subprocess.Popen) -> None:
    """Waits until a process is where it was to halt; SIGCONT lets it go on."""
    wait_until(process, lambda: is_halted(process.pid))
