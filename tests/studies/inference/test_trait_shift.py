"""Tests of a trait's ratio: known ratios are recovered, intervals hold, and there is none without a teacher's shift."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from studies.inference.trait_shift import estimate_shift, measure_log_odds


def test_log_odds_are_of_one_option_against_all_others() -> None:
    probabilities = np.array([0.5, 0.2, 0.1, 0.2])
    scores = np.log(probabilities / 7).tolist()
    for index, own in enumerate(probabilities):
        assert measure_log_odds(scores, index) == pytest.approx(np.log(own / (1 - own)))
    assert measure_log_odds([-1000.0, -1001.0], 0) == pytest.approx(1)


def simulate(rng: np.random.Generator, ratio: float, shift: float, num_seeds: int, num_questions: int) -> tuple:
    """Returns what `estimate_shift` takes; questions, seeds and single answers vary."""
    base, shifts = 2 * rng.standard_normal(num_questions), shift + rng.standard_normal(num_questions)
    seeds = 0.15 * rng.standard_normal((2, num_seeds, 1))
    noise = 0.3 * rng.standard_normal((2, num_seeds, num_questions))
    students = base + seeds + noise + np.stack([ratio * shifts, 0 * shifts])[:, None]
    return students[0], students[1], base + shifts, base


def test_intervals_hold_a_known_ratio() -> None:
    rng = np.random.default_rng(0)
    hits, narrow = 0, []
    for _ in range(300):
        found = estimate_shift(*simulate(rng, 0.3, 2.0, 3, 40), is_trained=True)
        assert found.low is not None and found.high is not None and found.low <= found.ratio <= found.high
        hits += found.low <= 0.3 <= found.high
        narrow.append(found.high - found.low)
    assert 0.925 <= hits / 300 <= 0.985
    assert np.median(narrow) < 0.5


def test_one_seed_of_a_student_against_itself_before_is_fiellers_interval() -> None:
    """Over questions alone, the ends solve a quadratic equation."""
    rng = np.random.default_rng(1)
    num_questions = 30
    before, teacher = rng.standard_normal((2, num_questions))
    shift = 1 + rng.standard_normal(num_questions)
    own = 0.4 * shift + 0.5 * rng.standard_normal(num_questions)
    found = estimate_shift((before + own)[None], before[None], teacher + shift, teacher, is_trained=False)
    (var_own, covariance), (_, var_shift) = np.cov(own, shift) / num_questions
    square = student_t.ppf(0.975, num_questions - 1) ** 2
    mean, divisor = own.mean(), shift.mean()
    ends = np.roots([
        divisor**2 - square * var_shift, -2 * (mean * divisor - square * covariance), mean**2 - square * var_own,
    ])  # fmt: skip
    assert found.ratio == pytest.approx(mean / divisor)
    assert [found.low, found.high] == pytest.approx(sorted(ends), rel=1e-6)
    assert found.teacher_shift.estimate == pytest.approx(divisor)
    assert found.student_shift.estimate == pytest.approx(mean)


def test_a_teacher_that_did_not_shift_has_no_ratio() -> None:
    found = estimate_shift(*simulate(np.random.default_rng(2), 0.5, 0.0, 3, 20), is_trained=True)
    assert found.ratio is found.low is found.high is None
    assert found.teacher_shift.low < 0 < found.teacher_shift.high
