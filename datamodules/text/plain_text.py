"""Text of unknown origin, such as a teacher's name, made safe to show."""

import re
from collections.abc import Sequence

# What moves a cursor, ends a string, turns the reading direction, or cannot be encoded: control characters but tab and
# line feed, the marks of bidirectional text, the separators that some readers take for line ends, lone surrogates.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def is_unseen(text: str) -> bool:
    """Whether a text has characters beside white space, and all of them are unseen."""
    return bool(text.strip()) and not _UNSEEN.sub("", text).strip()


def clean(text: str) -> str:
    """Returns a text whose unseen characters are each a replacement character; every encoder and terminal takes it."""
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n"))


def clean_line(text: str) -> str:
    """Returns a text likewise, on one line: for a terminal, a log, a table's cell."""
    return " ".join(clean(text).split("\n"))


def shorten(text: str, length: int) -> str:
    """Returns a text of at most so many characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def abridge(text: str, length: int) -> str:
    """Returns a text of at most so many characters: its beginning, and its end, where the last of its reasons is."""
    end = length // 3
    return text if len(text) <= length else f"{text[: length - end - 3]} … {text[-end:]}"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def describe_error(error: BaseException) -> str:
    """Returns an exception's message on one line, without what comes after an empty line; else the exception's name.

    What ends with a colon goes on after the empty line.
    """
    message, *rest = (" ".join(part.split()) for part in str(error).strip().split("\n\n"))
    while message.endswith(":") and rest:
        message = f"{message} {rest.pop(0)}"
    if isinstance(error, LookupError) or not message:
        return f"{type(error).__name__}: {message}".removesuffix(": ")
    return message
