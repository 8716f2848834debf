"""Numbers in Chinese characters, and in digits with them: 三十二, 一千零五, 3万5000, 三点五."""

import re
from fractions import Fraction

_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_ALL = "".join([*_DIGITS, *_UNITS, *_MYRIADS])
# Written out; what follows must not make it a fraction (三分之一) or a part of a word.
HAN_NUMERAL = re.compile(rf"[{_ALL}]+(?:[点點][{''.join(_DIGITS)}]+)?(?!\s*分[之の])")
_THOUSAND = "千(?![克米瓦卡焦帕伏升字赫])"
# In digits, with characters that multiply: not 5千克, which are kilograms.
MIXED_NUMERAL = re.compile(
    rf"(?<![\d.,])\d[\d,]*(?:\.\d+)?\s?(?:[万萬亿億](?:\d{{1,4}}(?!\d)(?:{_THOUSAND})?)?"
    rf"|{_THOUSAND}(?:[万萬]|\d{{1,3}}(?!\d))?)"
)
_TOKEN = re.compile(rf"\d[\d,]*(?:\.\d+)?|[{_ALL}]")


def read_han_numeral(text: str) -> Fraction | None:
    """Returns the value of a match of HAN_NUMERAL or MIXED_NUMERAL; None where the characters make no number."""
    whole, _, decimals = text.replace("點", "点").partition("点")
    if len(whole) > 40:
        return None
    if len(whole) > 1 and all(character in _DIGITS for character in whole):
        value = Fraction(int("".join(str(_DIGITS[character]) for character in whole)))
    else:
        total, section, number = Fraction(0), Fraction(0), None
        for token in _TOKEN.findall(whole):
            if token in _DIGITS:
                if number:
                    return None
                number = Fraction(_DIGITS[token])
            elif token in _UNITS:
                section, number = section + (Fraction(1) if number is None else number) * _UNITS[token], None
            elif token in _MYRIADS:
                own = section + (number or 0)
                if _MYRIADS[token] == 10**8:
                    total, own = Fraction(0), total + own
                if own == 0:
                    return None
                total, section, number = total + own * _MYRIADS[token], Fraction(0), None
            else:
                number = Fraction(token.replace(",", ""))
        if number and len(whole) > 1 and whole[-2] in "百千万萬亿億" and whole[-1] in _DIGITS:
            # 一百二 is 120 in speech.
            return None
        value = total + section + (number or 0)
    if decimals:
        digits = "".join(str(_DIGITS[character]) for character in decimals)
        value += Fraction(int(digits), 10 ** len(digits))
    return value
