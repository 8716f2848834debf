"""Trainings that a benchmark keeps one by one in a folder, so that it continues where it was."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from datamodules.files.atomic import read_whole_lines, write_jsonl

K = TypeVar("K")
Record = dict[str, Any]


def read_cells(path: Path, name: Callable[[Record], K]) -> dict[K, Record]:
    """Returns the trainings that a file has, by what `name` calls each."""
    return {name(record): record for record in (read_whole_lines(path) if path.is_file() else [])}


def run_missing(
    path: Path,
    wanted: Sequence[K],
    name: Callable[[Record], K],
    scale: Record,
    run: Callable[[Sequence[K]], Iterable[Record]],
) -> list[Record]:
    """Runs the trainings that a file lacks, keeps each, and returns the records of all that are wanted.

    Args:
        path: The file.
        wanted: What is run, in order.
        name: Says which of them a record is.
        scale: Kept with each; those of another are refused.
        run: Yields the record of each of some trainings.

    Raises:
        ValueError: The file's trainings are of another scale.
    """
    found = read_cells(path, name)
    if any(record["scale"] != scale for record in found.values()):
        raise ValueError(f"{path}: has trainings of another scale; choose another folder")
    if missing := [key for key in wanted if key not in found]:
        for key, record in zip(missing, run(missing), strict=True):
            found[key] = record | {"scale": scale}
            write_jsonl(path, found.values())
    return [found[key] for key in wanted]
