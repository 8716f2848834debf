"""Tables of records as sealed parquet files, each with what made it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.files.atomic import atomic_path, require_file
from datamodules.files.parsing import parse_json_object, reading_parquet
from datamodules.files.seals import METADATA_KEY, check_table, seal_table, warn_unsealed


def write_table(
    path: Path, records: list[dict[str, Any]], metadata: dict[str, Any], schema: pa.Schema | None = None
) -> None:
    """Writes records as parquet with JSON metadata in the file's schema, sealed, atomically."""
    table = pa.Table.from_pylist(records, schema=schema)
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
        seal_table(temporary)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a parquet file, or some of its columns.

    Raises:
        ValueError: There is no such file, it is no parquet file, or it is not what was sealed.
    """
    with reading_parquet(path):
        is_sealed = check_table(require_file(path, "table"))
        with pq.ParquetFile(path) as file:
            if not is_sealed:
                warn_unsealed(path, file.schema_arrow)
            return file.read(columns)


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns what a parquet file says about its making; empty for a file that Kindred did not write.

    Raises:
        ValueError: There is no such file, it is no parquet file, or it is not what was sealed.
    """
    with reading_parquet(path):
        check_table(require_file(path, "table"))
        schema = pq.read_schema(path)
    return parse_metadata(schema, path)


def parse_metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Returns the same of a schema, such as that of a table that was read; `path` is for the message."""
    return parse_json_object((schema.metadata or {}).get(METADATA_KEY, b"{}"), f"{path}: its metadata")
