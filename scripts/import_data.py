"""Writes a data set of the hub, or a local copy of one, as a jsonl of questions and rationales that Kindred reads.

    python -m scripts.import_data open-r1/OpenR1-Math-220k --split train --output openr1.jsonl
    python -m scripts.import_data copies/traces --fields question=prompt.text rationale=trace answer=final \
        --output traces.jsonl

Without `--fields` a row keeps its own. `python -m scripts.inspect_data FILE` then shows what is understood.
"""

import argparse
from itertools import islice
from pathlib import Path

from datamodules.files.atomic import check_place, write_jsonl
from datamodules.files.command_line import CommandLine, parse_count
from datamodules.rationales.hub import parse_mapping, read_data_set
from scripts.common.entry import quiet_datasets, run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="hub id (owner/name), or a folder")
    parser.add_argument("--split", default="train", help="as the data set calls it")
    parser.add_argument("--config", help="its configuration, if it has several")
    parser.add_argument("--fields", nargs="+", default=[], metavar="OURS=THEIRS", help="what its fields are to Kindred")
    parser.add_argument("--limit", type=parse_count, help="only the first so many rows")
    parser.add_argument("--output", type=Path, required=True, help="the file (jsonl)")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Imports, and says how many rows."""
    parsed = parse(args)
    check_place(parsed.output, ".jsonl")
    quiet_datasets()
    rows = read_data_set(parsed.source, parsed.split, parsed.config, parse_mapping(parsed.fields))
    records = list(islice(rows, parsed.limit))
    try:
        write_jsonl(parsed.output, records)
    except TypeError as error:
        raise ValueError(
            f"{parsed.source}: a field is no JSON ({error}); name those that matter with --fields"
        ) from None
    print(f"{parsed.output}: {len(records)} rows")


if __name__ == "__main__":
    run_main(main, __file__)
