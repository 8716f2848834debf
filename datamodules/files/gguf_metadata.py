"""The texts in a GGUF file's metadata, read in a moment; the package gguf unpacks every token's name, for seconds."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

# How `struct` calls each of GGUF's types of numbers.
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


def read_texts(path: Path) -> dict[str, str]:
    """Returns the texts in a GGUF file's metadata, by key; numbers and lists are passed over.

    Raises:
        ValueError: The file is damaged, or no GGUF file.
    """
    size, texts = path.stat().st_size, dict[str, str]()
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF" or _read(file, "I") not in (2, 3):
                raise ValueError("it is no GGUF file of version 2 or 3")
            _read(file, "Q")
            for _ in range(_read(file, "Q")):
                key, kind = _read_text(file, size), _read(file, "I")
                if kind == _TEXT:
                    texts[key] = _read_text(file, size)
                else:
                    _pass(file, kind)
    # A damaged number may be a type that there is none of, or a length without end.
    except (ValueError, KeyError, OSError, OverflowError, RecursionError, struct.error) as error:
        raise ValueError(f"{path}: no GGUF metadata can be read: {error}") from None
    return texts


def _read(file: BinaryIO, kind: str) -> Any:
    [number] = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))
    return number


def _read_text(file: BinaryIO, size: int) -> str:
    length = _read(file, "Q")
    if length > size - file.tell():
        raise ValueError(f"a text of {length} bytes goes beyond its end")
    return file.read(length).decode()


def _pass(file: BinaryIO, kind: int) -> None:
    """Goes past a value."""
    if kind == _TEXT:
        file.seek(_read(file, "Q"), 1)
    elif kind != _LIST:
        file.seek(struct.calcsize(_NUMBERS[kind]), 1)
    else:
        own, number = _read(file, "I"), _read(file, "Q")
        if own in _NUMBERS:
            file.seek(number * struct.calcsize(_NUMBERS[own]), 1)
        else:
            for _ in range(number):
                _pass(file, own)
