from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import OLS, MixedLM

from studies.inference.interaction import (
    decompose,
    describe_df,
    explain_unidentified,
    gamma_over_pairs,
    gamma_over_teachers,
    weigh_without,
)

GRIDS = [
    (["l", "q"], ["l", "q"]),
    (["l", "q"], ["l", "l", "q", "g"]),
    (["l", "l", "q"], ["q", "q", "q", "l", "l"]),
    (["l", "q", "g"], ["l", "q", "g"]),
    (["l", "q"], ["l", "g"]),
]


def test_two_by_two_is_the_difference_in_differences():
    weights = decompose(["l", "q"], ["l", "q"])
    assert weights.gamma_ST == pytest.approx(np.array([[0.5, -0.5], [-0.5, 0.5]]))
    assert weights.teachers_NST[0] == pytest.approx(np.array([[0.25, -0.25], [0.25, -0.25]]))
    assert weights.students_NST[1] == pytest.approx(np.array([[-0.25, -0.25], [0.25, 0.25]]))


def test_without_a_cell_gamma_is_the_least_squares_of_the_others():
    families = ["l", "q", "g"], ["l", "l", "q", "g"]
    values_C = np.random.default_rng(0).normal(size=12)
    columns = [[own == student for own, _ in product(range(3), range(4))] for student in range(3)]
    columns += [[other == teacher for _, other in product(range(3), range(4))] for teacher in range(1, 4)]
    columns.append([own == other for own, other in product(*families)])
    design = np.array(columns, dtype=float).T
    for left_out in range(12):
        kept = np.arange(12) != left_out
        weights_C = weigh_without(*families, left_out).reshape(-1)
        assert weights_C[left_out] == pytest.approx(0, abs=1e-12)
        assert weights_C @ values_C == pytest.approx(OLS(values_C[kept], design[kept]).fit().params[-1])


@pytest.mark.parametrize("teachers", [["l", "q"], ["l", "g"]])
def test_where_gamma_needs_every_cell_none_can_be_left_out(teachers):
    assert all(weigh_without(["l", "q"], teachers, cell) is None for cell in range(4))


def test_a_cell_is_left_out_only_where_the_others_tell_gamma():
    # Without what the family's own teacher taught nothing is left of the family.
    assert weigh_without(["l", "q"], ["l", "g", "g"], 0) is None
    assert weigh_without(["l", "q"], ["l", "g", "g"], 1) is not None


@pytest.mark.parametrize("families", GRIDS)
@given(seed=st.integers(0, 1000))
def test_effects_of_a_grid_are_recovered(families, seed):
    rng = np.random.default_rng(seed)
    students, teachers = (rng.normal(size=len(names)) for names in families)
    gamma = rng.normal()
    same = np.array([[own == other for other in families[1]] for own in families[0]])
    accuracy_ST = 0.5 + students[:, None] + teachers + gamma * same
    weights = decompose(*families)
    assert (weights.gamma_ST * accuracy_ST).sum() == pytest.approx(gamma)
    assert (weights.students_NST * accuracy_ST).sum((1, 2)) == pytest.approx(students - students.mean())
    assert (weights.teachers_NST * accuracy_ST).sum((1, 2)) == pytest.approx(teachers - teachers.mean())


@pytest.mark.parametrize("families", GRIDS)
def test_gamma_is_least_squares(families):
    # Dummy coding with a reference level, as textbooks do.
    rng = np.random.default_rng(0)
    accuracy_ST = rng.normal(size=tuple(map(len, families)))
    rows = [
        [
            1.0,
            *(s == i for i in range(1, len(families[0]))),
            *(t == j for j in range(1, len(families[1]))),
            own == other,
        ]
        for (s, own), (t, other) in product(enumerate(families[0]), enumerate(families[1]))
    ]
    expected = np.linalg.lstsq(np.array(rows, dtype=float), accuracy_ST.ravel())[0][-1]
    assert (decompose(*families).gamma_ST * accuracy_ST).sum() == pytest.approx(expected)


def test_a_table_that_looks_in_family_has_no_gamma():
    # The stronger teacher wins everywhere, and the second family's students are abler.
    accuracy_ST = np.array([[0.60, 0.50], [0.70, 0.60]])
    assert (decompose(["l", "q"], ["l", "q"]).gamma_ST * accuracy_ST).sum() == pytest.approx(0)


@pytest.mark.parametrize(
    ("students", "teachers", "reason"),
    [
        (["l", "l"], ["l", "q"], "all students are of the family l; it takes two"),
        (["l", "q"], ["g"], "all teachers are of the family g"),
        (["l", "q"], ["g", "m"], "no teacher is of a student's family"),
    ],
)
def test_unidentified_grids_are_refused(students, teachers, reason):
    assert reason in explain_unidentified(students, teachers)
    with pytest.raises(ValueError, match=reason):
        decompose(students, teachers)


