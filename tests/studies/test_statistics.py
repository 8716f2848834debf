import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from studies.statistics import bootstrap_means, family_interaction, wilson_interval


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_agrees_with_scipy(counts):
    correct, total = counts
    for level in (0.8, 0.95, 0.99):
        expected = binomtest(correct, total).proportion_ci(level, method="wilson")
        assert wilson_interval(correct, total, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_a_known_example():
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("total", [1, 7, 400])
def test_wilson_has_width_at_the_ends_and_stays_inside(total):
    low, high = wilson_interval(0, total)
    assert low == pytest.approx(0, abs=1e-15) and 0 < high < 1
    assert wilson_interval(total, total) == pytest.approx((1 - high, 1))


def test_wilson_takes_a_mean_over_seeds():
    assert wilson_interval(5, 20)[0] < wilson_interval(5.5, 20)[0] < wilson_interval(6, 20)[0]


def test_gamma_by_hand():
    accuracy = {("l", "l"): 0.62, ("q", "q"): 0.70, ("l", "q"): 0.66, ("q", "l"): 0.58}
    assert family_interaction(accuracy, "l", "q") == pytest.approx((0.62 + 0.70 - 0.66 - 0.58) / 2)
    assert family_interaction(accuracy, "q", "l") == pytest.approx(0.04)


@given(*[st.floats(-1, 1) for _ in range(5)])
def test_gamma_is_what_main_effects_leave(base, teacher, student, interaction, _):
    # A better teacher or an abler student is no family effect; half of the interaction's contrast is gamma.
    accuracy = {
        (t, s): base + teacher * (t == "l") + student * (s == "q") + interaction * (1 if t == s else -1) / 2
        for t in "lq"
        for s in "lq"
    }
    assert family_interaction(accuracy, "l", "q") == pytest.approx(interaction, abs=1e-12)


def test_gamma_of_a_table_that_looks_in_family():
    # The stronger teacher wins everywhere, and the second family's students are abler: no interaction at all.
    accuracy = {("l", "l"): 0.60, ("q", "l"): 0.50, ("l", "q"): 0.70, ("q", "q"): 0.60}
    assert family_interaction(accuracy, "l", "q") == pytest.approx(0)


def test_gamma_of_draws_is_elementwise():
    rng = np.random.default_rng(0)
    draws = {(t, s): rng.random(5) for t in "lq" for s in "lq"}
    gammas = family_interaction(draws, "l", "q")
    for number in range(5):
        assert gammas[number] == family_interaction({key: value[number] for key, value in draws.items()}, "l", "q")


def draw_weights(num_questions: int, num_resamples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=num_resamples)
    return counts / num_questions


def test_bootstrap_over_questions_has_the_mean_and_variance_of_theory():
    correct = (np.arange(100) < 30).astype(float)[None]
    draws = bootstrap_means(correct, draw_weights(100, 40_000), np.random.default_rng(1))
    assert draws.mean() == pytest.approx(0.3, abs=0.001)
    assert draws.var() == pytest.approx(0.3 * 0.7 / 100, rel=0.03)


def test_bootstrap_over_seeds_has_the_variance_of_theory():
    # Seeds that differ, on questions that do not: only seeds vary.
    correct = np.repeat([[0.0], [0.0], [1.0], [1.0]], 50, axis=1)
    draws = bootstrap_means(correct, draw_weights(50, 40_000), np.random.default_rng(1))
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert draws.var() == pytest.approx(0.25 / 4, rel=0.03)


def test_bootstrap_pairs_cells_over_questions():
    # Two cells that answer alike differ in no resample.
    correct = (np.random.default_rng(3).random((1, 60)) < 0.5).astype(float)
    weights = draw_weights(60, 500)
    first = bootstrap_means(correct, weights, np.random.default_rng(1))
    second = bootstrap_means(correct, weights, np.random.default_rng(2))
    assert np.array_equal(first, second) and first.std() > 0


def test_bootstrap_of_certain_answers_has_no_width():
    draws = bootstrap_means(np.ones((2, 30)), draw_weights(30, 100), np.random.default_rng(1))
    assert draws == pytest.approx(np.ones(100))
