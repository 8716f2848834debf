"""Arms of one experiment that differ in some settings: submits them to SLURM, or runs them here.

    python -m scripts.sweep configs/sweeps/microworld_loss.yaml            # submits what is missing; see slurm/sweep.sh
    python -m scripts.sweep configs/sweeps/microworld_loss.yaml --local    # runs what is missing on this machine
    python -m scripts.sweep configs/sweeps/microworld_loss.yaml --dry-run  # prints the arms, with their results so far
    python -m scripts.sweep configs/sweeps/microworld_loss.yaml --wandb    # prints it as a Weights & Biases sweep

A file of `configs/sweeps` lists settings and their values; studies/jobs/sweep.py says how they are combined. The arms
are in `runs/<group>/<id>/`, and `runs/<group>/table.md` compares them.
"""

import argparse
import sys
from pathlib import Path

from datamodules.files.command_line import CommandLine
from lightning_modules.run.stop_signal import StopListener
from scripts.common.entry import run_main


def parse(args: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="a file of configs/sweeps")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--local", action="store_true", help="run the arms here")
    what.add_argument("--dry-run", action="store_true", help="print the arms and their results so far; start nothing")
    what.add_argument("--table", action="store_true", help="the same, kept in the group's folder")
    what.add_argument("--wandb", action="store_true", help="print the sweep for `wandb sweep`")
    what.add_argument("--arm", metavar="ID", help="run one arm here, as a W&B agent does")
    parser.add_argument("--workers", type=int, default=1, help="arms that --local runs at a time")
    return parser.parse_args(args)


if __name__ == "__main__":
    # Before the imports that take seconds: in them a signal would end the process, and help and a typo would wait.
    StopListener().listen()
    run_main(lambda: parse(sys.argv[1:]), __file__)

import yaml
from jsonargparse import ArgumentParser
from tqdm import tqdm

from datamodules.files.atomic import write_text
from datamodules.files.parsing import read_yaml
from datamodules.text.plain_text import describe_error
from lightning_modules.run.user_errors import user_errors
from scripts.common.stages import MAINS, STAGES
from studies.jobs.execution import run_jobs
from studies.jobs.job import Job
from studies.jobs.submission import submit_jobs
from studies.jobs.sweep import Sweep


def read_sweep(path: str) -> Sweep:
    """Reads a sweep's file.

    Raises:
        ValueError: It is missing, or is no sweep.
    """
    if not Path(path).is_file():
        raise ValueError(f"no such file: {path}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep)
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping")
    try:
        return Sweep(**parser.instantiate(parser.parse_object(content)).as_dict())
    except user_errors() as error:
        raise ValueError(f"{path}: {describe_error(error)}") from None


def check(jobs: list[Job]) -> None:
    """Refuses a mistake in any arm before one starts."""
    evaluations = [job for job in jobs if job.stage == "evaluate"]
    others = [job for job in jobs if job.stage in STAGES and job.stage != "evaluate"]
    # Evaluations differ in names only.
    for job in tqdm([*others, *evaluations[:1]], desc="checking", disable=None, leave=False):
        try:
            STAGES[job.stage].parse(job.args)
        except user_errors() as error:
            raise ValueError(f"{job.name}: {describe_error(error)}") from error


def main(args: list[str] | None = None) -> None:
    """Does with the sweep what the command line says."""
    given = parse(sys.argv[1:] if args is None else args)
    sweep = read_sweep(given.grid)
    *jobs, table = sweep.jobs(given.grid)
    if given.wandb:
        print(yaml.safe_dump(sweep.to_wandb(given.grid), sort_keys=False), end="")
        return
    if not given.table:
        check(jobs)
    if given.arm:
        arm = [job for job in jobs if job.name in (f"fit-{given.arm}", f"evaluate-{given.arm}")]
        if not arm:
            raise ValueError(f"{given.grid}: has no arm {given.arm}; --dry-run prints them")
        for job in arm:
            MAINS[job.stage](job.args)
        return
    if given.local:
        run_jobs(jobs, sweep.folder, given.workers, MAINS)
    if given.local or given.table:
        write_text(sweep.folder / "table.md", sweep.format_arms() + "\n")
    if given.local or given.table or given.dry_run:
        print(sweep.format_arms())
    else:
        print(submit_jobs([*jobs, table], sweep.folder, sweep.at_most))


if __name__ == "__main__":
    run_main(main, __file__)
