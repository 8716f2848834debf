"""One form of what scripts write in several: full-width letters, native digits, marks that no one sees.

Vowel signs and the like become letters, so that the words of Indic scripts and Thai hold together in a regular
expression. A folded text knows where each of its characters was.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import regex

from datamodules.text.languages import get_language, list_languages

# Marks of direction, spaces without width, Arabic's stretching and vowel signs.
_UNSEEN = "\u00ad\u0640\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\u064b-\u0652\u0670"
_UNSEEN_SIGN = re.compile(f"[{_UNSEEN}]")
_CLUSTER = regex.compile(r"\X")
_WIDE_COMMA = re.compile("(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_SAME = {
    "أ": "ا",
    "إ": "ا",
    "آ": "ا",
    "ٱ": "ا",
    "ى": "ي",
    "ی": "ي",
    "ک": "ك",
    "٫": ".",
    "٬": ",",
    "﹣": "-",
    "\u3000": " ",
}
_SAME |= {"【": "[", "】": "]", "〔": "[", "〕": "]", "〖": "[", "〗": "]", **dict.fromkeys("「」『』《》〈〉", '"')}
# Their sentence marks need a space after them, which is the reader's to add.
_KEPT = "！？，；"


class Folded(NamedTuple):
    """A text that was changed, and where each of its characters was; one place more than characters."""

    text: str
    places: list[int]

    def replace(self, pattern: re.Pattern[str], write: Callable[[re.Match[str]], str | None]) -> "Folded":
        """Returns the text with each match as `write` has it; what is written anew lies where the match began."""
        parts, places, end = [], list[int](), 0
        for match in pattern.finditer(self.text):
            own = write(match)
            if own is None:
                continue
            parts += [self.text[end : match.start()], own]
            places += self.places[end : match.start()]
            places += [self.places[match.start()]] * len(own)
            end = match.end()
        if not parts:
            return self
        return Folded("".join([*parts, self.text[end:]]), [*places, *self.places[end:]])

    def is_within(self, place: int, spans: list[tuple[int, int]]) -> bool:
        """Whether one of the changed text's places lies within one of these spans of the original."""
        return any(start <= self.places[place] < end for start, end in spans)


@cache
def _make_table() -> dict[int, str]:
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) not in _KEPT}
    table |= {ord(sign): own for sign, own in _SAME.items()}
    for tag in list_languages():
        table |= {ord(digit): str(value) for value, digit in enumerate(get_language(tag).digits)}
    table |= {0x06F0 + value: str(value) for value in range(10)}
    for code in range(0x0900, 0x0F00):
        if unicodedata.category(chr(code)) in ("Mn", "Mc"):
            table[code] = chr(0x20000 + code)
    return table


def fold(text: str) -> Folded:
    """Returns a text in that form."""
    text = _WIDE_COMMA.sub(",", text)
    table = _make_table()
    if unicodedata.is_normalized("NFC", text) and not _UNSEEN_SIGN.search(text):
        return Folded(text.translate(table), [*range(len(text) + 1)])
    parts, places = [], list[int]()
    for cluster in _CLUSTER.finditer(text):
        own = _UNSEEN_SIGN.sub("", unicodedata.normalize("NFC", cluster.group())).translate(table)
        parts.append(own)
        places += [cluster.start() + min(number, len(cluster.group()) - 1) for number in range(len(own))]
    return Folded("".join(parts), [*places, len(text)])
