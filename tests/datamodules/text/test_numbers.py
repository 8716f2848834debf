"""Tests of how numbers are read: every way to write a value gives that value."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.expressions import normalize_number
from datamodules.text.numbers import NUMBER, calculate, read_calculation, read_last_number, read_number, write_value

SEPARATORS = [",", "{,}", ",\\!", "\\,", "\u202f", "\u2009", "\u00a0", " ", "'"]


@given(st.integers(1000, 10**12), st.sampled_from(SEPARATORS), st.booleans())
def test_thousands_may_be_separated_in_many_ways(number: int, separator: str, negative: bool) -> None:
    text = ("\u2212" if negative else "") + f"{number:,}".replace(",", separator)
    assert read_last_number(text, "") == (str(-number if negative else number), 0, len(text))


@given(st.integers(0, 99), st.integers(1, 99), st.integers(1, 99))
def test_fractions_have_their_value(whole: int, above: int, below: int) -> None:
    value = whole + Fraction(above, below)
    forms = [f"{whole * below + above}/{below}", rf"\frac{{{whole * below + above}}}{{{below}}}"]
    if 0 < whole and above < below:
        forms += [f"{whole} {above}/{below}", f"{whole}-{above}/{below}", rf"{whole}\frac{{{above}}}{{{below}}}"]
    for form in forms:
        match = NUMBER.match(form)
        assert match is not None and read_number(form, match, "") == (write_value(value), len(form))


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 50)), min_size=1, max_size=5), st.integers(0, 50))
def test_a_calculation_has_its_value(terms: list[tuple[str, int]], first: int) -> None:
    text = " ".join([str(first), *(f"{sign} {number}" for sign, number in terms)])
    value = calculate(text)
    match = NUMBER.match(text)
    assert match is not None and value == eval(text)
    assert read_calculation(text, match, "") == (write_value(Fraction(eval(text))), len(text))


@pytest.mark.parametrize(
    ("asked", "text", "value"),
    [
        ("How many eggs are there?", "3 dozen", "36"),
        ("How many dozen eggs are there?", "3 dozen", "3"),
        ("How much, in thousands of dollars, does she pay?", "$2k", "2"),
        ("How much does she pay?", "$2k", "2000"),
        ("How many people live there?", "2.5 million", "2500000"),
        ("How many million people live there?", "2.5 million", "2.5"),
    ],
)
def test_a_word_multiplies_unless_the_question_counts_in_it(asked: str, text: str, value: str) -> None:
    found = read_last_number(text, asked)
    assert found is not None and found[0] == value


@pytest.mark.parametrize("text", ["no number", "x86", "cm^2", "", "v2"])
def test_what_is_no_number(text: str) -> None:
    assert read_last_number(text, "") is None


@pytest.mark.parametrize(
    "formula", ["1 +", "a", "__import__('os')", "2 ** 3", "1 / 0", "(" * 300 + "1" + ")" * 300, ""]
)
def test_what_is_no_calculation(formula: str) -> None:
    assert calculate(formula) is None


@given(st.text(alphabet="0123456789.,/ -+*()e^{}\\frac$%x½\u2212\u202f\n", max_size=40))
def test_any_text_gives_a_plain_number_or_none(text: str) -> None:
    found = read_last_number(text, "")
    if found is not None:
        assert normalize_number(found[0]) == found[0]
        assert 0 <= found[1] < found[2] <= len(text)
