"""Types of the fields of records that others wrote."""

from typing import Any


def check_text(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Returns a field's text.

    Raises:
        ValueError: It is no text, is empty, or holds half a character, which no file could be written with.
    """
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, found {type(value).__name__}: {shorten(value)}")
    if not may_be_empty and not value:
        raise ValueError(f"`{name}` must not be empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` holds half a surrogate pair, which is no character: {shorten(value)}") from None
    return value


def shorten(value: Any) -> str:
    """Returns a value as an error shows it: its beginning, in ASCII."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
