"""A text's words, also in scripts that are written without spaces.

Such scripts have no words that a rule finds, so each of their characters, with its combining marks, counts as a word.
"""

import regex

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_CHARACTER = regex.compile(rf"[{_SPACELESS}]\p{{M}}*")


def separate_characters(text: str) -> str:
    """Returns the text with spaces around the characters of scripts without spaces; other texts as they are."""
    separated: str = _CHARACTER.sub(r" \g<0> ", text)
    return separated


def count_words(text: str) -> int:
    """Returns the number of a text's words: what is between spaces, or a character of a script without them."""
    return len(separate_characters(text).split())
