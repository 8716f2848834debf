"""The parts, each in a process of its own: what breaks one, or its GPU's context, leaves the others as they were."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from datamodules.text.plain_text import clean_line, describe_error
from scripts.benchmarks.device import exactness, head, stages, steps, teachers
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.measure import Measurement
from scripts.common.entry import quiet_libraries

PARTS: dict[str, Callable[[Place], Iterator[Measurement]]] = {
    "tests": exactness.run_gpu_tests,
    "exactness": exactness.measure_exactness,
    "head": head.measure_time,
    "memory": head.measure_memory,
    "steps": steps.measure_steps,
    "capture": teachers.measure_capture,
    "generation": teachers.measure_generation,
    "syncs": stages.measure_syncs,
    "stages": stages.measure_stages,
    "ranks": stages.measure_ranks,
}
# Seconds after which a part is ended: all together are to take less than ten minutes; at toy sizes it hangs by then.
PATIENCE, TOY_PATIENCE = 180.0, 1800.0


@dataclass(frozen=True)
class Failure:
    """Why a part did not go to its end, in one line."""

    part: str
    reason: str


def _work(part: str, place: Place, sender: Connection) -> None:
    """Sends a part's measurements as they come; for a process of its own."""
    # Its children end with it.
    os.setsid()
    # The measurements alone are the command's output.
    os.dup2(2, 1)
    os.environ |= {"WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    quiet_libraries()
    try:
        for measurement in PARTS[part](place):
            sender.send(measurement)
    except Exception as error:
        traceback.print_exc()
        sender.send(Failure(part, clean_line(f"{type(error).__name__}: {describe_error(error)}")))


def run_part(part: str, place: Place, patience: float = PATIENCE) -> Iterator[Measurement | Failure]:
    """Yields what a part measures, last its seconds, or why it failed."""
    # Its server has imported everything, has no threads and has touched no GPU, so that a part starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    start = time.monotonic()
    process = context.Process(target=_work, args=(part, place, sender))
    process.start()
    sender.close()
    failure: Failure | None = None
    try:
        while failure is None:
            if (left := start + patience - time.monotonic()) <= 0 or not receiver.poll(left):
                failure = Failure(part, f"not done after {patience:g} s")
                break
            try:
                received = receiver.recv()
            except EOFError:
                break
            if isinstance(received, Failure):
                failure = received
            else:
                yield received
    finally:
        # One that has closed its pipe is about to end; one that takes too long, or is not asked any more, is not.
        process.join(0 if failure is not None or sys.exc_info()[0] else 60)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    if failure is None and process.exitcode != 0:
        failure = Failure(part, f"its process ended with {process.exitcode}")
    yield failure or Measurement(f"part {part}", time.monotonic() - start, "s")
