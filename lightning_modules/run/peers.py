"""A bounded wait for the other nodes' processes: a job whose peers never start says so, and ends."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L

PEER_WAIT = "KINDRED_PEER_WAIT"


class PeersMet(L.Callback):
    """Ends the wait: Lightning calls `setup` once all processes have found each other.

    Args:
        wait: Set then.
    """

    def __init__(self, wait: threading.Event):
        self.wait = wait

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends it."""
        self.wait.set()


def read_wait() -> float:
    """Returns how many seconds a process waits for the others, from the environment; ten minutes by default.

    Raises:
        ValueError: It is not a number above 0.
    """
    given = os.environ.get(PEER_WAIT, "600")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{PEER_WAIT}={given}: expected a number of seconds above 0")
    return seconds


@contextmanager
def bounded_wait(trainer: L.Trainer) -> Iterator[None]:
    """Ends this process with exit code 2 if, on several nodes, the others have not started in time."""
    if trainer.num_nodes == 1:
        yield
        return
    seconds, met = read_wait(), threading.Event()

    def watch() -> None:
        if not met.wait(seconds):
            print(
                f"error: trainer.num_nodes={trainer.num_nodes}, but not all processes started in {seconds:g} s; "
                "start the same command on every node, as srun does, or leave num_nodes out",
                file=sys.stderr,
                flush=True,
            )
            # The main thread waits within a library, which nothing else ends.
            os._exit(2)

    trainer.callbacks.append(PeersMet(met))
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        met.set()
