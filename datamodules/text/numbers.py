r"""Numbers as people and models write them, read as one value: `-5`, `1{,}080`, `2 1/2`, `\frac34`, `1.5e6`, `3 dozen`.

A unit, a currency or a percent sign plays no part, and neither does a unit's exponent (`12 cm^2`). A word that
multiplies does (`2.5 million`), unless the question asks for just these ("How many dozen eggs"). A calculation that was
left undone, `48 + 24`, has the value it would have had; its terms are not answers.
"""

import ast
import operator
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from datamodules.text.expressions import normalize_number, write_fraction

_MINUS = "-\u2212\u2013\ufe63"
# Between groups of three digits, the same throughout a number; a plain space separates two numbers as often.
_SEPARATOR = r"\{\\?,\}|,\\!|\\[,!; ]|[ ,_'\u2019\u00a0\u2007\u2009\u202f]"
_DIGITS = r"\d{1,18}"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_WHOLE = (
    rf"(?:\d{{1,3}}(?P<separator>{_SEPARATOR})\d{{3}}(?:(?P=separator)\d{{3}})*(?!\d)"
    r"|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)|\d+)"
)
# Above and below a fraction's line: a number, or a calculation that was left undone.
_TERM = rf"(?:{_DIGITS}(?:,\d{{3}}(?!\d))*(?:\.{_DIGITS})?)"
_PART = rf"[{_MINUS}]?\s?{_TERM}(?:\s*(?:[{_MINUS}+*/×·÷]|\\(?:times|cdot|div)(?![A-Za-z]))\s*{_TERM}){{0,9}}"
_LATEX_FRACTION = (
    rf"\\[dtc]?frac\s*(?:\{{\s*(?P<above>{_PART})\s*\}}|(?P<digit_above>\d))"
    rf"\s*(?:\{{\s*(?P<below>{_PART})\s*\}}|(?P<digit_below>\d))"
)
_POWER = (
    rf"(?:[eE](?P<power>[+{_MINUS}]?\d{{1,2}})(?!\w)"
    r"|\s?(?:\\times|\\cdot|[×·*x])\s?10\s?"
    rf"(?:\^\s?\{{?\s?(?P<exponent>[{_MINUS}]?\d{{1,2}})\s?\}}?|(?P<raised>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,3}}))"
    r"|\^\{?(?P<to>-?\d{1,2})\}?)"
)
NUMBER = re.compile(
    # What it may begin with, so that all other places are passed by at once; then: not within a word or an exponent.
    rf"(?=[{_MINUS}$\u20ac£¥₹\d.\\U{_VULGAR}])(?<![\w.^±√])(?<![\^_]\{{)(?<!\\pm)(?<!\\pm\s)(?<!\\sqrt\{{)"
    rf"(?P<minus>[{_MINUS}])?(?P<currency>(?:US)?\\?\$\s?|[\u20ac£¥₹]\s?)?(?P<late_minus>[{_MINUS}])?"
    rf"(?:(?:(?P<latex_whole>{_DIGITS})\s?)?{_LATEX_FRACTION}"
    rf"|(?<!\d/)(?:(?P<slash_whole>{_DIGITS})(?:-|\s(?:and\s)?))?"
    rf"(?P<top>{_DIGITS})\s?[/\u2044]\s?(?P<bottom>{_DIGITS})(?![\d/\u2044]|[.,]\d)"
    rf"|(?:(?P<vulgar_whole>{_DIGITS})\s?)?(?P<vulgar>[{_VULGAR}])"
    rf"|(?P<plain>{_WHOLE}(?:\.\d+)?|\.\d+){_POWER}?)"
)
_MULTIPLES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
_MULTIPLE = re.compile(rf"(?:\s|\\ |~)*({'|'.join(_MULTIPLES)})s?\b(?!-)", re.IGNORECASE)
_COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORDS = re.compile(
    rf"(?:(?P<half>half )?an?|(?P<count>{'|'.join(_COUNTS)}))\s+(?P<word>{'|'.join(_MULTIPLES)})s?\b(?!-)",
    re.IGNORECASE,
)
_PARTS = {"half": Fraction(1, 2), "quarter": Fraction(1, 4), "third": Fraction(1, 3)}
_AND_PART = re.compile(rf"\s+and\s+(?:an?|one)[\s-]({'|'.join(_PARTS)})\b", re.IGNORECASE)
_NEGATIVE = re.compile(
    r"(?:\bnegative|(?:\b(?:is|was|be|equals?|to|or|about|exactly)|[:=])\s*minus)\s+\$?$", re.IGNORECASE
)
# After an amount of money only: elsewhere they are units.
_SUFFIX = re.compile(r"\s?(k|m|bn|b)(?![\w^-])", re.IGNORECASE)
_SUFFIXES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion"}
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SIGNS = {"×": "*", "·": "*", "x": "*", "X": "*", "÷": "/", r"\times": "*", r"\cdot": "*", r"\div": "/"}
# Next to a parenthesis no sign is a product: 2(3+4).
_SIGNS |= {**dict.fromkeys(_MINUS, "-"), "": "*"}
# From one term of a calculation to the next, with the first one's unit. A hyphen without spaces may make a range.
_LINK = re.compile(
    r"(?:(?:\s?[A-Za-z]+){0,2}?(?P<close>[\s)}$]*)(?P<sign>[+×·÷]|(?<=\s)\*(?=[\s(])|(?<=[\d)])\*(?=[\d($])"
    rf"|\\(?:times|cdot|div)(?![A-Za-z])|(?<=[\s)])[{_MINUS}](?=[\s(])|[xX](?=\s*[\d$(])|(?<=\d)(?=\(\d))"
    r"|(?P<own_close>[\s)}$]*)(?P<slash>(?<=[\s)])/(?=[\s(]|\Z)))(?P<open>[\s({]*)"
)
# What comes before a range: "Districts 1 - 3".
_RANGE_OF = re.compile(r"\b(?:[A-Z][a-z]+s|from|between|pages?|chapters?|years?|ages?|grades?|steps?|numbers|days)\s*$")
# A range, a date, a time, a ratio, a version, numbers in a row or one with a decimal comma; a part of something else.
_RANGE = re.compile(
    rf"[{_MINUS}/:.,]\$?\d|\s?(?:√|\\sqrt)|\s+to\s+\$?\d+(?!\d|\s(?:decimal|significant|places?|d\.?p|s\.?f))|\s?\\?%\s+of\s+\$?\d"
)
_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(formula: str) -> Fraction | None:
    """Returns the value of a formula of numbers, `+ - * /` and parentheses, or None for anything else."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.BinOp(left, operation, right) if type(operation) in _OPERATIONS:
                return _OPERATIONS[type(operation)](value(left), value(right))
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.Constant(int() | float() as number):
                return Fraction(str(number))
        raise ValueError(formula)

    try:
        return value(ast.parse(formula.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def write_value(value: Fraction) -> str:
    """Writes a value the way answers are compared; one without a finite decimal form to twelve digits."""
    exact = write_fraction(value)
    return exact if "\\" not in exact else normalize_number(f"{float(value):.12g}")


def _read_value(match: re.Match[str]) -> Fraction | None:
    """Returns the value of a match of NUMBER, without words that multiply it; None if it has none."""
    found = match.groupdict()
    is_negative = bool(found["minus"] or found["late_minus"])
    if found["plain"]:
        digits = re.sub(_SEPARATOR, "", found["plain"])
        if len(digits) > 99:
            return None
        exponent = found["power"] or found["exponent"] or (found["raised"] or "").translate(_RAISED) or "0"
        if not re.fullmatch(r"[-+]?\d+", exponent := re.sub(rf"[{_MINUS}]", "-", exponent)):
            return None
        # Fraction reads ASCII digits only.
        value = Fraction(normalize_number(digits))
        if found["to"] and (value == 0 or len(digits) > 12):
            return None
        value = value ** int(found["to"]) if found["to"] else value * Fraction(10) ** int(exponent)
    else:
        whole = found["latex_whole"] or found["slash_whole"] or found["vulgar_whole"] or "0"
        if found["vulgar"]:
            part = Fraction(unicodedata.numeric(found["vulgar"])).limit_denominator(10)
        else:
            above = _read_part(found["above"] or found["digit_above"] or found["top"])
            below = _read_part(found["below"] or found["digit_below"] or found["bottom"])
            if not above or not below:
                # A zero, or a division by it.
                return above if below else None
            part = above / below
        value = int(whole) + part
    return -value if is_negative else value


def _read_part(text: str) -> Fraction | None:
    """Returns the value of what stands above or below a fraction's line; None if it divides by zero."""
    text = re.sub(r"\\(?:times|cdot|div)", lambda match: _SIGNS[match.group()], text.replace(",", ""))
    return calculate("".join(_SIGNS.get(sign, sign) for sign in text))


