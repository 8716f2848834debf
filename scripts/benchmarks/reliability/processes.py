"""Stages in processes that are forked after everything is imported: a start costs milliseconds, not seconds."""

import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lightning_modules.run.stop_signal import StopListener
from scripts import study
from scripts.common.entry import run_main
from scripts.common.stages import MAINS

COMMANDS: dict[str, Callable[[list[str]], object]] = {**MAINS, "study": study.main}
# Seconds after which a process is taken to hang; the longest, a study, takes some ten.
_PATIENCE = 1800.0
# What libraries draw while they load and save.
_PROGRESS = re.compile(r"^(Loading weights|Writing model shards)|%\||, \S+ gone, ")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; negative for the signal that ended it.
        said: Its lines on stdout.
        complaints: Its lines on stderr, without progress bars.
        seconds: From its start.
    """

    code: int
    said: list[str]
    complaints: list[str]
    seconds: float

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.2f} s: {' | '.join(self.complaints[-3:])}"


class Stage:
    """A script's `main` in a process of its own.

    Args:
        name: The script.
        args: Its command line.
        folder: Its working directory.
        file_size: No file may grow beyond so many bytes, as on a full disk; None for no limit.
    """

    def __init__(self, name: str, args: list[str], folder: Path, file_size: int | None = None):
        self._start = time.monotonic()
        # Pipes, since the limit on files is also one on what the process would write its messages to.
        pipes = [os.pipe(), os.pipe()]
        self._id = os.fork()
        if self._id == 0:
            _become(name, args, folder, file_size, [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        self._texts = {read: bytearray() for read, _ in pipes}
        self._open = list(self._texts)

    def _read(self, seconds: float) -> None:
        for read in select.select(self._open, [], [], seconds)[0]:
            if content := os.read(read, 1 << 16):
                self._texts[read] += content
            else:
                self._open.remove(read)

    def wait_for(self, seconds: float) -> None:
        """Waits so long from its start, or until it has closed its output."""
        until = self._start + seconds
        while self._open and (left := until - time.monotonic()) > 0:
            self._read(left)

    def wait(self, kill_after: float = _PATIENCE) -> Ended:
        """Waits for its end; kills it (SIGKILL) after so many seconds from its start."""
        kill_at: float | None = self._start + kill_after
        while True:
            self._read(0.005)
            ended, status = os.waitpid(self._id, os.WNOHANG)
            if ended:
                break
            if kill_at is not None and time.monotonic() >= kill_at:
                os.kill(self._id, signal.SIGKILL)
                kill_at = None
        seconds = time.monotonic() - self._start
        # Workers that it leaves behind may keep the pipes open.
        while self._open and select.select(self._open, [], [], 0)[0]:
            self._read(0)
        said, complaints = (text.decode(errors="replace").splitlines() for text in self._texts.values())
        for read in self._texts:
            os.close(read)
        kept = [line for line in complaints if line.strip() and not _PROGRESS.search(line)]
        return Ended(os.waitstatus_to_exitcode(status), said, kept, seconds)


def _become(name: str, args: list[str], folder: Path, file_size: int | None, outputs: list[int]) -> NoReturn:
    """Makes the forked process that script's."""
    code = 1
    try:
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.chdir(folder)
        StopListener().listen()
        if file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        run_main(lambda: COMMANDS[name](args), study.__file__)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def run_whole(name: str, args: list[str], folder: Path) -> Ended:
    """Runs a stage that must succeed.

    Raises:
        RuntimeError: It did not.
    """
    ended = Stage(name, args, folder).wait()
    if ended.code != 0:
        raise RuntimeError(f"{name}: {ended}")
    return ended
