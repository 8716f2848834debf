"""Effects of parts: known ones are recovered, and what a grid cannot tell is refused by name."""

from itertools import product

import numpy as np
import pytest
from statsmodels.api import OLS

from studies.inference.interaction import decompose, estimate_over_pairs, gamma_over_pairs
from studies.inference.parts import decompose_parts

FACTORIAL = {
    f"{number}": {"tokenizer": tokenizer, "architecture": architecture, "style": style}
    for number, (tokenizer, architecture, style) in enumerate(product("ub", "ln", "xy"))
}


def share(models: dict, others: dict, part: str) -> np.ndarray:
    return np.array([[own[part] == other[part] for other in others.values()] for own in models.values()], float)


def test_known_effects_of_a_factorial_are_recovered_whatever_the_main_effects() -> None:
    rng = np.random.default_rng(0)
    truth = {"tokenizer": 0.07, "architecture": 0.0, "style": -0.03}
    accuracy_ST = 0.5 + rng.normal(size=(8, 1)) + rng.normal(size=8)
    for part, effect in truth.items():
        accuracy_ST += effect * share(FACTORIAL, FACTORIAL, part)
    found = decompose_parts(FACTORIAL, FACTORIAL)
    assert not found.refusals and found.rank == 3
    values = {effect.parts: float((effect.weights_ST * accuracy_ST).sum()) for effect in found.effects}
    assert values == pytest.approx({(part,): effect for part, effect in truth.items()})


def test_effects_and_their_intervals_over_pairs_are_least_squares_of_any_grid() -> None:
    # Unbalanced: students and teachers of some families only; lineage is shared in the family itself alone.
    models = {name: own | {"lineage": name} for name, own in FACTORIAL.items()}
    students, teachers = ({name: models[name] for name in names} for names in ("01346", "0234567"))
    accuracy_ST = np.random.default_rng(1).normal(size=(5, 7))
    found = decompose_parts(students, teachers)
    assert [effect.parts for effect in found.effects] == [("tokenizer",), ("architecture",), ("style",), ("lineage",)]
    shared = [share(students, teachers, part).reshape(-1) for part in ("tokenizer", "architecture", "style", "lineage")]
    mains = [np.repeat(np.eye(5), 7, 0), np.tile(np.eye(7), (5, 1))[:, 1:]]
    fitted = OLS(accuracy_ST.reshape(-1), np.column_stack([*mains, *shared])).fit()
    over_pairs = estimate_over_pairs(accuracy_ST, found.weights_GST, found.rank)
    assert over_pairs is not None and over_pairs[1] == fitted.df_resid
    for effect, estimate, value, interval in zip(
        found.effects, over_pairs[0], fitted.params[-4:], fitted.conf_int()[-4:], strict=True
    ):
        assert (effect.weights_ST * accuracy_ST).sum() == pytest.approx(value) == pytest.approx(estimate.estimate)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(interval))


def test_one_part_is_the_family_interaction() -> None:
    families = ["l", "q", "q", "g"], ["l", "l", "q", "m"]
    models = [{f"{n}": {"tokenizer": own} for n, own in enumerate(side)} for side in families]
    found = decompose_parts(*models)
    assert found.effects[0].weights_ST == pytest.approx(decompose(*families).gamma_ST)
    accuracy_ST = np.random.default_rng(0).normal(size=(4, 4))
    over_pairs = estimate_over_pairs(accuracy_ST, found.weights_GST, found.rank)
    gamma = gamma_over_pairs(accuracy_ST, *families)
    assert over_pairs is not None and gamma is not None
    assert (over_pairs[0][0].low, over_pairs[1]) == pytest.approx((gamma[0].low, gamma[1]))


