"""Reads a logit cache at random, by example; `logit_format` says how it lies on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.examples.tokenization import Example, fingerprint_tokenizer
from datamodules.files.atomic import hash_path, write_text
from datamodules.logit_cache.codec import decode_rows, decode_tokens
from datamodules.logit_cache.format import (
    OTHER_FILES,
    SCHEMA_VERSION,
    UNKNOWN_TOKENIZER,
    CacheDescription,
    read_manifest,
    unpack_ids,
)
from datamodules.logit_cache.shard import Shard
from datamodules.text.token_bytes import VocabularyBytes

MISSING_EXAMPLES = ".missing-examples.txt"


def index_shards(shards: Sequence[Shard]) -> dict[str, tuple[int, int]]:
    """Returns (shard, number within it) of every example by id.

    Raises:
        ValueError: An example is in two shards.
    """
    places: dict[str, tuple[int, int]] = {}
    for index, shard in enumerate(shards):
        for position, identifier in enumerate(shard.ids):
            if identifier in places:
                other = shards[places[identifier][0]].path.name
                raise ValueError(f"{shard.path}: example {identifier!r} is in two shards, also in {other}; delete one")
            places[identifier] = index, position
    return places


class LogitCache:
    """Reads a logit cache at random, by example; shards are mapped into memory, never loaded whole.

    Opening reads and checks the manifest and the shards' indices; reading checks what is read. A process that is
    forked or spawned maps the shards itself, and all share one page cache.

    Args:
        folder: The cache.

    Raises:
        ValueError: It is missing, unfinished, of another schema, or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.description = CacheDescription.from_json(self.manifest)
        self._shards = []
        for entry in self.manifest["shards"]:
            path = folder / entry["file"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ValueError(f"{path}: missing, or not the file that manifest.json lists; capture again")
            self._shards.append(Shard(path, self.description))
        self._places = index_shards(self._shards)

    def __contains__(self, example_id: str) -> bool:
        return example_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    @property
    def num_rows(self) -> int:
        """Number of completion tokens."""
        return sum(shard.bounds["rows"][-1] for shard in self._shards)

    def _fingerprint(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return fingerprint_tokenizer(tokenizer, unpack_ids(self.manifest["ids_in_use"]).tolist())

    def shares_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Says whether the token ids in use mean the same to a tokenizer."""
        return bool(self.manifest["fingerprint_in_use"] == self._fingerprint(tokenizer))

    @property
    def knows_bytes(self) -> bool:
        """Whether it says what its token ids mean, so that other tokenizers' can be aligned with them."""
        return self.manifest.get("token_bytes") is not None

    def check(
        self, student: str, tokenizer: PreTrainedTokenizerBase, prompt_id: str | None, examples: Sequence[Example]
    ) -> None:
        """Refuses a cache that was not made of these examples, for this tokenizer and prompt.

        The tokenizers are compared on the token ids in use: one with a padded or extended vocabulary passes, a
        retrained one does not. All missing examples are listed in the cache's `.missing-examples.txt`.

        Args:
            student: The student's name, for the message.
            tokenizer: The student's.
            prompt_id: Of the student's prompt; None where the teacher may have read another before the completions.
            examples: What will be read.

        Raises:
            ValueError: Tokenizer, prompt or text differ, or examples are missing.
        """
        made = self.description
        if not self.shares_tokenizer(tokenizer):
            own, other = self.manifest["fingerprint_in_use"], self._fingerprint(tokenizer)
            raise ValueError(
                f"{self.folder}: teacher {made.teacher!r} (tokenizer {own}) and student {student!r} (tokenizer "
                f"{other}) do not share a tokenizer; a training can use its logits with data.alignment.kind"
            )
        if prompt_id is not None and made.prompt_id != prompt_id:
            raise ValueError(f"{self.folder}: captured with prompt {made.prompt_id}, but the data uses {prompt_id}")
        self._check_texts(examples, of_completions=prompt_id is None)

    def check_completions(self, examples: Sequence[Example]) -> None:
        """Refuses a cache that was not made of these completions, whatever stood before them, in whatever tokens.

        Rows that were kept while a teacher wrote are of its own words, to which a completion may have added the
        prompt's answer sentence: then its text is another, which shows where its tokens are aligned.

        Raises:
            ValueError: Examples are missing, or a completion's text differs.
        """
        self._check_texts(examples, of_completions=True)

    def require_token_bytes(self) -> None:
        """Raises a ValueError if the cache does not know its tokens' bytes."""
        if self.manifest["schema"] < SCHEMA_VERSION:
            raise ValueError(
                f"{self.folder}: captured by an earlier version, without the bytes of its tokens, which data.alignment "
                "needs; capture again into another folder"
            )
        if self.manifest["token_bytes"] is None:
            raise ValueError(
                f"{self.folder}: the bytes of its teacher's tokens are unknown; set data.alignment.kind to refuse, or "
                "take another teacher"
            )

    def _check_texts(self, examples: Sequence[Example], of_completions: bool) -> None:
        if missing := [example.id for example in examples if example.id not in self]:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {len(examples)} examples are not cached, the first is "
                f"{missing[0]!r}{self._list_missing(missing)}; run python -m scripts.cache_logits on "
                "the same rationales"
            )
        if of_completions and self.description.tokenizer_fingerprint == UNKNOWN_TOKENIZER:
            return
        for example in examples:
            number, position = self._places[example.id]
            shard = self._shards[number]
            hashes, own = shard.text_hashes, example.text_hash
            if of_completions:
                assert shard.completion_hashes is not None
                hashes, own = shard.completion_hashes, example.completion_hash
            if hashes[position] != int(own, 16):
                raise ValueError(
                    f"{self.folder}: the text of {example.id!r} was changed after its logits were cached; capture again"
                )

    def _list_missing(self, missing: list[str]) -> str:
        """Writes the missing examples' ids to a file, and returns where, for the message."""
        path = self.folder / MISSING_EXAMPLES
        try:
            write_text(path, "".join(f"{identifier}\n" for identifier in missing))
        except (ValueError, OSError):
            # A cache that others own may be read-only; and what is missing matters more than a full disk.
            return ""
        return f", all are listed in {path}"

    def read(self, *examples: Example) -> dict[str, np.ndarray]:
        """Returns the rows of the examples, one after the other, decoded; see `decode_rows`.

        Raises:
            ValueError: An example's bytes are damaged, or its cached tokens are not the example's.
        """
        places = [self._places[example.id] for example in examples]
        parts = self._slice([example.id for example in examples])
        join = self._shards[0].join_examples
        rows = decode_rows(self.description, join(parts))
        tokens = [example.token_ids[example.num_prompt_tokens :] for example in examples]
        if not np.array_equal(rows["token_ids"], np.concatenate(tokens)):
            for example, part, own, (number, _) in zip(examples, parts, tokens, places, strict=True):
                if not np.array_equal(decode_tokens(join([part])), own):
                    path = self._shards[number].path
                    raise ValueError(f"{path}: the cached tokens of {example.id!r} are not those of the completion")
        return rows

    def _slice(self, ids: Sequence[str]) -> list[list[memoryview]]:
        places = [self._places[identifier] for identifier in ids]
        return [self._shards[number].slice_example(position) for number, position in places]

    def read_foreign(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the rows of the examples of these ids, of whatever tokens, one after the other, decoded.

        Raises:
            ValueError: An example's bytes are damaged.
        """
        return decode_rows(self.description, self._shards[0].join_examples(self._slice(ids)))

    def read_tokens(self, identifier: str) -> np.ndarray:
        """Returns the teacher's token ids of an example's completion, int32.

        Raises:
            ValueError: The example's bytes are damaged.
        """
        return decode_tokens(self._shards[0].join_examples(self._slice([identifier])))

    def read_all(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yields (example id, rows) of every example, in the order of the disk.

        Raises:
            ValueError: An example's bytes are damaged.
        """
        for shard in self._shards:
            for position, identifier in enumerate(shard.ids):
                yield identifier, decode_rows(self.description, shard.read_example(position))

    def read_head(self) -> dict[str, Tensor]:
        """Returns `weight` and, if there is one, `bias` of the output head of a cache of the kind `hidden`.

        Raises:
            ValueError: The file is missing or damaged.
        """
        return load_file(self._locate("head"))

    def read_vocabulary(self) -> VocabularyBytes:
        """Returns what the token ids mean.

        Raises:
            ValueError: The file is missing or damaged.
        """
        path = self._locate("token_bytes")
        return VocabularyBytes.from_arrays(load_arrays(path), str(path))

    def _locate(self, name: str) -> Path:
        path = self.folder / OTHER_FILES[name]
        if not path.is_file() or hash_path(path) != self.manifest[name]["sha256"]:
            raise ValueError(f"{path}: missing, or not the file that manifest.json lists; capture again")
        return path

    def verify(self) -> None:
        """Reads every byte of the cache.

        Raises:
            ValueError: A file is not the one that was written, or an example's bytes are damaged.
        """
        for entry, shard in zip(self.manifest["shards"], self._shards, strict=True):
            if hash_path(shard.path) != entry["sha256"]:
                # Names the example, where one is concerned.
                for position in range(len(shard.ids)):
                    shard.slice_example(position)
                raise ValueError(f"{shard.path}: not the file that manifest.json lists; capture again")
        for name in OTHER_FILES:
            if self.manifest.get(name) is not None:
                self._locate(name)
