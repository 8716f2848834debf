"""Where runs stand: state, step, last loss, how often each was requeued, and why it stopped.

    python -m scripts.status [runs/GROUP ...]

Without a group it shows all of `runs/`. It reads the runs' files, and SLURM's queue where there is one.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from datamodules.files.command_line import CommandLine
from scripts.common.entry import run_main
from studies.jobs.run_status import describe_group
from studies.text_table import format_records


def main(args: list[str] | None = None) -> None:
    """Prints a table for each group."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", type=Path, metavar="runs/GROUP")
    groups = parser.parse_args(sys.argv[1:] if args is None else args).groups
    for folder in groups or sorted(path for path in Path("runs").glob("*") if path.is_dir()):
        if rows := describe_group(folder):
            states = Counter(row["state"] for row in rows)
            print(f"{folder}: {', '.join(f'{number} {state}' for state, number in states.items())}")
            print(format_records(rows) + "\n")
        else:
            print(f"{folder}: no runs\n")


if __name__ == "__main__":
    run_main(main, __file__)