def test_parts_that_always_go_together_have_one_effect_the_sum_of_theirs() -> None:
    models = {
        name: {"tokenizer": name[0], "architecture": name[0], "style": name[1]} for name in ("ux", "uy", "bx", "by")
    }
    found = decompose_parts(models, models)
    assert [effect.parts for effect in found.effects] == [("tokenizer", "architecture"), ("style",)]
    accuracy_ST = sum(
        effect * share(models, models, part)
        for part, effect in (("tokenizer", 0.02), ("architecture", 0.03), ("style", 0.1))
    )
    assert [(own.weights_ST * accuracy_ST).sum() for own in found.effects] == pytest.approx([0.05, 0.1])
    # Two by two there is one interaction, whatever its parts are called.
    pair = {name: dict.fromkeys(("tokenizer", "architecture", "lineage", "style"), name) for name in "ab"}
    [only] = decompose_parts(pair, pair).effects
    assert len(only.parts) == 4 and only.weights_ST == pytest.approx(np.array([[0.5, -0.5], [-0.5, 0.5]]))


def test_what_a_grid_does_not_identify_is_refused_by_name() -> None:
    # Style is the same where both or neither of tokenizer and architecture are: of three columns two are free.
    students = {name: {"tokenizer": t, "architecture": a, "lineage": "one", "style": None} for name, t, a in
                (("s", "u", "l"), ("t", "b", "n"))}  # fmt: skip
    teachers = {name: {"tokenizer": t, "architecture": a, "lineage": name, "style": "x"} for name, t, a in
                (("v", "u", "l"), ("w", "u", "n"), ("x", "b", "l"))}  # fmt: skip
    found = decompose_parts(students, teachers)
    refused = {refusal.parts: refusal.reason for refusal in found.refusals}
    assert refused[("lineage",)].startswith("all students are of the lineage one; it takes two lineages")
    assert refused[("style",)] == "not known of student s, student t; state it in its `parts`"
    assert [effect.parts for effect in found.effects] == [("tokenizer",), ("architecture",)]


def test_parts_that_depend_on_each_other_are_named_together_and_others_keep_their_effects() -> None:
    # Of two students, sharing is one number a teacher and part; c's is the sum of a's and b's, d is apart.
    students = {"s": dict.fromkeys("abcd", "s"), "t": dict.fromkeys("abcd", "t")}
    values = {"a": "snnn", "b": "nsnn", "c": "ssnn", "d": "nnsn"}
    teachers = {f"{n}": {part: own[n] for part, own in values.items()} for n in range(4)}
    found = decompose_parts(students, teachers)
    [refusal] = found.refusals
    assert refusal.parts == ("a", "b", "c") and "not told apart" in refusal.reason
    [effect] = found.effects
    accuracy_ST = 0.04 * share(students, teachers, "d") + 0.3 * share(students, teachers, "c")
    assert effect.parts == ("d",) and (effect.weights_ST * accuracy_ST).sum() == pytest.approx(0.04)
    # Its interval is looked up by its place, which those of the refused come before.
    assert effect.place == 3 and found.weights_GST[3] == pytest.approx(effect.weights_ST)


def test_sets_of_parts_that_depend_on_each_other_are_each_named_once() -> None:
    # A teacher shares a with the one student where it shares c with the other, and likewise b and d.
    students = {"s": dict.fromkeys("abcd", "s"), "t": dict.fromkeys("abcd", "t")}
    values = {"a": "stnn", "b": "nnst", "c": "tsnn", "d": "nnts"}
    teachers = {f"{n}": {part: own[n] for part, own in values.items()} for n in range(4)}
    found = decompose_parts(students, teachers)
    assert [refusal.parts for refusal in found.refusals] == [("a", "c"), ("b", "d")]
    assert (found.effects, found.rank) == ([], 2)


def test_a_grid_that_tells_no_part_says_so_of_each() -> None:
    models = {name: {"tokenizer": "u", "style": "x"} for name in "lq"}
    found = decompose_parts(models, models)
    assert (found.effects, found.rank, found.weights_GST.shape) == ([], 0, (0, 2, 2))
    assert sorted(refusal.parts for refusal in found.refusals) == [("style",), ("tokenizer",)]
