"""A scheduler's request to stop: USR1 before a time limit, TERM before a preemption.

Imports nothing heavy: a script listens before it imports the rest, which takes seconds in which the signal would end
the process.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# BSD's EX_TEMPFAIL: stopped as asked, with everything saved; the same command continues.
EXIT_STOPPED = 75
# Seconds by which the signal may reach the other process first.
SIGNAL_WAIT = 2.0


class StopListener:
    """Remembers that a signal came; whoever reaches a place where stopping is safe asks.

    Attributes:
        received: The signal's name, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self.received = signal.Signals(number).name

    def listen(self) -> None:
        """Takes both signals, also from whoever has taken one meanwhile."""
        for number in STOP_SIGNALS:
            signal.signal(number, self)


def is_stopping() -> str | None:
    """Returns the name of the signal that this process is to stop for; None if it is to go on."""
    listener = find_listener()
    return listener.received if listener else None


def leave(where: str) -> NoReturn:
    """Ends the process as one that was asked to stop, and did where nothing is lost.

    Args:
        where: It stopped, for the message.
    """
    print(
        f"stopped by {is_stopping() or 'a signal to another process'} {where}; the same command continues", flush=True
    )
    raise SystemExit(EXIT_STOPPED)


@contextmanager
def leaving_if_stopped(where: str) -> Iterator[None]:
    """Leaves where another process, an engine's or a peer, has ended for the signal that this one has got, too.

    Args:
        where: See `leave`.
    """
    try:
        yield
    except Exception:  # each library has its own for a process that is gone
        until = time.monotonic() + SIGNAL_WAIT
        while not is_stopping() and time.monotonic() < until:
            time.sleep(0.05)
        if is_stopping():
            leave(where)
        raise


@contextmanager
def shielding_children() -> Iterator[None]:
    """Keeps USR1, which a scheduler sends to all of a job's processes, from ending those that begin meanwhile.

    They inherit that it is blocked, as they would no handler; this process hears of it at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def find_listener() -> StopListener | None:
    """Returns the listener of this process, None if it has none."""
    handler = signal.getsignal(signal.SIGUSR1)
    return handler if isinstance(handler, StopListener) else None