def test_gamma_over_teachers_is_the_two_sample_t_test():
    rng = np.random.default_rng(0)
    accuracy_ST = rng.normal(size=(3, 9))
    families = ["l", "q", "q"], ["l"] * 4 + ["q"] * 5
    found, df = gamma_over_teachers(accuracy_ST, *families)
    better_T = accuracy_ST[0] - accuracy_ST[1:].mean(0)
    expected = stats.ttest_ind(better_T[:4], better_T[4:])
    interval = expected.confidence_interval()
    assert df == 7 and found.p == pytest.approx(expected.pvalue)
    assert found.estimate == pytest.approx((better_T[:4].mean() - better_T[4:].mean()) / 2)
    assert (found.low, found.high) == pytest.approx((interval.low / 2, interval.high / 2))


@pytest.mark.parametrize("families", [GRIDS[1], GRIDS[2], GRIDS[3]])
def test_gamma_over_pairs_is_least_squares(families):
    accuracy_ST = np.random.default_rng(0).normal(size=tuple(map(len, families)))
    cells = list(product(range(len(families[0])), range(len(families[1]))))
    main = [
        [*(s == i for i in range(1, len(families[0]))), *(t == j for j in range(1, len(families[1])))] for s, t in cells
    ]
    same = [families[0][s] == families[1][t] for s, t in cells]
    columns = np.column_stack([np.ones(len(cells)), main, same])
    fit = OLS(accuracy_ST.ravel(), columns).fit()
    found, df = gamma_over_pairs(accuracy_ST, *families)
    assert df == fit.df_resid and found.p == pytest.approx(fit.pvalues[-1])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[-1]))


def test_gamma_over_pairs_is_the_mixed_models():
    # Three seeds a cell: cells random, students and teachers fixed, by REML.
    rng = np.random.default_rng(1)
    students, teachers = ["l", "q", "q"], ["l", "l", "q", "q", "g"]
    cells = list(product(range(3), range(5)))
    accuracy = np.array([rng.normal() + 0.3 * rng.normal(size=3) for _ in cells])
    design = [
        [1.0, *(s == i for i in (1, 2)), *(t == j for j in range(1, 5)), students[s] == teachers[t]] for s, t in cells
    ]
    fit = MixedLM(
        accuracy.ravel(), np.repeat(np.array(design, dtype=float), 3, 0), groups=np.repeat(range(15), 3)
    ).fit()
    found, df = gamma_over_pairs(accuracy.mean(1).reshape(3, 5), students, teachers)
    assert found.estimate == pytest.approx(fit.fe_params[-1])
    assert (found.high - found.estimate) / stats.t.ppf(0.975, df) == pytest.approx(fit.bse_fe[-1], rel=1e-3)


def test_one_teacher_of_each_family_says_nothing_of_others():
    assert gamma_over_teachers(np.eye(2), ["l", "q"], ["l", "q"]) is None
    assert gamma_over_pairs(np.eye(2), ["l", "q"], ["l", "q"]) is None


def test_a_part_that_all_share_is_named_in_the_plural_it_takes():
    said = explain_unidentified(["l", "l"], ["l", "q"])
    assert said == "all students are of the family l; it takes two families of students and of teachers"
    assert str(explain_unidentified(["x", "y"], ["x", "x"], "tokenizer")).endswith(
        "two tokenizers of students and of teachers"
    )


def test_a_reader_is_told_how_few_models_there_are():
    assert describe_df(3, ["l", "q"], ["l", "q"]) == "3 degrees of freedom: very few"
    assert describe_df(4, ["l", "q"], ["l", "q"]) == "4 degrees of freedom"
    assert describe_df(None, ["l", "q"], ["l", "q"]).startswith("one teacher of each family")
    assert describe_df(None, ["l", "q"], ["l", "l", "q"]) == ""


@pytest.mark.parametrize(
    "accuracy_ST",
    [
        np.zeros((2, 4)),
        # Two teachers of a family wrote the same texts.
        [[0.655, 0.655, 0.272, 0.272], [0.915, 0.915, 0.78, 0.78]],
        # Each student likes another family, by the same in every pair.
        [[0.1, 0.2, 0.3, 0.4], [0.6, 0.7, 0.5, 0.6]],
    ],
)
def test_cells_without_spread_say_nothing_of_other_models(accuracy_ST):
    families = ["l", "q"], ["l", "l", "q", "q"]
    assert gamma_over_teachers(np.array(accuracy_ST), *families) is None
    assert gamma_over_pairs(np.array(accuracy_ST), *families) is None
