"""Records that are computed once: kept through kills, and added to when more are wanted."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from datamodules.files.atomic import hash_json, read_records
from datamodules.files.record_log import RecordLog
from datamodules.files.tables import read_metadata, write_table
from lightning_modules.run.progress import bar_options
from lightning_modules.run.stop_signal import is_stopping, leave


def complete_records(
    path: Path,
    schema: pa.Schema,
    config: dict[str, Any],
    keys: Sequence[str],
    compute: Callable[[set[str]], Iterable[list[dict[str, Any]]]],
) -> dict[str, dict[str, Any]]:
    """Returns the records of these keys, of which only the missing ones are computed.

    Args:
        path: A parquet file of records, each with its `key`; those that nobody wants now are kept.
        schema: Of a record.
        config: Everything that a record depends on, its key apart.
        keys: The records that are wanted.
        compute: Yields the records of the given keys, a few at a time.

    Raises:
        ValueError: The file was begun with another configuration.
    """
    stored: dict[str, dict[str, Any]] = {}
    if path.exists():
        if read_metadata(path)["signature"] != hash_json(config):
            raise ValueError(f"{path}: computed with another configuration; delete it, or choose another name")
        stored = {record["key"]: record for _, record in read_records(path)}

    def finish(records: list[dict[str, Any]]) -> None:
        stored.update({record["key"]: record for record in records})
        write_table(path, list(stored.values()), {"signature": hash_json(config), "config": config}, schema)

    log = RecordLog(path, config, finish)
    done = stored.keys() | {record["key"] for record in log.collect()}
    if missing := {key for key in keys if key not in done}:
        log.open()
        with tqdm(total=len(missing), unit="records", desc=path.stem, **bar_options()) as progress:
            for records in compute(missing):
                log.append(records)
                progress.update(len(records))
                if is_stopping() and progress.n < len(missing):
                    leave(f"after {progress.n} of {len(missing)} records of {path}")
    if not stored.keys() >= set(keys):
        log.merge()
    return {key: stored[key] for key in keys}
