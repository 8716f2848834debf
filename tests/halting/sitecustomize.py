"""Stops a process in its tracks (SIGSTOP) at the event that HALT_AT names: put this folder on the path.

A test that waits for what another process writes, and then does something to it, does not know how far that one is by
then: it may have ended. One that halts is where it was told to, or before, however long the test takes to look.
"""

import os
import signal
import sys
from typing import Any


def halt_at(place: str) -> None:
    """Halts before an audit event of Python's.

    Args:
        place: `EVENT:ENDING:NUMBER`: the event, what one of its first two arguments ends with, such as a file's name,
            and how often that happens, this time included.
    """
    event, ending, number = place.split(":")
    left = int(number)

    def watch(happened: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if happened == event and any(str(arg).endswith(ending) for arg in args[:2]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(watch)


if told := os.environ.get("HALT_AT"):
    halt_at(told)
