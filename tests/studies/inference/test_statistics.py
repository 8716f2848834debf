import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from studies.inference.statistics import (
    Uncertainty,
    adjust_holm,
    compare_models,
    estimate_accuracy,
    estimate_contrast,
    find_seed_source,
    flip_signs,
    measure_uncertainty,
    wilson_interval,
)


def draw_answers(num_seeds: int, num_questions: int, seed: int = 0, share: float = 0.6) -> np.ndarray:
    """Answers that depend on the question, on the seed, and on neither."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(1, num_questions)) + 0.2 * rng.normal(size=(num_seeds, 1))
    return (latent + rng.normal(size=(num_seeds, num_questions)) < 2 * (share - 0.5)).astype(float)


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_agrees_with_scipy(counts):
    correct, total = counts
    expected = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_a_known_example():
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_accuracy_of_one_seed_is_wilsons():
    correct = draw_answers(1, 2000)
    share, low, high = estimate_accuracy(correct)
    assert share == correct.mean()
    # t for the normal quantile, and n - 1 for n.
    assert (low, high) == pytest.approx(wilson_interval(correct.sum(), 2000), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_accuracy_has_width_at_the_ends(share):
    _, low, high = estimate_accuracy(np.full((3, 40), share))
    assert (low, high) == pytest.approx(wilson_interval(40 * share, 40))
    assert 0 <= low < high <= 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_accuracy_of_one_seed_at_an_end_is_less_sure_where_other_cells_seeds_differ(share):
    pool = [(np.arange(40) < np.array([[12], [20], [28]])).astype(float)]
    _, low, high = estimate_accuracy(np.full((1, 40), share), pool=pool)
    _, near, far = estimate_accuracy(np.full((1, 40), share))
    assert 0 <= low <= near <= far <= high <= 1 and high - low > far - near


def test_accuracy_of_seeds_that_disagree_is_unknown():
    share, low, high = estimate_accuracy(np.repeat([[0.0], [1.0]], 40, axis=1))
    assert share == 0.5 and low < 0.01 and high > 0.99


@given(st.integers(0, 1000), st.integers(1, 4), st.floats(0.05, 0.95))
def test_accuracy_is_inside_its_interval(seed, num_seeds, share):
    value, low, high = estimate_accuracy(draw_answers(num_seeds, 50, seed, share))
    assert 0 <= low <= value <= high <= 1


def test_contrast_of_two_single_seeds_is_the_paired_t_test():
    left, right = draw_answers(1, 3000, 0), draw_answers(1, 3000, 1)
    found = estimate_contrast([left, right], [1, -1])
    expected = stats.ttest_rel(left[0], right[0])
    assert found.estimate == pytest.approx(left.mean() - right.mean())
    # But for one discordant question more.
    assert found.p == pytest.approx(expected.pvalue, rel=0.02)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=2e-4)


def test_variances_are_those_of_a_crossed_analysis_of_variance():
    # Mean squares by hand, from sums over the table.
    cell = draw_answers(4, 60, 5)
    num_seeds, num_questions = cell.shape
    total = ((cell - cell.mean()) ** 2).sum()
    seeds = num_questions * ((cell.mean(1) - cell.mean()) ** 2).sum()
    questions = num_seeds * ((cell.mean(0) - cell.mean()) ** 2).sum()
    mean_squares = {
        "seeds": seeds / (num_seeds - 1),
        "questions": questions / (num_questions - 1),
        "rest": (total - seeds - questions) / (num_seeds - 1) / (num_questions - 1),
    }
    found = measure_uncertainty([cell], [1.0])
    assert found.questions == pytest.approx(mean_squares["questions"] / cell.size)
    assert found.seeds == pytest.approx(max(mean_squares["seeds"] - mean_squares["rest"], 0) / cell.size)
    assert (found.df_questions, found.df_seeds) == pytest.approx((59, 3))


def test_variance_components_agree_with_a_mixed_model():
    rng = np.random.default_rng(1)
    cell = rng.normal(size=(1, 80)) + 0.5 * rng.normal(size=(6, 1)) + rng.normal(size=(6, 80))
    seeds, questions = np.indices(cell.shape)
    groups = {"seed": seeds.ravel(), "question": questions.ravel()}
    one = np.ones((cell.size, 1))
    dummies = {name: (values[:, None] == np.unique(values)).astype(float) for name, values in groups.items()}
    names = [[[f"{name}{number}" for number in range(dummy.shape[1])]] for name, dummy in dummies.items()]
    spec = VCSpec(list(dummies), names, [[dummy] for dummy in dummies.values()])
    fit = MixedLM(cell.ravel(), one, groups=np.zeros(cell.size), exog_vc=spec).fit(reml=True)
    found = measure_uncertainty([cell], [1.0])
    assert fit.bse_fe[0] ** 2 == pytest.approx(found.questions + found.seeds, rel=1e-3)


def test_a_single_seed_takes_the_variance_of_the_others():
    cells = [draw_answers(3, 200, 1), draw_answers(3, 200, 2), draw_answers(1, 200, 3)]
    variance = np.mean([cell.mean(1).var(ddof=1) for cell in cells[:2]])
    found = measure_uncertainty(cells, [0.5, 0.5, -1])
    assert found.seeds == pytest.approx(variance * (0.25 / 3 + 0.25 / 3 + 1))
    assert 0 < found.residual < found.variance
    assert 1 < found.df_seeds <= 4
    # Of all seeds alike nothing changes where two cells' are: each has its own.
    assert measure_uncertainty(cells[:2], [1, -1]).residual == 0


def test_a_pool_is_asked_where_the_contrast_has_no_two_seeds():
    single, several = [draw_answers(1, 200, number) for number in (1, 2)], [draw_answers(4, 200, 3)]
    assert measure_uncertainty(single, [1, -1]).seeds == 0
    pooled = measure_uncertainty(single, [1, -1], pool=several)
    assert pooled.seeds == pytest.approx(2 * several[0].mean(1).var(ddof=1)) and pooled.df_seeds == pytest.approx(3)
    untuned = measure_uncertainty(single, [1, -1], trained=[True, False], pool=several)
    assert untuned.seeds == pytest.approx(several[0].mean(1).var(ddof=1))


def test_where_the_variance_over_seeds_comes_from():
    one, two = draw_answers(1, 20), draw_answers(2, 20)
    assert find_seed_source([two, two]) == "own"
    assert find_seed_source([two, one]) == "pooled"
    assert find_seed_source([two, one], [True, False]) == "own"
    assert find_seed_source([one, one]) == "left out"
    assert find_seed_source([one], pool=[two]) == "pooled"
    assert find_seed_source([one], [False]) == "none"


@given(st.integers(0, 100))
def test_groups_of_one_question_are_no_groups(seed):
    cells = [draw_answers(3, 40, seed), draw_answers(1, 40, seed + 1)]
    groups = np.random.default_rng(seed).permutation(40)
    found, expected = (measure_uncertainty(cells, [1, -1], 1.0, None, own) for own in (groups, None))
    assert vars(found) == pytest.approx(vars(expected))
    sides = compare_models(*cells, np.random.default_rng(0), 200)
    assert sides.p == compare_models(*cells, np.random.default_rng(0), 200, groups).p


def test_copies_of_a_question_say_nothing_new():
    cells = [draw_answers(3, 40, 1), draw_answers(3, 40, 2)]
    groups = np.arange(40).repeat(5)
    copied = [cell.repeat(5, 1) for cell in cells]
    found, expected = (measure_uncertainty(*own) for own in ((copied, [1, -1], 0, None, groups), (cells, [1, -1])))
    assert vars(found) == pytest.approx(vars(expected))
    assert estimate_accuracy(copied[0], True, groups) == pytest.approx(estimate_accuracy(cells[0]))
    models, alone = (
        compare_models(*own, np.random.default_rng(0), 2000, numbers)
        for own, numbers in ((copied, groups), (cells, None))
    )
    assert (models.p, models.low, models.high) == pytest.approx((alone.p, alone.low, alone.high))


def test_groups_variance_is_that_of_their_means():
    # Groups of one size: Student's t over groups' means.
    left, right = draw_answers(1, 200, 1), draw_answers(1, 200, 2)
    found = measure_uncertainty([left, right], [1, -1], groups_Q=np.arange(20).repeat(10))
    means = (left - right).reshape(20, 10).mean(1)
    assert found.questions == pytest.approx(means.var(ddof=1) / 20) and found.df_questions == 19


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_sign_flips_by_enumeration(sums):
    flips = [sum(sign * abs(value) for sign, value in zip(signs, sums, strict=True)) for signs in
             itertools.product((1, -1), repeat=len(sums))]  # fmt: skip
    expected = np.mean(np.abs(flips) >= abs(sum(sums)))
    assert flip_signs(np.array(sums, dtype=float)) == pytest.approx(expected)


def test_what_makes_a_question_hard_for_all_cancels():
    rng = np.random.default_rng(0)
    shared = (rng.random((1, 500)) < 0.5).astype(float)
    uncertainty = measure_uncertainty([np.repeat(shared, 3, 0)] * 4, [0.5, -0.5, -0.5, 0.5])
    assert uncertainty.questions == pytest.approx(0) and uncertainty.seeds == pytest.approx(0)


def test_cells_that_answer_alike_are_not_said_to_be_equal():
    cells = [np.ones((3, 400))] * 2
    found = estimate_contrast(cells, [1, -1])
    assert found.estimate == 0 and found.p == 1
    assert 1 / 400 < found.high < 3 / 400 and found.low == -found.high


@given(st.floats(-1, 1), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(1, 20))
def test_p_is_where_the_interval_reaches_zero(value, questions, seeds, df):
    uncertainty = Uncertainty(questions, seeds, 300, df)
    found = uncertainty.estimate(value)
    if 1e-10 < found.p < 1 - 1e-6:
        assert uncertainty.half_width(found.p) == pytest.approx(abs(value), rel=1e-5)
    if abs(abs(value) - uncertainty.half_width()) > 1e-6:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_p_without_seeds_is_students():
    found = Uncertainty(0.04, 0.0, 12, 1).estimate(0.5)
    assert found.p == pytest.approx(2 * stats.t.sf(0.5 / 0.2, 12))


@given(st.integers(0, 100), st.permutations(range(3)))
def test_order_of_seeds_does_not_matter(seed, order):
    cells = [draw_answers(3, 40, seed), draw_answers(3, 40, seed + 1)]
    before = estimate_contrast(cells, [1, -1])
    after = estimate_contrast([cells[0][list(order)], cells[1]], [1, -1])
    assert vars(after) == pytest.approx(vars(before))
    swapped = estimate_contrast(cells[::-1], [1, -1])
    assert (swapped.estimate, swapped.low, swapped.high) == pytest.approx((-before.estimate, -before.high, -before.low))


@given(st.integers(0, 200))
def test_models_are_compared_by_mcnemar(seed):
    left, right = draw_answers(1, 80, seed), draw_answers(1, 80, seed + 1, share=0.5)
    found = compare_models(left, right, np.random.default_rng(0), 500)
    both = (int(((left == 1) & (right == 0)).sum()), int(((left == 0) & (right == 1)).sum()))
    assert (found.left_only, found.right_only) == both
    assert found.p == pytest.approx(min(1, 2 * stats.binom.cdf(min(both), sum(both), 0.5)), abs=1e-9)
    assert found.low <= left.mean() - right.mean() <= found.high


def test_mcnemar_agrees_with_statsmodels():
    left, right = draw_answers(1, 300, 3)[0], draw_answers(1, 300, 4, share=0.5)[0]
    table = [[((left == i) & (right == j)).sum() for j in (1, 0)] for i in (1, 0)]
    found = compare_models(left[None], right[None], np.random.default_rng(0))
    assert found.p == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_paired_bootstrap_has_the_variance_of_theory():
    left, right = draw_answers(2, 400, 7), draw_answers(2, 400, 8, share=0.5)
    found = compare_models(left, right, np.random.default_rng(0), 40_000)
    difference = left.mean(0) - right.mean(0)
    half = 1.96 * difference.std() / 20
    assert found.low == pytest.approx(difference.mean() - half, abs=0.003)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.003)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(ps):
    adjusted = adjust_holm(ps)
    for index, p in enumerate(ps):
        # The largest of (m - j) p_(j) over the tests with smaller or equal p.
        ranked = sorted(ps)
        steps = [(len(ps) - rank) * other for rank, other in enumerate(ranked) if other <= p]
        first = (len(ps) - ranked.index(p)) * p
        assert adjusted[index] == pytest.approx(min(1, max([first, *steps])))


def test_holm_agrees_with_statsmodels():
    ps = [0.01, 0.04, 0.03, 0.005, 0.2]
    assert adjust_holm(ps) == pytest.approx(multipletests(ps, method="holm")[1].tolist())
