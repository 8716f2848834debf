"""Tests of how numbers are written."""

import math

from studies.numbers import between, decimal, estimated, percent, signed, signed_between


def test_negative_numbers_have_a_true_minus() -> None:
    assert (decimal(-1.25, 1), signed(-0.5, 2), signed(0.5, 2)) == ("−1.2", "−0.50", "+0.50")
    assert signed_between(-math.inf, math.inf, 3) == "[−∞, ∞]"
    assert estimated({"estimate": -0.012, "low": -0.02, "high": 0.012}) == "−1.2 points [−2.0, +1.2]"


def test_an_interval_names_its_unit_once() -> None:
    assert between(0.1, 0.25, percent) == "[10.0, 25.0]" and between(None, 0.25) == "–"
