"""Tests of how free answers are compared: notation that is taken away, values that are not."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.expressions import find_boxed, normalize_expression

SAME = [
    [
        "0.5",
        ".5",
        r"\frac12",
        r"\frac{1}{2}",
        r"\dfrac12",
        r"\tfrac{1}2",
        "1/2",
        r"\frac{2}{4}",
        "$0.50$",
        r"\frac 12",
    ],
    ["3.5", r"3\frac12", r"\frac{7}{2}", "7/2"],
    [r"-\frac{1}{3}", r"\frac{-1}{3}", "-1/3", r"-\dfrac{2}{6}"],
    ["1000", "1,000", r"1,\!000", "1{,}000", r"\$1,000", "1000.0", r"\boxed{1000}"],
    [
        "18",
        r"18\text{ cm}",
        r"18\text{ cm}^2",
        r"18\mbox{ inches}",
        "18.",
        r"18^\circ",
        r"18^{\circ}",
        r"18\%",
        "x = 18",
    ],
    [r"\sqrt{3}", r"\sqrt3", r"\sqrt 3", r"$\sqrt{3}$", r"\(\sqrt{3}\)"],
    [r"(3,\frac{\pi}{2})", r"\left(3, \frac{\pi}{2}\right)", r"\left( 3,\dfrac{\pi}{2} \right)"],
    ["x^2+1", "x^{2} + 1", "x^2 +1"],
    ["Evelyn", r"\text{Evelyn}", r"\textbf{Evelyn}"],
    ["[1,2]", r"x \in [1,2]", r"x\in[1, 2]"],
    ["1011_2", "1011_{2}"],
]
DIFFERENT = [
    ("x+1", "1+x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1011_2", "10112"),
    ("(1,2)", "[1,2]"),
    ("0.33", r"\frac{1}{3}"),
    ("3.14", r"\pi"),
    ("x=y=2", "2"),
    ("1,2", "12"),
    ("-5", "5"),
]


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_one_answer_in_many_notations(forms: list[str]) -> None:
    assert {normalize_expression(form) for form in forms} == {forms[0]}


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_stays_different(one: str, other: str) -> None:
    assert normalize_expression(one) != normalize_expression(other)


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"So \boxed{5} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"$\boxed 7$ is it", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{5", None),
        ("none", None),
    ],
)
def test_the_last_box(text: str, boxed: str | None) -> None:
    assert find_boxed(text) == boxed


PIECES = [*r"\{}^_/ 12x.,$-", r"\frac", r"\sqrt", r"\text{", "½"]


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES)).map("".join))
def test_normalizing_never_raises(text: str) -> None:
    normalize_expression(text)


@given(st.fractions(max_denominator=5000), st.integers(1, 9))
def test_rational_numbers_compare_by_value(value: Fraction, factor: int) -> None:
    written = rf"\frac{{{value.numerator * factor}}}{{{value.denominator * factor}}}"
    once = normalize_expression(written)
    assert normalize_expression(once) == once
    if "frac" not in once:
        assert Fraction(once) == value
    assert normalize_expression(str(value)) == once
