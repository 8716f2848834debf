"""Records that survive a kill: appended as they come, merged at the end; a rerun asks only for what is missing."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from datamodules.files import hash_json, read_whole_lines


class RecordLog:
    """Appends records to `.{output}.part-{rank}.jsonl` beside the output that they end up in.

    A rerun with the same configuration finds what earlier attempts finished, whatever their number of processes.

    Args:
        output: The file that the records end up in.
        config: Everything that the records depend on.
        finish: Writes `output` from all records; called by one process.
    """

    def __init__(self, output: Path, config: dict, finish: Callable[[list[dict]], None]):
        self.output, self.signature, self.finish = output, hash_json(config), finish

    def _find_parts(self) -> list[Path]:
        return sorted(self.output.parent.glob(f".{self.output.name}.part-*.jsonl"))

    def collect(self) -> list[dict]:
        """Returns the records of all part files; a last line that a kill tore is not a record.

        Raises:
            ValueError: A part file was begun with another configuration.
        """
        records = []
        for part in self._find_parts():
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

    def append(self, records: list[dict]) -> None:
        """Appends records and forces them to the disk."""
        with self.part.open("a", encoding="utf-8") as file:
            header = [{"signature": self.signature}] if file.tell() == 0 else []
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in [*header, *records])
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> None:
        """Writes the output from the records of all processes, and removes their parts."""
        self.finish(self.collect())
        for part in self._find_parts():
            part.unlink()