def read_number(text: str, match: re.Match[str], asked: str) -> tuple[str, int]:
    """Returns a number's value, as answers are compared, and where it ends.

    Args:
        text: Where NUMBER matched.
        match: The match.
        asked: The question's text.
    """
    end = match.end()
    multiple, factor = _MULTIPLE.match(text, end), Fraction(1)
    if multiple or (match["currency"] and (multiple := _SUFFIX.match(text, end))):
        word, end = multiple.group(1).lower(), multiple.end()
        factor = _find_factor(_SUFFIXES.get(word, word), asked)
    part = _AND_PART.match(text, end) if match["plain"] else None
    is_plain = match["plain"] and match.end("plain") == match.end() and factor == 1 and part is None
    value = None if is_plain else _read_value(match)
    if value is not None:
        if part:
            own = _PARTS[part.group(1).lower()]
            value, end = value - own if value < 0 else value + own, part.end()
        return write_value(value * factor), end
    # Of a fraction without value, what stands above, or begins it.
    plain = match["plain"] or match["top"] or match["digit_above"] or re.findall(r"\d+", match["above"])[0]
    sign = "-" if match["minus"] or match["late_minus"] else ""
    return normalize_number(sign + re.sub(rf"{_SEPARATOR}|[{_MINUS}]", "", plain)), end


