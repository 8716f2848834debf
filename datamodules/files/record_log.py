"""Records that survive a kill: appended as they come, merged at the end; a rerun asks only for what is missing."""

import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from datamodules.files.atomic import hash_json, name_unwritten, read_whole_lines


def find_parts(output: Path) -> list[Path]:
    """Returns what the processes that make an output have logged so far, and not yet merged."""
    return sorted(output.parent.glob(f".{escape(output.name)}.part-*.jsonl"))


class RecordLog:
    """Appends records to `.{output}.part-{rank}.jsonl` beside the output that they end up in.

    A rerun with the same configuration finds what earlier attempts finished, whatever their number of processes.

    Args:
        output: The file that the records end up in.
        config: Everything that the records depend on.
        finish: Writes `output` from all records; called by one process.
    """

    def __init__(self, output: Path, config: dict[str, Any], finish: Callable[[list[dict[str, Any]]], None]):
        self.output, self.signature, self.finish = output, hash_json(config), finish

    def collect(self) -> list[dict[str, Any]]:
        """Returns the records of all part files; a last line that a kill tore is not a record.

        Raises:
            ValueError: A part file was begun with another configuration.
        """
        records = []
        for part in find_parts(self.output):
            lines = read_whole_lines(part)
            if lines and lines[0] != {"signature": self.signature}:
                raise ValueError(f"{part}: begun with another configuration; delete it, or choose another output")
            records += lines[1:]
        return records

    def open(self, rank: int = 0) -> None:
        """Makes the folder, and cuts off a last line that a kill tore from this process's part."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.output.with_name(f".{self.output.name}.part-{rank}.jsonl")
        if self.part.exists():
            end = self.part.read_bytes().rfind(b"\n") + 1
            with self.part.open("r+b") as file:
                file.truncate(end)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Appends records and forces them to the disk.

        Raises:
            ValueError: The disk is full; a line that is half there is none.
        """
        with name_unwritten(self.part), self.part.open("a", encoding="utf-8") as file:
            header = [{"signature": self.signature}] if file.tell() == 0 else []
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in [*header, *records])
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> None:
        """Writes the output from the records of all processes, and removes their parts."""
        self.finish(self.collect())
        for part in find_parts(self.output):
            part.unlink()


def refuse_other_records(
    output: Path, found: Sequence[Hashable], wanted: Sequence[Hashable], are_all_there: bool = True
) -> None:
    """Raises a ValueError unless each item that was asked for is there exactly once.

    Args:
        output: Named in the message.
        found: What names each record.
        wanted: The same of each item.
        are_all_there: Whether none may be missing, as where only some were to be asked for.
    """
    counts = Counter(found)
    twice = [key for key, count in counts.items() if count > 1]
    missing = [key for key in wanted if key not in counts] if are_all_there else []
    asked = set(wanted)
    others = [key for key in counts if key not in asked]
    for keys, what in ((twice, "are there twice"), (missing, "are missing"), (others, "were not asked for")):
        if keys:
            raise ValueError(
                f"{output}: not written, since {len(keys)} of {len(wanted)} records {what}, such as {keys[0]!r}; "
                f"delete {output.with_name(f'.{output.name}.part-*')} and run the same command again"
            )
