"""Tests of texts of unknown origin, made safe to show."""

import pytest

from datamodules.text.plain_text import align_columns, clean, clean_line, describe_error, shorten


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 汉\tx", "plain é 汉\tx"),
        ("a\x1b[31mb\x07", "a\ufffd[31mb\ufffd"),
        ("a\x00b\x7fc\x9bd", "a\ufffdb\ufffdc\ufffdd"),
        ("\u202eevil\u2066", "\ufffdevil\ufffd"),
        ("a\u2028b\ud800", "a\ufffdb\ufffd"),
        ("a\r\nb\rc", "a\nb\ufffdc"),
    ],
)
def test_what_is_not_seen_is_marked(text: str, expected: str) -> None:
    assert clean(text) == expected
    assert clean_line(text) == expected.replace("\n", " ")
    clean(text).encode()


def test_a_text_is_made_to_fit() -> None:
    assert shorten("abcdef", 6) == "abcdef" and shorten("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\n  two"), "one two"),
        (ValueError("wrong\n\nhint: and so on"), "wrong"),
        (ValueError('Parser key "x":\n\n  - not a path\n\nhint'), 'Parser key "x": - not a path'),
        (ValueError("ends:"), "ends:"),
        (ValueError(""), "ValueError"),
        (KeyError("name"), "KeyError: 'name'"),
    ],
)
def test_an_error_is_one_line(error: Exception, expected: str) -> None:
    assert describe_error(error) == expected


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert align_columns([("a", "bb", ""), ("ccc", "d", "e")]) == "a    bb\nccc  d   e"
