"""One shard of a logit cache: a safetensors file that knows when it is damaged; `logit_format` says what is in it."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from datamodules.logit_cache.format import DTYPES, CacheDescription, list_planes


def checksum_arrays(arrays: Iterable[np.ndarray]) -> int:
    """Returns the checksum of the arrays' bytes, one after the other: the low half of their XXH3, 32 bits."""
    checksum = xxhash.xxh3_64()
    for array in arrays:
        checksum.update(array.data)
    return _shorten(checksum)


def _shorten(checksum: xxhash.xxh3_64) -> int:
    return checksum.intdigest() & 0xFFFFFFFF


def write_shard(
    path: Path, planes: dict[str, tuple[str, np.ndarray]], index: dict[str, tuple[str, np.ndarray]], signature: str
) -> None:
    """Writes planes and index as one safetensors file; the last eight bytes are the checks of header and index.

    Args:
        path: The file.
        planes: (safetensors dtype, array) by name.
        index: Likewise, without `index.check`.
        signature: Of the cache's description.
    """
    # The widest first, so that every plane is aligned without a gap, which safetensors does not allow.
    ordered = sorted({**planes, **index}.items(), key=lambda item: (-item[1][1].itemsize, item[0]))
    ordered.append(("index.check", ("U8", np.zeros(8, np.uint8))))
    header: dict[str, dict[str, Any]] = {"__metadata__": {"signature": signature}}
    end = 0
    for name, (dtype, array) in ordered:
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    check = [checksum_arrays([head]), checksum_arrays([array for _, (_, array) in sorted(index.items())])]
    with path.open("wb") as file:
        file.write(head.data)
        for _, (_, array) in ordered[:-1]:
            file.write(array.data)
        file.write(np.array(check, "<u4").data)


class Shard:
    """One shard's index, read and checked; its planes are mapped into memory when they are first asked for.

    Args:
        path: The file.
        description: What the rows must depend on.

    Attributes:
        path: The file.
        layout: Its planes.
        ids: The examples' ids.
        text_hashes: Their text hashes, as numbers.
        completion_hashes: Likewise of the completions alone; none in a shard of the schema before.
        checksums: See `checksum_arrays`.
        bounds: For `rows`, `entries` and `drawn`: where each example begins, and the last one ends.

    Raises:
        ValueError: It is truncated, its header or index is damaged, or it is of another capture.
    """

    def __init__(self, path: Path, description: CacheDescription):
        self.path, self.layout = path, list_planes(description)
        damaged = ValueError(f"{path}: damaged; delete it and run python -m scripts.cache_logits again")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 16:
                raise damaged
            file.seek(0)
            head = file.read(8 + length)
            file.seek(-8, 2)
            header_check, index_check = np.frombuffer(file.read(), "<u4").tolist()
        if checksum_arrays([np.frombuffer(head, np.uint8)]) != header_check:
            raise damaged
        header = json.loads(head[8:])
        if header.pop("__metadata__")["signature"] != description.signature:
            raise ValueError(f"{path}: written by another teacher, tokenizer, prompt or setting; choose another output")
        self._places: dict[str, tuple[np.dtype, list[int], int]] = {
            name: (DTYPES[entry["dtype"]], entry["shape"], len(head) + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        if size != len(head) + max(entry["data_offsets"][1] for entry in header.values()):
            raise damaged
        names = sorted(name for name in header if name.startswith("index.") and name != "index.check")
        index = {name: self._load(name) for name in names}
        if checksum_arrays(index.values()) != index_check:
            raise damaged
        self.ids: list[str] = json.loads(index["index.examples"].tobytes())
        self.text_hashes: list[int] = index["index.text_hash"].tolist()
        completions = index.get("index.completion_hash")
        self.completion_hashes: list[int] | None = None if completions is None else completions.tolist()
        self.checksums: list[int] = index["index.checksum"].tolist()
        self.bounds = {
            name: [0, *np.cumsum(index[f"index.{name}"], dtype=np.int64).tolist()]
            for name in ("rows", "entries", "drawn")
            if f"index.{name}" in index
        }
        if "entries" not in self.bounds and "support_low" in self.layout:
            self.bounds["entries"] = [bound * description.support_size for bound in self.bounds["rows"]]
        self._content: memoryview | None = None

    def _load(self, name: str) -> np.ndarray:
        dtype, shape, offset = self._places[name]
        return np.fromfile(self.path, dtype, int(np.prod(shape)), offset=offset).reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker maps the file itself; a pickled map would be its whole content.
        return {**vars(self), "_content": None}

    @cached_property
    def _planes(self) -> list[tuple[int, int, str]]:
        """For each plane: where it begins, the bytes of one of its rows, and what it has one for."""
        planes: list[tuple[int, int, str]] = []
        for name, plane in self.layout.items():
            dtype, shape, offset = self._places[name]
            planes.append((offset, dtype.itemsize * int(np.prod(shape[1:])), plane.per))
        return planes

    def slice_example(self, number: int) -> list[memoryview]:
        """Returns one example's bytes of every plane, in the layout's order, mapped, not copied.

        Raises:
            ValueError: They are not those that were written.
        """
        if self._content is None:
            self._content = np.asarray(np.memmap(self.path, np.uint8, mode="r")).data
        content, checksum, parts = self._content, xxhash.xxh3_64(), []
        ends = {per: (bounds[number], bounds[number + 1]) for per, bounds in self.bounds.items()}
        for offset, size, per in self._planes:
            start, stop = ends[per]
            part = content[offset + size * start : offset + size * stop]
            checksum.update(part)
            parts.append(part)
        if _shorten(checksum) != self.checksums[number]:
            raise ValueError(
                f"{self.path}: the rows of {self.ids[number]!r} are damaged; delete this file and run "
                "python -m scripts.cache_logits again"
            )
        return parts

    def read_example(self, number: int) -> dict[str, np.ndarray]:
        """Returns one example's planes.

        Raises:
            ValueError: Its bytes are not those that were written.
        """
        return self.join_examples([self.slice_example(number)])

    def join_examples(self, examples: Iterable[list[memoryview]]) -> dict[str, np.ndarray]:
        """Returns the planes of examples of the cache, from whichever of its shards, one after the other."""
        planes = {}
        for name, parts in zip(self.layout, zip(*examples, strict=True), strict=True):
            dtype, shape, _ = self._places[name]
            planes[name] = np.frombuffer(b"".join(parts), dtype).reshape(-1, *shape[1:])
        return planes
