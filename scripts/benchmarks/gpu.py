"""Everything that only a GPU can show, in less than ten minutes on one of 80 GB, without a network.

    python -m scripts.benchmark gpu --json
    python -m scripts.benchmark gpu --page docs/results/gpu.md   # and gpu.jsonl beside it
    python -m scripts.benchmark gpu --cpu                        # every part at toy sizes: that it runs, no numbers

Parts:

    tests           the tests marked gpu
    exactness       every divergence in float32 and bf16-mixed against float64
    head, memory    the fused head over its matrix products, and its memory at 32,768 x 131,072
    steps           a 1B student's steps in each precision, with each option
    capture, generation     of a 1B teacher
    syncs           how often a fit's step waits for the GPU
    stages          all stages on the microworld in bf16
    ranks           with two GPUs or more: DDP and fsdp2 over NCCL against one

Each is a process of its own. One that fails does not stop the others; why is said on stderr and on the page, and the
exit code is 1.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from scripts.benchmarks.device.page import write_page
from scripts.benchmarks.device.parts import PARTS, PATIENCE, TOY_PATIENCE, Failure, run_part
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.measure import Measurement


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs all parts, or some; see the module's docstring.

    Raises:
        ValueError: There is no GPU, and none of `--cpu`.
        SystemExit: A part failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpu", "--smoke", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--page", type=Path, help="writes a Markdown page and its lines as JSON, too")
    given = parser.parse_args(args)
    # Counted without a context, which the parts' processes could not share.
    if not given.cpu and torch.cuda.device_count() == 0:
        raise ValueError("there is no CUDA GPU here; --cpu runs every part at toy sizes")
    place = Place("cpu" if given.cpu else "cuda")
    measured: dict[str, list[Measurement]] = {}
    failures = []
    for part in given.only:
        measured[part] = []
        for found in run_part(part, place, TOY_PATIENCE if place.is_toy else PATIENCE):
            if isinstance(found, Failure):
                failures.append(found)
                print(f"{part} failed: {found.reason}", file=sys.stderr, flush=True)
            else:
                measured[part].append(found)
                yield found
    if given.page:
        write_page(given.page, place, measured, failures)
    if failures:
        sys.exit(f"{len(failures)} of {len(given.only)} parts failed: {', '.join(one.part for one in failures)}")
