"""The page of results: what was counted, on what, and what that does not show."""

from datetime import date
from pathlib import Path

from datamodules.files.atomic import write_text
from datamodules.provenance import find_git_commit
from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.records import describe_cores

_PAGE = """# What a fault leaves behind

{day}, commit {commit}, {machine}, shared with other work.
Made by

    python -m scripts.benchmark faults --rounds={rounds} --flips={flips} --seed={seed} --page {path}

on the microworld: {rounds} rounds of each kind with the seeds {seed} to {last}, and {flips} flipped bits in each
artefact with seed {seed}. `python -m scripts.benchmark faults --help` says what counts as wrong.

| fault | wrong | of | the fault found it at work |
| --- | ---: | ---: | ---: |
{rows}

## What this does not show

- No power loss: a killed process's writes are still in the kernel, so that a missing fsync would not be seen.
- No network file system: the locks were tried on one machine's own disk.
- A full disk is a limit on each file's size (RLIMIT_FSIZE), so that making files and folders still succeeds.
- One process a stage, on CPU; teachers asked over a network or through vLLM are not among the stages.
- Moments and places are random; what needs another moment than these is not found.
"""


def format_rows(measured: list[Measurement]) -> str:
    """Returns a row of the table for each count."""
    under_way = {m.name.removesuffix(", under way"): m.value for m in measured if m.name.endswith(", under way")}
    counts = [m for m in measured if m.baseline is not None]
    return "\n".join(
        f"| {m.name} | {m.value} | {m.unit.removeprefix('of ')} | {under_way.get(m.name, '')} |" for m in counts
    )


def write_page(path: Path, measured: list[Measurement], rounds: int, flips: int, seed: int) -> None:
    """Writes the page."""
    page = _PAGE.format(
        path=path,
        day=date.today().isoformat(),
        commit=find_git_commit(),
        machine=describe_cores(),
        rounds=rounds,
        flips=flips,
        seed=seed,
        last=seed + rounds - 1,
        rows=format_rows(measured),
    )
    write_text(path, page)
