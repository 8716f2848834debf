"""Writes a logit cache; `logit_format` says how it lies on disk."""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.tokenization import Example, fingerprint_tokenizer
from datamodules.files.atomic import atomic_path, hash_json, hash_path, write_text
from datamodules.files.locks import hold
from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.format import (
    OTHER_FILES,
    SCHEMA_VERSION,
    SHARD_NAME,
    CacheDescription,
    list_planes,
    pack_ids,
    read_manifest,
    render_manifest,
)
from datamodules.logit_cache.reader import MISSING_EXAMPLES, index_shards
from datamodules.logit_cache.shard import Shard, checksum_arrays, write_shard
from datamodules.text.token_bytes import VocabularyBytes, read_vocabulary


class LogitCacheWriter:
    """Collects examples and writes them as shards; each process writes its own, and none waits for another.

    A shard appears whole or not at all and holds whole batches, so a killed capture continues after its last shard,
    with the very batches that were left: the same rows, to the bit, on the same machine.

    Args:
        folder: The cache.
        description: What the rows depend on.
        rank: The process's rank, which names its shards.
        rows_per_shard: A shard is written after the batch that makes so many rows.
    """

    def __init__(self, folder: Path, description: CacheDescription, rank: int = 0, rows_per_shard: int = 50_000):
        self.folder, self.description, self.rank, self.rows_per_shard = folder, description, rank, rows_per_shard
        self._examples: list[Example] = []
        self._planes: list[dict[str, np.ndarray]] = []
        self._num_rows = 0
        self._lock = ExitStack()
        self._seen: set[Path] = set()
        self._is_old = False

    def find_shards(self) -> list[Shard]:
        """Returns the shards of this capture that are already complete.

        Raises:
            ValueError: One is damaged, or of another teacher, tokenizer, prompt or setting.
        """
        paths = sorted(self.folder.glob("shard-*.safetensors"))
        self._seen = set(paths)
        shards = [Shard(path, self.description) for path in paths]
        self._is_old = any(shard.completion_hashes is None for shard in shards)
        return shards

    def find_done(self) -> set[str]:
        """Returns the ids of the examples in complete shards."""
        return set(index_shards(self.find_shards()))

    def is_complete(self) -> bool:
        """Says whether a manifest lists all shards that are there."""
        if not (self.folder / "manifest.json").is_file():
            return False
        manifest = read_manifest(self.folder)
        listed = {self.folder / entry["file"] for entry in manifest["shards"]}
        has_others = all((self.folder / file).is_file() for name, file in OTHER_FILES.items() if manifest.get(name))
        return listed == set(self.folder.glob("shard-*.safetensors")) and has_others

    def clear(self) -> None:
        """Removes what killed processes left in a complete cache; nothing while another process is at work in it."""
        if not self._find_strays():
            return
        with suppress(ValueError), closing(self):
            self.open()
            self._remove_strays()

    def _find_strays(self) -> list[Path]:
        return [path for path in self.folder.glob(".*") if re.match(r"\.lock-|.*\.tmp-", path.name)]

    def open(self) -> None:
        """Takes this rank's part of the folder for this process, until `close` or the process's end.

        Raises:
            ValueError: Another process has it, or has written since `find_done`; the folder is read-only, or holds
                shards of the schema before.
        """
        if self._is_old:
            raise ValueError(
                f"{self.folder}: begun by an earlier version, without the tokens' bytes; choose another output"
            )
        try:
            self._lock.enter_context(self._hold(self.folder / f".lock-{self.rank:04d}"))
        except OSError as error:
            raise ValueError(f"{self.folder}: cannot be written: {error.strerror}; choose another output") from None
        if set(self.folder.glob(f"shard-{self.rank:04d}-*.safetensors")) - self._seen:
            self.close()
            raise ValueError(f"{self.folder}: another process has just written here; run the same command again")

    def _hold(self, lock: Path) -> AbstractContextManager[None]:
        return hold(lock, f"{self.folder}: another process writes this cache")

    def add(self, batch: Sequence[tuple[Example, dict[str, np.ndarray]]]) -> None:
        """Adds the rows of one batch's examples; see `logit_codec`."""
        for example, rows in batch:
            self._examples.append(example)
            self._planes.append(encode_rows(self.description, rows))
            self._num_rows += len(rows["token_ids"])
        if self._num_rows >= self.rows_per_shard:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last shard.

        Raises:
            ValueError: The disk is full, or the folder read-only.
        """
        if not self._examples:
            return
        layout = list_planes(self.description)
        planes = {
            name: (plane.dtype, np.concatenate([part[name] for part in self._planes])) for name, plane in layout.items()
        }
        checksums = [checksum_arrays(part.values()) for part in self._planes]
        identifiers = json.dumps([example.id for example in self._examples], ensure_ascii=False).encode()
        index: dict[str, tuple[str, np.ndarray]] = {
            "index.examples": ("U8", np.frombuffer(identifiers, np.uint8)),
            "index.text_hash": ("U64", np.array([int(e.text_hash, 16) for e in self._examples], "<u8")),
            "index.completion_hash": ("U64", np.array([int(e.completion_hash, 16) for e in self._examples], "<u8")),
            "index.checksum": ("U32", np.array(checksums, "<u4")),
        }
        counted = {"rows": "tokens_low"}
        if "support_size" in layout:
            counted["entries"] = "support_low"
        if "drawn_size" in layout:
            counted["drawn"] = "drawn_low"
        for name, plane in counted.items():
            index[f"index.{name}"] = ("U32", np.array([len(part[plane]) for part in self._planes], "<u4"))
        numbers = [int(path.stem.split("-")[2]) for path in self.folder.glob(f"shard-{self.rank:04d}-*.safetensors")]
        path = self.folder / f"shard-{self.rank:04d}-{max(numbers, default=-1) + 1:05d}.safetensors"
        with atomic_path(path) as temporary:
            write_shard(temporary, planes, index, self.description.signature)
        self._examples, self._planes, self._num_rows = [], [], 0

    def finish(
        self,
        tokenizer: PreTrainedTokenizerBase | VocabularyBytes,
        creation: dict[str, Any],
        head: dict[str, Any] | None = None,
    ) -> None:
        """Lists the shards of all processes; call once, after every process has flushed.

        Args:
            tokenizer: The teacher's; of a teacher whose tokenizer is not at hand, the bytes of its tokens.
            creation: The creation record.
            head: For the kind `hidden`: `weight` and perhaps `bias`, tensors; `scale`, and `softcap` or None, numbers.

        Raises:
            ValueError: An example is in two shards, or the disk is full.
        """
        self._refuse_other_writers()
        shards = self.find_shards()
        index_shards(shards)
        listed_head = None if head is None else self._write_head(head)
        used = self._find_used_ids(shards)
        record = {
            "schema": SCHEMA_VERSION,
            **self.description.to_json(),
            "signature": self.description.signature,
            "ids_in_use": pack_ids(used),
            "fingerprint_in_use": _fingerprint(tokenizer, used.tolist()),
            "shards": [
                {"file": shard.path.name, "bytes": shard.path.stat().st_size, "sha256": hash_path(shard.path)}
                for shard in shards
            ],
            "head": listed_head,
            "token_bytes": self._write_vocabulary(tokenizer),
            "creation": creation,
        }
        write_text(self.folder / "manifest.json", render_manifest(record))
        (self.folder / MISSING_EXAMPLES).unlink(missing_ok=True)
        self._remove_strays()

    def _remove_strays(self) -> None:
        self._refuse_other_writers()
        for path in self._find_strays():
            if path.name != f".lock-{self.rank:04d}":
                path.unlink()

    def _refuse_other_writers(self) -> None:
        for path in self.folder.glob(".lock-*"):
            if path.name != f".lock-{self.rank:04d}":
                with self._hold(path):
                    pass

    def _write_head(self, head: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / OTHER_FILES["head"]
        with atomic_path(path) as temporary:
            temporary.write_bytes(save({name: head[name] for name in ("weight", "bias") if name in head}))
        return {"file": path.name, "sha256": hash_path(path), "scale": head["scale"], "softcap": head["softcap"]}

    def _write_vocabulary(self, tokenizer: PreTrainedTokenizerBase | VocabularyBytes) -> dict[str, Any] | None:
        path = self.folder / OTHER_FILES["token_bytes"]
        if isinstance(tokenizer, VocabularyBytes):
            vocabulary = tokenizer
        else:
            try:
                vocabulary = read_vocabulary(tokenizer, find_end_tokens(tokenizer))
            except ValueError:
                # Its own tokenizer needs no bytes; who aligns it with another is told.
                return None
        with atomic_path(path) as temporary:
            temporary.write_bytes(save_arrays(vocabulary.to_arrays()))
        return {"file": path.name, "sha256": hash_path(path)}

    def _find_used_ids(self, shards: list[Shard]) -> np.ndarray:
        """Returns the token ids of the completions and supports, ascending."""
        used = np.zeros(self.description.vocabulary, bool)
        for shard in shards:
            for position in range(len(shard.ids)):
                rows = decode_rows(self.description, shard.read_example(position))
                used[rows["token_ids"]] = True
                if "support" in rows:
                    used[rows["support"][rows["support"] >= 0]] = True
        return np.flatnonzero(used)

    def close(self) -> None:
        """Gives the folder back."""
        self._lock.close()


def _fingerprint(tokenizer: PreTrainedTokenizerBase | VocabularyBytes, ids: list[int]) -> str:
    """Hashes what these ids mean; bytes alone, without rules of splitting, agree with no tokenizer."""
    if isinstance(tokenizer, VocabularyBytes):
        return hash_json([[number, tokenizer.join([number]).hex()] for number in ids])
    return fingerprint_tokenizer(tokenizer, ids)


def refuse_other_folder(folder: Path) -> None:
    """Refuses a folder that holds something else than a cache.

    Raises:
        ValueError: It is no folder, or holds files that no cache has.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is no logit cache (it is no folder); choose another output")
    known = rf"manifest\.json|(head|vocabulary)\.safetensors|{SHARD_NAME.pattern}|\.lock-.*|\..*\.tmp.*"
    strange = [path.name for path in folder.glob("*") if not re.fullmatch(known, path.name)]
    if strange:
        raise ValueError(f"{folder}: is no logit cache (it holds {strange[0]}); choose another output")
