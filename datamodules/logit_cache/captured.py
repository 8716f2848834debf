"""What DistillKit captured: texts as a teacher's token ids, with the compressed distribution of each next token.

A capture is parquet files of one text a row: `input_ids`, and, for each place, `compressed_logprobs` and
`bytepacked_indices`, see `distillkit`. The distribution at a place is that *of* the token at the next one, as logits
are; that after the last token may be missing. `attention_mask`, where there is one, numbers the texts that were packed
into a row, and is 0 where there is none.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from datamodules.files.atomic import require_file
from datamodules.files.parsing import reading_parquet
from datamodules.logit_cache.distillkit import Compression

COMPRESSION_CONFIG = "compression_config.yaml"
IDS, VALUES, INDICES, MASK = "input_ids", "compressed_logprobs", "bytepacked_indices", "attention_mask"
# Of packed texts, which have hundreds of bytes a token.
ROWS_PER_BATCH = 8
_LIST, _LISTS = pa.list_(pa.int64()), pa.list_(pa.list_(pa.uint8()))


class CapturedText(NamedTuple):
    """One text.

    Attributes:
        where: Its file and row.
        token_ids: int32 [n].
        values: uint8 [m, bytes]; row p is the distribution of token p + 1; m is n or n - 1.
        indices: uint8 [m, bytes].
    """

    where: str
    token_ids: np.ndarray
    values: np.ndarray
    indices: np.ndarray


def find_captures(paths: Sequence[Path]) -> list[Path]:
    """Returns the parquet files that are meant: files, and those in folders.

    Raises:
        ValueError: A path is missing, or a folder without any.
    """
    found = []
    for path in paths:
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [require_file(path, "capture")]
        if not files:
            raise ValueError(f"{path}: holds no parquet file; a saved data set becomes one by `Dataset.to_parquet`")
        found += files
    return found


def read_captures(
    files: Sequence[Path], compression: Compression, teacher: str, vocabulary: int
) -> Iterator[CapturedText]:
    """Yields the texts of a capture, in its order.

    Args:
        files: The parquet files.
        compression: How it was compressed.
        teacher: Whose tokens it should have.
        vocabulary: The size of the teacher's.

    Raises:
        ValueError: A file is no capture, or of another compression, a row is torn, or the tokens are another's.
    """
    if compression.d < vocabulary:
        raise ValueError(
            f"{files[0]}: captured of {compression.d:,} ids, but {teacher} has {vocabulary:,}: another tokenizer's"
        )
    for path in files:
        with reading_parquet(path), pq.ParquetFile(path) as file:
            columns = _choose_columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                for text in _split_batch(batch, f"{path}:row", number, compression):
                    if (highest := int(text.token_ids.max())) >= vocabulary or text.token_ids.min() < 0:
                        raise ValueError(
                            f"{text.where}: token id {highest:,} is none of {teacher}, which has {vocabulary:,}; it "
                            "was captured with another tokenizer"
                        )
                    yield text
                number += len(batch)


def _choose_columns(path: Path, names: Sequence[str]) -> list[str]:
    if "packed_indices" in names:
        raise ValueError(
            f"{path}: of DistillKit's legacy compression, whose values may be logits without their normalizer; capture "
            "again with a compression config"
        )
    if missing := [name for name in (IDS, VALUES, INDICES) if name not in names]:
        raise ValueError(f"{path}: is no capture of DistillKit's: it has no column {missing[0]}")
    return [IDS, VALUES, INDICES, *([MASK] if MASK in names else [])]


def _split_batch(batch: pa.RecordBatch, where: str, number: int, compression: Compression) -> Iterator[CapturedText]:
    lists = {name: batch[name].cast(_LIST) for name in (IDS, MASK) if name in batch.schema.names}
    planes = {name: batch[name].cast(_LISTS) for name in (VALUES, INDICES)}
    sizes = {VALUES: compression.num_value_bytes, INDICES: compression.num_index_bytes}
    for row in range(len(batch)):
        own = f"{where} {number + row}"
        flat = {name: _read_list(column, row) for name, column in lists.items()}
        values, indices = (_read_rows(column, row, sizes[name], f"{own}: {name}") for name, column in planes.items())
        ids = flat[IDS]
        mask = flat.get(MASK, np.ones(len(ids), np.int64))
        if not len(ids) or not len(ids) - 1 <= len(values) <= len(ids) or not len(values) == len(indices):
            raise ValueError(
                f"{own}: torn: {len(ids)} tokens with {len(values)} rows of log-probabilities and {len(indices)} of ids"
            )
        if len(mask) != len(ids):
            raise ValueError(f"{own}: torn: {len(ids)} tokens with an {MASK} of {len(mask)}")
        bounds = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        for start, stop in pairwise(bounds):
            if mask[start]:
                yield CapturedText(own, ids[start:stop].astype(np.int32), values[start:stop], indices[start:stop])


def _read_list(column: pa.ListArray, row: int) -> np.ndarray:
    start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    found: np.ndarray = column.values.slice(start, stop - start).fill_null(-1).to_numpy()
    return found


def _read_rows(column: pa.ListArray, row: int, size: int, what: str) -> np.ndarray:
    """Returns the bytes of a row's lists, which must be so many each: uint8 [m, size]."""
    start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    inner = column.values
    offsets = inner.offsets.slice(start, stop - start + 1).to_numpy()
    if (wrong := np.diff(offsets) != size).any():
        number = int(np.diff(offsets)[wrong.argmax()])
        raise ValueError(f"{what} has {number} bytes at a place, not {size} as its compression config makes them")
    found: np.ndarray = inner.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy().reshape(-1, size)
    return found


class PrefixIndex:
    """Finds which of some token sequences a text begins with.

    Args:
        sequences: Each int [n].
    """

    def __init__(self, sequences: Iterable[np.ndarray]):
        self._by_length: dict[int, dict[bytes, list[int]]] = {}
        for index, ids in enumerate(sequences):
            self._by_length.setdefault(len(ids), {}).setdefault(_digest(ids), []).append(index)

    def find(self, ids: np.ndarray) -> list[list[int]]:
        """Returns the numbers of those that are how these ids begin; of each length a list, the shortest first."""
        lengths = sorted(length for length in self._by_length if length <= len(ids))
        found = [self._by_length[length].get(_digest(ids[:length]), []) for length in lengths]
        return [numbers for numbers in found if numbers]


def _digest(ids: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(ids, np.int32).data)
