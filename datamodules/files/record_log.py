"""Records that survive a kill: appended as they come, merged at the end; a rerun asks only for what is missing."""

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from datamodules.files.atomic import hash_json, name_unwritten, read_whole_lines

# What each line has beside its record, so that a flipped byte is not read as another record.
_CHECKSUM = "crc32"


def write_line(record: dict[str, Any]) -> str:
    """Returns a record as a line of a part, with its checksum."""
    text = json.dumps(record, ensure_ascii=False)
    return json.dumps({**record, _CHECKSUM: zlib.crc32(text.encode())}, ensure_ascii=False) + "\n"


def _read_lines(part: Path) -> list[dict[str, Any]]:
    records = read_whole_lines(part)
    for number, record in enumerate(records, start=1):
        checksum = record.pop(_CHECKSUM, None)
        if checksum != zlib.crc32(json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")):
            raise ValueError(
                f"{part}:{number}: is not what was written: it is damaged; delete that line, and the same command asks "
                "for its record again, or delete the file, if that is the first line"
            )
    return records


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
            lines = _read_lines(part)
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
            file.writelines(map(write_line, [*header, *records]))
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
