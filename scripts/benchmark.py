"""Benchmarks, each against its baseline in the same run, as ratios.

    python -m scripts.benchmark losses
    python -m scripts.benchmark losses --json              # one object a line: name, value, unit, baseline, ratio
    python -m scripts.benchmark losses --smoke             # toy sizes, in seconds: that it runs, no numbers
    python -m scripts.benchmark losses --record docs/benchmarks    # losses.json there: with commit, date and machine
    python -m scripts.benchmark page                       # docs/benchmarks.md, from all that is recorded there

Each name is a module of `scripts/benchmarks/`; what it compares itself with is in that module's docstring.
"""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

from datamodules.files.command_line import CommandLine
from scripts.common.entry import quiet_libraries, run_main
from scripts.common.help import answer_command

# What benchmarks share.
SHARED = {"cells", "inputs", "measure", "newcomer_steps", "records", "turns"}
NAMES = sorted(
    path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py") if path.stem not in SHARED
)
PAGE = "page"


class Command(NamedTuple):
    """A benchmark's name, whether to print JSON, the folder to record it in, and what is for the benchmark itself."""

    name: str
    as_json: bool
    record: Path | None
    rest: list[str]


def parse(args: list[str] | None = None) -> Command:
    """Returns what a command line asks for."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*NAMES, PAGE])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="writes FOLDER/NAME.json, too")
    args = sys.argv[1:] if args is None else args
    # After a name, help is the benchmark's own.
    asked = [arg for arg in args if arg in ("-h", "--help")] if args and args[0] in NAMES else []
    parsed, rest = parser.parse_known_args([arg for arg in args if arg not in asked])
    return Command(parsed.name, parsed.json, parsed.record, [*rest, *asked])


def main(args: list[str] | None = None) -> None:
    """Runs one benchmark, and prints each measurement as it comes; or writes the page."""
    answer_command("benchmark", sys.argv[1:] if args is None else args)
    command = parse(args)
    quiet_libraries()
    from scripts.benchmarks.measure import find_doubts
    from scripts.benchmarks.records import Recorder, run_page

    if command.name == PAGE:
        run_page(command.rest)
        return
    recorder, said = Recorder.start(command.name, command.rest), set[str]()
    for measurement in importlib.import_module(f"scripts.benchmarks.{command.name}").run(command.rest):
        print(json.dumps(dataclasses.asdict(measurement)) if command.as_json else measurement, flush=True)
        recorder.measured.append(measurement)
        for name, doubt in find_doubts(recorder.measured).items():
            if name not in said:
                print(f"{name}: {doubt}", file=sys.stderr, flush=True)
                said.add(name)
    if command.record:
        recorder.write(command.record)


if __name__ == "__main__":
    run_main(main, __file__)
