"""Numbers in a language's own notation, rewritten in the one that `numbers` reads: 70.000 and 9,33 as 70000 and 9.33.

What is ambiguous by itself, 1.234, is read as the language of its sentence has it; 1.5 and 1,234.5 are read alike
everywhere.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import cache

from datamodules.text.folding import Folded, fold
from datamodules.text.han_numerals import MIXED_NUMERAL, read_han_numeral
from datamodules.text.languages import Language, get_language
from datamodules.text.numbers import write_value

_SPACES = "\u00a0\u2007\u2009\u202f"


@cache
def _compile_numbers(grouping: tuple[str, ...]) -> re.Pattern[str]:
    signs = "".join(re.escape(sign) for sign in grouping if sign != ",") + _SPACES
    return re.compile(
        rf"(?<![\w.,^])(?<![\d.,][ ])(?:"
        rf"(?P<groups>[1-9]\d{{0,2}}(?:(?P<sign>[{signs}])\d{{3}}(?!\d)(?:(?P=sign)\d{{3}}(?!\d))*))"
        r"(?:(?:,|\{,\})(?P<rest>\d+))?(?![.,]?\d)"
        r"|(?P<whole>\d+)(?:,|\{,\})(?P<part>\d+)(?![.,]?\d))"
    )


def rewrite_numbers(text: Folded, language: Language, own: list[tuple[int, int]] | None, is_formula: bool) -> Folded:
    """Returns a text whose numbers with a decimal comma have a decimal point.

    Args:
        text: The text.
        language: Its language.
        own: Where the original is in this language; None where all of it is.
        is_formula: Whether the answer is a formula, in which `(1,5)` has two numbers.
    """
    if language.decimal != ",":
        return text

    def write(match: re.Match[str]) -> str | None:
        if own is not None and not text.is_within(match.start(), own):
            return None
        around = match.string[max(match.start() - 1, 0) : match.start()], match.string[match.end() : match.end() + 1]
        if is_formula and (around[0] in ("(", "[") or around[1] in (")", "]", ";")):
            return None
        if match["whole"]:
            return f"{match['whole']}.{match['part']}"
        digits = re.sub(r"\D", "", match["groups"])
        return f"{digits}.{match['rest']}" if match["rest"] else digits

    return text.replace(_compile_numbers(language.grouping), write)


def rewrite_multiples(text: Folded, language: Language, asked: str) -> Folded:
    """Returns a text without words that multiply the number before them: 3万 and 30 Tausend as 30000.

    Args:
        text: Its numbers are in English notation.
        language: Its language.
        asked: The question; where it asks for so many of them, they multiply nothing.
    """
    if not language.words.multiples:
        return text
    is_han = "\u4e00" in language.letters

    def write(match: re.Match[str]) -> str | None:
        if is_han:
            value = read_han_numeral(match.group().replace(" ", ""))
        else:
            factor = _fold_multiples(language.tag)[match["word"].casefold()]
            value = Fraction(match["number"].replace(",", "")) * factor
        return None if value is None else write_value(value)

    if _compile_asking(language.tag).search(fold(asked).text):
        return text
    return text.replace(MIXED_NUMERAL if is_han else _compile_multiples(language.tag), write)


@cache
def _fold_multiples(tag: str) -> dict[str, int]:
    return {fold(word).text.casefold(): factor for word, factor in get_language(tag).words.multiples.items()}


def _any(words: Iterable[str]) -> str:
    return "|".join(re.escape(fold(word).text) for word in sorted(words, key=len, reverse=True)) or "(?!)"


@cache
def _compile_multiples(tag: str) -> re.Pattern[str]:
    end = r"(?!\w)" if get_language(tag).spaces and tag != "ko" else ""
    words = _any(get_language(tag).words.multiples)
    return re.compile(
        rf"(?<![\w.,])(?P<number>\d{{1,15}}(?:,\d{{3}})*(?:\.\d+)?)\s?(?P<word>{words}){end}", re.IGNORECASE
    )


@cache
def _compile_asking(tag: str) -> re.Pattern[str]:
    words = get_language(tag).words
    return re.compile(rf"(?:{_any(words.how_many)})\s*(?:{_any(words.multiples)})", re.IGNORECASE)
