"""Tests of jobs side by side: what the processes that run them hear."""

import signal
import time
from pathlib import Path

import pytest

from studies.jobs.execution import run_jobs
from studies.jobs.job import Job
from tests.halting.process import PATIENCE


def note_hearing(args: list[str]) -> None:
    """Writes whether this process hears Ctrl-C; where told to, it waits for another job's note."""
    note, *others = map(Path, args)
    is_deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    note.write_text("no" if is_deaf and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []) else "yes")
    until = time.monotonic() + PATIENCE
    while not all(other.exists() for other in others) and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_that_starts_late_does_not_hear_an_interrupt_either(tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    # The second needs a worker of its own, since the third waits for it.
    jobs = [
        Job("a", "fit", [first], first, []),
        Job("b", "fit", [third, second], third, ["a"]),
        Job("c", "fit", [second, third], second, ["a"]),
    ]
    hears = signal.getsignal(signal.SIGINT)
    run_jobs(jobs, tmp_path / "study", 2, {"fit": note_hearing})
    assert [Path(note).read_text() for note in (first, second, third)] == ["no"] * 3
    assert signal.getsignal(signal.SIGINT) == hears
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
