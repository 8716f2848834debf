"""A scheduler's request to stop: USR1 before a time limit, TERM before a preemption.

Imports nothing heavy: a script listens before it imports the rest, which takes seconds in which the signal would end
the process.
"""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# BSD's EX_TEMPFAIL: stopped as asked, with everything saved; the same command continues.
EXIT_STOPPED = 75


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


def find_listener() -> StopListener | None:
    """Returns the listener of this process, None if it has none."""
    handler = signal.getsignal(signal.SIGUSR1)
    return handler if isinstance(handler, StopListener) else None
