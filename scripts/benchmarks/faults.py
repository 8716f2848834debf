"""What is left of each stage's work after kills, races, flipped bits and full disks; right is 0 everywhere.

    python -m scripts.benchmark faults --json
    python -m scripts.benchmark faults --smoke      # one round and five flips of each

On the microworld, in a temporary folder. Lines:

    kills STAGE         rounds of kill -9 at a random moment whose rerun's result is not an undisturbed run's: rows,
                        weights to the bit, metrics, what is said and what is left beside it; also of a whole study
    races STAGE         rounds of two processes on one output, the second from a random moment on, that do not end with
                        one right result and, if one was refused, one line of why; `fit with another config`, too
    flips ARTEFACT      flipped bits, at random places of its files, with which it loads and says something else
    flips ARTEFACT, not refused in one line     those that end in a traceback
    disks STAGE         rounds where no file may grow beyond a random size (RLIMIT_FSIZE) that do not end with one line
                        that names a path and exit code 2, or whose rerun is not an undisturbed run

A line `..., under way` counts the rounds that the fault found at work: killed before the end, one refused, stopped by
the limit. What went wrong is said on stderr.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.reliability.bench import OTHER_CONFIG, Bench, prepare
from scripts.benchmarks.reliability.flips import ARTEFACTS, flip
from scripts.benchmarks.reliability.page import write_page
from scripts.benchmarks.reliability.rounds import Round, fill_disk, kill, race

STAGES = ["annotate", "cache_logits", "fit", "evaluate"]


def count(name: str, wrong: list[str], number: int, unit: str) -> Measurement:
    """Returns a count of what went wrong, and says on stderr what."""
    for line in wrong:
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    return Measurement(name, len(wrong), f"of {number} {unit}", baseline=0)


class Faults:
    """All faults, in processes side by side.

    Args:
        folder: For everything.
        rounds: Of each kind of fault.
        flips: In each artefact.
        seed: Of all moments and places.
        lanes: Rounds side by side.
    """

    def __init__(self, folder: Path, rounds: int, flips: int, seed: int, lanes: int):
        self.folder, self.rounds, self.flips, self.seed = folder, rounds, flips, seed
        self.pool = ProcessPoolExecutor(lanes, get_context("fork"))

    def play(self, name: str, one: Callable[..., Round], *args: object) -> Iterator[Measurement]:
        """Yields how many rounds of a kind went wrong, and how many the fault found at work."""
        futures = [
            self.pool.submit(
                one, *args[:2], self.folder / name.replace(" ", "-") / str(number), self.seed + number, *args[2:]
            )
            for number in range(self.rounds)
        ]
        found = [future.result() for future in futures]
        wrong = [f"seed {self.seed + n}: {one.problem}" for n, one in enumerate(found) if one.problem]
        yield count(name, wrong, self.rounds, "rounds")
        yield Measurement(f"{name}, under way", sum(one.was_hit for one in found), f"of {self.rounds} rounds")

    def flip_bits(self, bench: Bench) -> Iterator[Measurement]:
        """Yields how many flipped bits each artefact takes in silence."""
        futures = {name: self.pool.submit(flip, name, bench.folder, self.flips, self.seed) for name in ARTEFACTS}
        for name, future in futures.items():
            found = future.result()
            yield count(f"flips {name}", found.silent, self.flips, "flips")
            yield count(f"flips {name}, not refused in one line", found.unclean, self.flips, "flips")

    def run(self) -> Iterator[Measurement]:
        """Runs all."""
        benches = [
            self.pool.submit(prepare, self.folder / "whole", STAGES),
            self.pool.submit(prepare, self.folder / "whole-study", ["study"]),
        ]
        bench, study = (future.result() for future in benches)
        other = self.pool.submit(prepare, self.folder / "whole-other", STAGES[:3], *OTHER_CONFIG).result()
        for stage in STAGES:
            yield from self.play(f"kills {stage}", kill, bench, stage)
        yield from self.play("kills study run", kill, study, "study")
        for stage in STAGES:
            yield from self.play(f"races {stage}", race, bench, stage)
        yield from self.play("races fit with another config", race, bench, "fit", other)
        for stage in STAGES:
            yield from self.play(f"disks {stage}", fill_disk, bench, stage)
        # Last, since it damages the bench's own files for a while.
        yield from self.flip_bits(bench)


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs all of it; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="of each kind of fault")
    parser.add_argument("--flips", type=int, default=200, help="in each artefact")
    parser.add_argument("--seed", type=int, default=0, help="of all moments and places")
    parser.add_argument("--lanes", type=int, default=2, help="rounds side by side")
    parser.add_argument("--smoke", action="store_true", help="one round and five flips")
    parser.add_argument("--page", type=Path, help="writes the counts as a Markdown page, too")
    given = parser.parse_args(args)
    rounds, flips = (1, 5) if given.smoke else (given.rounds, given.flips)
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # A forked process cannot use its parent's threads.
    torch.set_num_threads(1)
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        faults = Faults(Path(temporary), rounds, flips, given.seed, given.lanes)
        for measurement in faults.run():
            measured.append(measurement)
            yield measurement
        faults.pool.shutdown()
    if given.page:
        write_page(given.page, measured, rounds, flips, given.seed)
