"""Intervals hold as often as they say: simulated studies with known effects."""

import numpy as np
import pytest

from studies.design.calibration import (
    GAMMAS,
    PART_EFFECTS,
    SCENARIOS,
    bootstrap_interval,
    estimate_interval,
    measure_coverage,
    measure_difference_coverage,
    measure_pair_coverage,
    measure_part_coverage,
)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_intervals_hold(scenario):
    # Where gamma is 0, it is rejected as often as its interval misses 0. Of 4,000 studies the standard error is 0.3 %.
    for target, coverage in measure_coverage(scenario, estimate_interval, 4000).items():
        assert 0.93 <= coverage <= (0.985 if scenario.is_at_an_end else 0.975), (target, coverage)


@pytest.mark.slow
def test_intervals_over_models_hold():
    coverage = measure_pair_coverage(4000)
    assert set(coverage) == {"teachers", "mixed model"}
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


@pytest.mark.slow
def test_a_plain_bootstrap_does_not_hold():
    # The reason for the method: seeds that matter, and only three of them.
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "no effect, seeds dominate")
    rng = np.random.default_rng(0)
    coverage = measure_coverage(scenario, lambda *args: bootstrap_interval(*args, rng), 400)
    assert max(coverage.values()) < 0.93, coverage


@pytest.mark.parametrize("name", ["seeds 1, 1, 1, 3", "seeds 3, 3, 3, 1", "one seed each", "20 groups of 10 questions"])
def test_a_few_simulations_hold(name):
    [scenario] = [scenario for scenario in SCENARIOS if scenario.name == name]
    # Of 300 studies the standard error is 1.3 %; without pooling or groups 64 to 90 % of gamma's intervals hold.
    assert min(measure_coverage(scenario, estimate_interval, 300).values()) > 0.91


@pytest.mark.slow
def test_questions_in_groups_are_not_as_many_single_ones():
    [scenario] = [scenario for scenario in SCENARIOS if scenario.name == "20 groups of 10 questions"]
    alone = measure_coverage(scenario, lambda cells, weights, groups: estimate_interval(cells, weights, None), 1000)
    assert alone["accuracy"] < 0.8 and alone["gamma"] < 0.88, alone


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMMAS)
def test_intervals_of_differences_of_gamma_hold(name):
    coverage = measure_difference_coverage(name, 4000)
    assert set(coverage) == {"text", "distributions", "difference", "difference, text held"}
    assert all(0.93 <= share <= 0.975 for share in coverage.values()), coverage


def test_a_few_intervals_of_differences_of_gamma_hold():
    # Of 300 studies the standard error is 1.3 %.
    assert min(measure_difference_coverage("of text 3, of distributions 6 points", 300).values()) > 0.91


@pytest.mark.slow
@pytest.mark.parametrize("num_families", PART_EFFECTS)
def test_intervals_of_parts_hold(num_families):
    coverage = measure_part_coverage(num_families, 2000)
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


def test_a_few_intervals_of_parts_hold():
    # Of 300 studies the standard error is 1.3 %.
    coverage = measure_part_coverage(4, 300)
    assert set(coverage) == {"tokenizer", "architecture", "tokenizer, mixed model", "architecture, mixed model"}
    assert min(coverage.values()) > 0.91
