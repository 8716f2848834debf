"""What bytes each token of a vocabulary stands for, so that two tokenizers meet in the text that both write."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

SPECIAL, END, FALLBACK = 1, 2, 4
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WAY_OUT = "so the bytes of its tokens are unknown; set data.alignment to refuse, or take another model"


@dataclass(frozen=True, eq=False)
class VocabularyBytes:
    """The bytes of every token id of a tokenizer, as three arrays that can be stored.

    Token i stands for `data[offsets[i] : offsets[i + 1]]`, which need not be whole characters. A special token stands
    for nothing: what is there is its name. So does an id that no token has, which is flagged like one, without a name.

    Attributes:
        offsets: uint32 [V + 1]; ascending from 0 to the length of `data`.
        data: uint8; the tokens' bytes, or names, in the order of ids.
        flags: uint8 [V]; SPECIAL, END with it, or FALLBACK of a byte that is written only where no other token can be.
    """

    offsets: np.ndarray
    data: np.ndarray
    flags: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> "VocabularyBytes":
        """Returns what `to_arrays` gave.

        Args:
            arrays: `offsets`, `bytes` and `flags`.
            name: Of the file they come from.

        Raises:
            ValueError: They do not fit each other.
        """
        types = {"offsets": np.uint32, "bytes": np.uint8, "flags": np.uint8}
        if set(arrays) != set(types) or any(arrays[key].dtype != dtype for key, dtype in types.items()):
            raise ValueError(f"{name}: does not hold the bytes of a vocabulary; capture again")
        offsets, data, flags = (arrays[key] for key in types)
        fits = len(offsets) == len(flags) + 1 and offsets[0] == 0 and offsets[-1] == len(data)
        if not fits or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"{name}: its tokens' offsets do not fit their bytes; capture again")
        return cls(offsets, data, flags)

    @classmethod
    def from_tokens(cls, tokens: Sequence[bytes], flags: Sequence[int]) -> "VocabularyBytes":
        """Returns the vocabulary of these tokens, or names of special ones, in the order of ids."""
        offsets = np.concatenate([[0], np.cumsum([len(token) for token in tokens], dtype=np.int64)])
        data = np.frombuffer(b"".join(tokens), np.uint8)
        return cls(offsets.astype(np.uint32), data, np.array(flags, np.uint8))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns `offsets`, `bytes` and `flags`, to be stored."""
        return {"offsets": self.offsets, "bytes": self.data, "flags": self.flags}

    def __len__(self) -> int:
        return len(self.flags)

    @cached_property
    def entries(self) -> list[bytes]:
        """The bytes of every id, or its name where it is special."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of every id; none of a special one."""
        is_special = (self.flags & SPECIAL).tolist()
        return [b"" if special else entry for entry, special in zip(self.entries, is_special, strict=True)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of bytes of every id, int64 [V]."""
        return np.where(self.flags & SPECIAL, 0, np.diff(self.offsets.astype(np.int64)))

    @cached_property
    def controls(self) -> dict[bytes, int]:
        """The ids of special tokens by name, without those that end a turn or have no name."""
        numbers = np.flatnonzero((self.flags & (SPECIAL | END)) == SPECIAL).tolist()
        return {self.entries[number]: number for number in numbers if self.entries[number]}

    @cached_property
    def ends(self) -> list[int]:
        """The ids that end a turn, ascending."""
        return [int(number) for number in np.flatnonzero(self.flags & END)]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tokens and flags; names do not count, which caches of earlier versions do not have."""
        digest = hashlib.sha256(np.uint64(len(self)).tobytes())
        digest.update(np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.uint32).tobytes())
        digest.update(self.flags.tobytes())
        digest.update(b"".join(self.tokens))
        return digest.hexdigest()

    def join(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Returns the bytes that tokens make together."""
        return b"".join([self.tokens[number] for number in np.asarray(ids).tolist()])

    def find_lead(self, ids: Sequence[int] | np.ndarray, text: bytes) -> int | None:
        """Says whether tokens make a text, byte for byte.

        Returns:
            How many bytes the tokens write before the text: 0, or 1 for the space that SentencePiece puts before a
            text's first word; None where they make another text, as those of a normalizing tokenizer do, or those
            of a text with a character that the vocabulary does not have.
        """
        joined = self.join(ids)
        if joined == text:
            return 0
        return 1 if joined == b" " + text else None


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> VocabularyBytes:
    """Reads the bytes of every token id from a tokenizer.

    A byte-level vocabulary's characters stand for one byte each (GPT-2's table). SentencePiece's "▁" is a space, and
    its `<0xNN>` a byte. An added token stands for its own name in UTF-8, a special one for nothing. A tokenizer's
    `offset_mapping` says less: it trims spaces, and gives the parts of a split character one place.

    Args:
        tokenizer: A fast tokenizer.
        ends: The ids that end a turn; see `find_end_tokens`.

    Raises:
        ValueError: Its tokens are of a kind whose bytes cannot be known.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    is_byte_level, has_bytes = _read_decoder(state["decoder"], tokenizer.name_or_path)
    alphabet = {character: value for value, character in enumerate(list_byte_characters())}
    controls = set(tokenizer.all_special_ids) | {token["id"] for token in state["added_tokens"] if token["special"]}
    names = tokenizer.get_vocab()
    size = max(names.values()) + 1
    tokens, flags = [b""] * size, [SPECIAL] * size
    for name, number in names.items():
        if number in controls:
            tokens[number] = name.encode()
            continue
        flags[number] = 0
        if is_byte_level and all(character in alphabet for character in name):
            tokens[number] = bytes(alphabet[character] for character in name)
        elif has_bytes and (byte := _BYTE_NAME.fullmatch(name)):
            tokens[number], flags[number] = bytes.fromhex(byte[1]), FALLBACK
        else:
            # The byte-level decoder, too, takes a name that is not all of its alphabet as it stands.
            tokens[number] = (name if is_byte_level else name.replace(_SPACE, " ")).encode()
    for token in state["added_tokens"]:
        if token["id"] not in controls:
            tokens[token["id"]] = token["content"].encode()
    for number in ends:
        flags[number] |= SPECIAL | END
    return VocabularyBytes.from_tokens(tokens, flags)


def _read_decoder(decoder: dict[str, Any] | None, name: str) -> tuple[bool, bool]:
    """Returns whether a tokenizer's decoder is byte-level, and whether it reads `<0xNN>` as a byte."""
    if decoder is None:
        raise ValueError(f"{name}: its tokenizer has no decoder, {_WAY_OUT}")
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    for step in steps:
        kind = step["type"]
        known = kind in ("ByteLevel", "ByteFallback", "Fuse", "Strip")
        known |= kind == "Metaspace" and step["replacement"] == _SPACE
        known |= kind == "Replace" and (step["pattern"], step["content"]) == ({"String": _SPACE}, " ")
        if not known:
            raise ValueError(f"{name}: its tokenizer decodes with {kind}, {_WAY_OUT}")
    is_byte_level = "ByteLevel" in kinds
    if is_byte_level == bool({"Metaspace", "Replace"} & set(kinds)):
        raise ValueError(f"{name}: its tokenizer decodes with {', '.join(kinds)}, {_WAY_OUT}")
    return is_byte_level, "ByteFallback" in kinds


def list_byte_characters() -> list[str]:
    """Returns the character that stands for each of the 256 bytes in a byte-level vocabulary (GPT-2's table)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    hidden = [value for value in range(256) if value not in visible]
    return [chr(value) if value in visible else chr(256 + hidden.index(value)) for value in range(256)]
