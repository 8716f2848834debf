"""Waiting for another process, whatever keeps it."""

import subprocess
import time
from collections.abc import Callable
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


def is_halted(process_id: int) -> bool:
    """Says whether a process has stopped in its tracks; one that has not ended."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def wait_until_halted(process: subprocess.Popen) -> None:
    """Waits until a process is where it was to halt; SIGCONT lets it go on."""
    wait_until(process, lambda: is_halted(process.pid))
