"""Tests of the lock that keeps two processes from writing one output."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.files.locks import hold, take
from tests.halting.process import is_halted, wait_until

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from datamodules.files.locks import hold
with hold(Path(sys.argv[1]), "out: another process writes it", wait=len(sys.argv) > 2):
    print("held", flush=True)
    input()
"""


def start(path: Path, *options: str, halt_at: str = "") -> subprocess.Popen:
    """Starts a process that holds a lock until it reads a line; see `tests.halting` for where it halts."""
    command = [sys.executable, "-c", HOLD, str(path), *options]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'halting'}:{ROOT}", "HALT_AT": halt_at}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def test_another_process_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".out.lock"
    holder = start(path)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    message = rf"out: another process writes it \(process {holder.pid} on .*\); wait for it, or end it"
    with pytest.raises(ValueError, match=message), hold(path, "out: another process writes it"):
        pass
    holder.kill()
    holder.communicate()
    with hold(path, "out: another process writes it"):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_and_the_folders_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "b" / ".out.lock", "out"):
        pass
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a" / ".out.lock", "out"):
        (tmp_path / "a" / "out").write_text("x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    with pytest.raises(KeyError), hold(tmp_path / ".lock", "out"):
        raise KeyError
    assert not (tmp_path / ".lock").exists()


def test_one_waits_for_the_other_and_then_makes_a_file_of_its_own(tmp_path: Path) -> None:
    holder = start(tmp_path / ".out.lock")
    assert holder.stdout and holder.stdout.readline() == "held\n"
    waiter = start(tmp_path / ".out.lock", "wait")
    time.sleep(0.3)
    assert waiter.poll() is None and waiter.stdout
    holder.communicate("\n")
    assert waiter.stdout.readline() == "held\n" and (tmp_path / ".out.lock").is_file()
    waiter.communicate("\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("halt_at", ["open:.out.lock:1", "fcntl.lockf::1"])
def test_one_that_comes_while_the_other_removes_its_folder_makes_its_own(tmp_path: Path, halt_at: str) -> None:
    path = tmp_path / "a" / "b" / ".out.lock"
    with hold(path, "out"):
        waiter = start(path, "wait", halt_at=halt_at)
        wait_until(waiter, lambda: is_halted(waiter.pid))
    assert list(tmp_path.iterdir()) == [] and waiter.stdout
    waiter.send_signal(signal.SIGCONT)
    assert waiter.stdout.readline() == "held\n" and path.is_file()
    waiter.communicate("\n")
    assert waiter.returncode == 0


def test_a_lock_that_another_process_has_made_since_stays(tmp_path: Path) -> None:
    path = tmp_path / ".out.lock"
    with hold(path, "out"):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with (tmp_path / "x").open("w") as file, pytest.warns(UserWarning, match="its file system has no locks"):
        assert take(file)


def test_a_full_disk_names_the_lock_and_leaves_none(tmp_path: Path, full_disk: Callable) -> None:
    path = tmp_path / "new" / ".out.lock"
    with (
        full_disk(0),
        pytest.raises(ValueError, match=r"\.out\.lock: cannot be written: File too large"),
        hold(path, "out"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
