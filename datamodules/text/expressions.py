r"""The normal form in which free answers are grouped and voted on: numbers by value, LaTeX in one notation.

Of expressions, what is only notation is taken away: spaces, `\left` and `\right`, `\dfrac` for `\frac`, braces around
one character, units and degrees, `$`, `%`, a leading `x =`, thousands commas. Numbers are then compared exactly by
value: `0.5`, `1/2`, `\frac{2}{4}` are one answer, as are `3\frac12` and `3.5`. Values of anything else play no part:
`\sqrt{8}` is not `2\sqrt{2}` here. Whether an answer is right is decided by `grading`. This follows Hendrycks et al.
(MATH, 2021), whose one special case of 0.5 is replaced by comparing every rational number.
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

_DELIMITERS = re.compile(r"\\[()\[\]]|\\?\$")
_NOISE = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;:%$]|%|\\(?:qquad|quad)(?![A-Za-z])")
# Not within a sine: there they say in what the angle is.
_DEGREES = re.compile(r"(?<!\\)\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
# A text that begins with a space, after something else, is a unit: `18\text{ cm}^2`.
_UNIT = re.compile(r"(?<=.)\\(?:text|mbox|textrm)\{\s[^{}]*\}(?:\^\{?\w\}?)?$")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\{([^{}]*)\}")
# Arguments without braces: `\frac12`, `\frac{1}2`, `\sqrt3`.
_FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z{])\s*(\w)\s*(?=[\w{])")
_DENOMINATOR = re.compile(r"(\\frac\{[^{}]*\})\s*(\w)")
_ROOT = re.compile(r"\\sqrt\s*(\w)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BOX_JOINT = re.compile(r"\$?\s*(?:,\s*)?(?:and\b\s*)?\$?")
# A formula with its delimiters.
FORMULA = re.compile(r"(?<!\\)\$(?:[^$\\]|\\.)+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_NAME = re.compile(r"^[A-Za-z]\w?\s*(?:=|\\in(?![A-Za-z]))\s*(?=.)(?!.*=)")
_SPACE = re.compile(r"(?<!\\)(\\[A-Za-z]+)\s+(?=[A-Za-z])|\s+")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# Likewise of a number as it is given; Indian groups have two digits but for the last: 10,00,000.
_GROUPED = re.compile(r"\s*[-+]?\d{1,3}(?:(?:,\d{3})+|(?:,\d\d)*,\d{3})(?!\d|[^.]*,).*", re.DOTALL)
# What an exponent may add; the zeros of 1e999999999 would fill the memory.
_MOST_ZEROS = 1000
_DIGITS = r"([0-9]{1,99})"
_RATIONAL = re.compile(rf"(-?){_DIGITS}?\\frac\{{(-?){_DIGITS}\}}\{{{_DIGITS}\}}|(-?){_DIGITS}/{_DIGITS}")
_DECIMAL = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")


def normalize_number(value: Any) -> str:
    """Writes a number the one way answers are compared: no thousands commas, `72` for `72.0`.

    Raises:
        ValueError: The value is no finite number, has commas elsewhere than between groups of digits, as `1,5`, or an
            exponent that would add thousands of zeros.
    """
    text = str(value)
    if "," in text and not _GROUPED.fullmatch(text):
        raise ValueError(f"answer {value!r} has a comma that parts no thousands; write a decimal with a point")
    try:
        # Python takes 1_0 for ten; in mathematics it is another base.
        number = Decimal(text.replace(",", "").replace("_", "?"))
    except InvalidOperation:
        raise ValueError(f"answer {value!r} is no number") from None
    if not number.is_finite():
        raise ValueError(f"answer {value!r} is no finite number")
    if number == 0:
        return "0"
    if abs(number.adjusted()) > len(text) + _MOST_ZEROS:
        raise ValueError(f"answer {text!r} has more than {_MOST_ZEROS} zeros")
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def write_fraction(value: Fraction) -> str:
    """Writes a rational number as a decimal if it has a finite one, else as a fraction in lowest terms."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest == 1:
        digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
        number = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    else:
        number = rf"\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    return f"-{number}" if value < 0 else number


def read_braces(text: str, start: int) -> tuple[str, int] | None:
    """Returns what stands in the braces that open at `start` and where it ends; None if they never close."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place], place + 1
    return None


def read_boxes(text: str, start: int) -> tuple[str, int, int] | None:
    r"""Returns what the boxes that begin at `start` hold, where they end, and how many different contents they have.

    Boxes that only a comma or an "and" separates are one list: `\boxed{3}, \boxed{5}, and \boxed{7}`.
    """
    contents, end = list[str](), start
    while box := _BOX.match(text, end):
        braces = read_braces(text, box.end() - 1)
        if braces is None:
            break
        content, end = braces
        contents.append(content.strip())
        if joint := _BOX_JOINT.match(text, end):
            # The joint's own end, if another box follows; else this box's.
            end = joint.end() if _BOX.match(text, joint.end()) else end
    different = list(dict.fromkeys(contents))
    return (",".join(different), end, len(different)) if contents else None


def find_boxed(text: str) -> str | None:
    r"""Returns what the last box or list of boxes holds, or after a bare `\boxed` the formula's rest; None without."""
    *others, last = [None, *_BOX.finditer(text)]
    start = text.rfind(r"\boxed")
    if last is None or start > last.start():
        # Without braces: `\boxed 7`.
        return (text[start + len(r"\boxed") :].split("$")[0].strip() or None) if start >= 0 else None
    begin = last.start()
    for box in reversed(others[1:]):
        assert box is not None
        braces = read_braces(text, box.end() - 1)
        if braces is None or not _BOX_JOINT.fullmatch(text, braces[1], begin):
            break
        begin = box.start()
    boxes = read_boxes(text, begin)
    return boxes[0] if boxes else None


def normalize_expression(latex: str) -> str:
    r"""Writes an expression in the one notation that answers are compared in; see the module.

    Args:
        latex: With or without `$`; of a text with `\boxed{...}`, only the last box's content counts.
    """
    boxed = find_boxed(latex)
    text = latex if boxed is None else boxed
    text = _NOISE.sub("", _DELIMITERS.sub("", text.replace("\n", " "))).strip().rstrip(".,;").strip()
    text = text if _TRIGONOMETRY.search(text) else _DEGREES.sub("", text)
    text = _NAME.sub("", _TEXT.sub(r"\1", _UNIT.sub("", text)))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _DENOMINATOR.sub(r"\1{\2}", _FRACTION.sub(r"\\frac{\1}", text))
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", _ROOT.sub(r"\\sqrt{\1}", text))
    # The space between a command and a letter is part of neither: `\pi r`.
    text = _SPACE.sub(lambda match: f"{match[1]} " if match[1] else "", text.replace("{,}", ","))
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if match := _RATIONAL.fullmatch(text):
        minus, whole, inner, above, below, slash_minus, slash_above, slash_below = match.groups()
        if slash_above:
            minus, whole, inner, above, below = slash_minus, "", "", slash_above, slash_below
        if int(below):
            value = int(whole or 0) + Fraction(int(inner + above), int(below))
            return write_fraction(-value if minus else value)
    return normalize_number(text) if _DECIMAL.fullmatch(text) else text
