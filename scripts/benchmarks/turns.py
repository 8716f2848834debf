"""A race between processes: each has its own memory, and they take turns, call by call."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from scripts.benchmarks.measure import Costs

_READY = "ready"


class Turn:
    """A process's own end: `start` waits until the others rest, `stop` says what it took since.

    As a context it does both.

    Args:
        connection: To the process that keeps order.
    """

    def __init__(self, connection: Connection):
        self._connection = connection

    def start(self) -> None:
        """Waits for its turn, then starts the clocks."""
        self._connection.send(_READY)
        self._connection.recv()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, amount: float | None = None) -> None:
        """Stops the clocks, and gives the turn away; `amount` is what was done meanwhile."""
        self._connection.send((time.perf_counter() - self._wall, time.process_time() - self._cpu, amount))

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _work(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    connection.send((function(Turn(connection), *args),))


def race_apart(sides: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Costs, Any]]:
    """Runs a function in a process for each side; only one of them is at work at any time.

    Args:
        sides: By name: a module's function, and what it is called with after its `Turn`. What it does before its first
            turn and after its last is not measured, and no other process is timed meanwhile.

    Returns:
        By name: what its turns took, and what the function returned.

    Raises:
        RuntimeError: One of the processes ended by an error, which it has said itself.
    """
    context = multiprocessing.get_context("spawn")
    costs: dict[str, Costs] = {name: Costs() for name in sides}
    found: dict[str, Any] = {}
    lines: dict[str, Connection] = {}
    processes = []

    def hear(name: str) -> Any:
        try:
            return lines[name].recv()
        except EOFError:
            raise RuntimeError(f"the process that measured {name} failed; its error is above") from None

    def go_on(name: str) -> None:
        """Waits until a process asks for its next turn or returns."""
        if (said := hear(name)) != _READY:
            [found[name]] = said

    try:
        for name, (function, *args) in sides.items():
            lines[name], theirs = context.Pipe()
            processes.append(context.Process(target=_work, args=(theirs, function, tuple(args)), daemon=True))
            processes[-1].start()
            theirs.close()
            go_on(name)
        while waiting := [name for name in sides if name not in found]:
            for name in waiting:
                lines[name].send(None)
                costs[name].add(*hear(name))
                go_on(name)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return {name: (costs[name], found[name]) for name in sides}
