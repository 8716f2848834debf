"""Seals artefacts again that were edited on purpose; each says so from then on.

    python -m scripts.seal data/rationales.parquet runs/GROUP/ID/student runs/GROUP/ID

A path is a table (parquet), an exported student's folder, a run's folder, or a sealed JSON file (`results.json`).
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datamodules.files.atomic import atomic_path, require_file, write_sealed
from datamodules.files.command_line import CommandLine
from datamodules.files.parsing import parse_json_object, read_json_object, reading_parquet
from datamodules.files.seals import (
    DONE,
    MANIFEST,
    METADATA_KEY,
    PROVENANCE,
    describe_files,
    hash_run_files,
    is_sealed,
    seal_table,
)
from datamodules.provenance import find_git_commit
from scripts.common.entry import run_main


def describe_sealing(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry of a record that says how often and when it was sealed again."""
    now = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "git_commit": find_git_commit()}
    before = record.get(PROVENANCE, [])
    return {PROVENANCE: [*(before if isinstance(before, list) else [before]), now]}


def seal_parquet(path: Path) -> None:
    """Seals a table as it is."""
    with reading_parquet(path), pq.ParquetFile(path) as file:
        table = file.read()
    stored = table.schema.metadata or {}
    metadata = parse_json_object(stored.get(METADATA_KEY, b"{}"), path)
    metadata |= describe_sealing(metadata)
    if "num_records" in metadata:
        metadata["num_records"] = table.num_rows
    table = table.replace_schema_metadata({**stored, METADATA_KEY: json.dumps(metadata).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
        seal_table(temporary)


def seal_json(path: Path) -> None:
    """Seals a JSON file as it is.

    Raises:
        ValueError: It is of those that have no seal, another program's perhaps.
    """
    record = read_json_object(path)
    if not is_sealed(record):
        raise ValueError(f"{path}: has no seal that could be renewed; what had none is read as it is")
    write_sealed(path, {**record, **describe_sealing(record)})


def seal_run(run: Path) -> None:
    """Makes a finished run's DONE know the run's files as they are."""
    record = parse_json_object((run / DONE).read_bytes() or b"{}", run / DONE)
    write_sealed(run / DONE, {**record, "sha256": hash_run_files(run), **describe_sealing(record)})


def seal_student(folder: Path) -> None:
    """Makes an exported student's manifest, and the DONE of the run that it lies in, know its files as they are."""
    manifest = folder / MANIFEST
    record = read_json_object(manifest) if manifest.is_file() else {}
    write_sealed(manifest, {**record, "files": describe_files(folder), **describe_sealing(record)})
    if (folder.parent / DONE).is_file():
        seal_run(folder.parent)


def seal(path: Path) -> None:
    """Seals an artefact as it is.

    Raises:
        ValueError: It is none that has a seal.
    """
    require_file(path, "artefact")
    if (path / DONE).is_file():
        seal_run(path)
    elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        seal_student(path)
    elif path.suffix == ".parquet" and path.is_file():
        seal_parquet(path)
    elif path.name == DONE:
        seal_run(path.parent)
    elif path.suffix == ".json" and path.is_file() and path.name != MANIFEST:
        seal_json(path)
    else:
        raise ValueError(
            f"{path}: cannot be sealed; name a table (.parquet), a model's folder, a run's folder or a JSON file "
            "(logit caches are made anew)"
        )


def main(args: list[str] | None = None) -> None:
    """Seals each path."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    for path in parser.parse_args(sys.argv[1:] if args is None else args).paths:
        seal(path)
        print(f"{path}: sealed as it is; {PROVENANCE} in it says so")


if __name__ == "__main__":
    run_main(main, __file__)
