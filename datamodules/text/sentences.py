"""Words, sentences and denials, and what an extractor finds in them."""

import re
from typing import NamedTuple

# Of a sentence's words, which have lost their apostrophes.
NEGATION = re.compile(r"\b(?:not|cannot|never|neither|nor|incorrect|wrong|unlikely|eliminated?)\b|n t\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
# Likewise in any script, where no space has to follow.
ANY_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।])\s*|\n+")
_WORD = re.compile(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+")
# Minus signs as LaTeX and word processors set them, before a number.
_MINUS = re.compile(r"(?<!\w)[\u2212\ufe63\u2013](?=\d)")
_THOUSANDS = re.compile(r"(?<![\w.,])(-?\d{1,3}(?:,\d{3})+)(?![\d,])")


class Extraction(NamedTuple):
    """An extracted answer, the rule that found it, and the characters where its statement begins and ends.

    An answer is empty where several are announced at once ("(c) or (d)"), and so none.
    """

    answer: str
    rule: str
    start: int
    end: int


def squash(text: str) -> str:
    """Returns the text's words and numbers in lower case, one space between them; 1,080 is 1080."""
    text = _MINUS.sub("-", text.casefold())
    return " ".join(_WORD.findall(_THOUSANDS.sub(lambda match: match[1].replace(",", ""), text)))