def _find_factor(word: str, asked: str) -> Fraction:
    """Returns what a word multiplies by: nothing, where the question asks for so many of them."""
    asks = rf"\bhow (?:many|much) (?:\w+ )?{word}|\bin {word}s\b|\bnumber of {word}"
    return Fraction(1 if re.search(asks, asked, re.IGNORECASE) else _MULTIPLES[word])


def read_words(text: str, start: int, asked: str) -> tuple[str, int] | None:
    """Returns the value of "a dozen", "half a million", "two dozen" at a place, and where it ends."""
    if not (match := _WORDS.match(text, start)):
        return None
    count = _COUNTS.index(match["count"].lower()) + 2 if match["count"] else Fraction(1, 2 if match["half"] else 1)
    return write_value(_find_factor(match["word"].lower(), asked) * count), match.end()


def is_negative(text: str, place: int) -> bool:
    """Whether words before a place make the number there negative: "is minus 5"; not "10 minus 5"."""
    return _NEGATIVE.search(text[max(0, place - 20) : place]) is not None


def negate(number: str) -> str:
    """Returns the number that is this one's opposite, as answers are compared."""
    return number.removeprefix("-") if number.startswith("-") or number == "0" else f"-{number}"


def read_calculation(text: str, match: re.Match[str], asked: str) -> tuple[str | None, int]:
    """Returns the value of the calculation that a number begins, and where it ends; the number's own if it begins none.

    The value is None if it is not clear which, as of a range.
    """
    number, end = read_number(text, match, asked)
    if not (link := _LINK.match(text, end)):
        return (None if _RANGE.match(text, end) else number), end
    opened = re.search(r"[(\s$]*$", text[: match.start()])
    assert opened is not None
    depth = opened.group().count("(")
    terms, value = ["(" * depth], _read_value(match)
    while True:
        if value is None or text[end : end + 2].lstrip("\\").startswith("%"):
            return (None if len(terms) > 1 else number), end
        terms.append(f"({value})")
        following = NUMBER.match(text, link.end()) if link else None
        if link is None or following is None:
            # "5 + x", "(120 /": what it adds is unknown, or torn off.
            if link and link["sign"] != "" and (link["sign"] or "/") in "+×÷/":
                return None, link.end()
            break
        closed = min((link["close"] or link["own_close"] or "").count(")"), depth)
        depth += link["open"].count("(") - closed
        terms.append(")" * closed + _SIGNS.get(link["sign"], link["sign"] or "/") + "(" * link["open"].count("("))
        value = _read_value(following)
        end = read_number(text, following, asked)[1]
        link = _LINK.match(text, end)
    if len(terms) == 2:
        return number, end
    total = calculate("".join(terms) + ")" * depth)
    return (None if total is None else write_value(total)), end


def read_last_number(text: str, asked: str) -> tuple[str, int, int] | None:
    """Returns the value of the last number, or of the calculation that it ends, and where that begins and ends."""
    matches = list(NUMBER.finditer(text))
    if not matches:
        return None
    first = len(matches) - 1
    while first and _continues(text, matches[first - 1].end(), matches[first].start()):
        first -= 1
    if first < len(matches) - 1 and not _is_range(text, matches[first:]):
        value, end = read_calculation(text, matches[first], asked)
        if value is not None and end >= matches[-1].end():
            return value, matches[first].start(), end
    value, end = read_number(text, matches[-1], asked)
    return negate(value) if is_negative(text, matches[-1].start()) else value, matches[-1].start(), end


def _is_range(text: str, matches: list[re.Match[str]]) -> bool:
    """Whether a dash between two numbers says from where to where, "Districts 1 - 3", not a difference."""
    gap = text[matches[0].end() : matches[-1].start()]
    return (
        len(matches) == 2 and gap.strip() in _MINUS and _RANGE_OF.search(text[: matches[0].start()][-20:]) is not None
    )


def _continues(text: str, end: int, start: int) -> bool:
    """Whether what stands between two numbers makes them terms of one sum, difference, product or quotient."""
    link = _LINK.match(text, end) if start - end < 60 else None
    return link is not None and link.end() == start
