"""Benchmarks, each against its baseline in the same run, as ratios.

    python -m scripts.benchmark losses
    python -m scripts.benchmark losses --json      # one object a line: name, value, unit, baseline, ratio

Each name is a module of `scripts/benchmarks/`; what it compares itself with is in that module's docstring.
"""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path

from datamodules.files.command_line import CommandLine
from scripts.common.entry import quiet_libraries, run_main
from scripts.common.help import answer_command

NAMES = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py") if path.stem != "measure")


def parse(args: list[str] | None = None) -> tuple[str, bool, list[str]]:
    """Returns the benchmark's name, whether to print JSON, and what is left for the benchmark itself."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = sys.argv[1:] if args is None else args
    # After a name, help is the benchmark's own.
    asked = [arg for arg in args if arg in ("-h", "--help")] if args and args[0] in NAMES else []
    parsed, rest = parser.parse_known_args([arg for arg in args if arg not in asked])
    return parsed.name, parsed.json, [*rest, *asked]


def main(args: list[str] | None = None) -> None:
    """Runs one benchmark, and prints each measurement as it comes."""
    answer_command("benchmark", sys.argv[1:] if args is None else args)
    name, as_json, rest = parse(args)
    quiet_libraries()
    for measurement in importlib.import_module(f"scripts.benchmarks.{name}").run(rest):
        print(json.dumps(dataclasses.asdict(measurement)) if as_json else measurement, flush=True)


if __name__ == "__main__":
    run_main(main, __file__)
