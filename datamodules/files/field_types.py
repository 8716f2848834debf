"""Types of the fields of records that others wrote."""

import re
from typing import Any

from datamodules.text.plain_text import is_unseen


def check_text(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Returns a field's text.

    Raises:
        ValueError: It is no text, is empty, or holds half a character, which no file could be written with, or
            nothing but characters that no one sees.
    """
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, found {type(value).__name__}: {shorten(value)}")
    if not may_be_empty and not value:
        raise ValueError(f"`{name}` must not be empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` holds half a surrogate pair, which is no character: {shorten(value)}") from None
    if is_unseen(value):
        raise ValueError(f"`{name}` holds nothing but control characters: {shorten(value)}")
    return value


def check_id(value: Any, name: str) -> str:
    """Returns a field's text likewise, where it names a record: in tables, logs and messages, on one line.

    Raises:
        ValueError: It is no text, is empty, or holds a control character.
    """
    text = check_text(value, name)
    if re.search(r"[\x00-\x1f\x7f-\x9f]", text):
        raise ValueError(f"`{name}` holds a control character: {shorten(value)}")
    return text


def shorten(value: Any) -> str:
    """Returns a value as an error shows it: its beginning, in ASCII."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
