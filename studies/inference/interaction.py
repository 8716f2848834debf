"""The family interaction of a grid of any number of students and teachers.

    Acc(s, t) = mu + a_s + b_t + gamma * [family(s) = family(t)] + rest

a_s is how able a student is, b_t how good a teacher is, gamma what a teacher of the student's own family adds. Least
squares over the cells gives each as a contrast of them: for two students and two teachers of two families, gamma is
the difference in differences (A_LL + A_QQ - A_LQ - A_QL) / 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from lightning_modules.evaluation.proportions import LEVEL
from studies.inference.statistics import Estimate


def explain_unidentified(
    student_families: Sequence[str], teacher_families: Sequence[str], what: str = "family"
) -> str | None:
    """Says why a grid cannot tell the family interaction from the main effects; None if it can.

    Args:
        student_families: One for each student.
        teacher_families: One for each teacher.
        what: They are, where it is one part of the families.
    """
    for kind, families in (("students", student_families), ("teachers", teacher_families)):
        if len(set(families)) < 2:
            found = ", ".join(sorted(set(families)))
            several = f"{what}s".replace("ys", "ies")
            return f"all {kind} are of the {what} {found}; it takes two {several} of students and of teachers"
    if not set(student_families) & set(teacher_families):
        return f"no teacher is of a student's {what}"
    return None


@dataclass(frozen=True)
class Decomposition:
    """The effects of a grid, as weights of its cells.

    Attributes:
        gamma_ST: Weights of the family interaction.
        students_NST: Of each student's effect, which sum to zero over students.
        teachers_NST: Of each teacher's.
    """

    gamma_ST: np.ndarray
    students_NST: np.ndarray
    teachers_NST: np.ndarray


def decompose(student_families: Sequence[str], teacher_families: Sequence[str]) -> Decomposition:
    """Returns the least-squares weights of all effects.

    Args:
        student_families: One for each student.
        teacher_families: One for each teacher.

    Raises:
        ValueError: The grid does not identify the family interaction.
    """
    if reason := explain_unidentified(student_families, teacher_families):
        raise ValueError(f"the family interaction is not identified: {reason}")
    shape = num_students, _ = len(student_families), len(teacher_families)
    # The one-hot columns overlap; what is taken from the inverse below does not depend on how that is resolved.
    solution = np.linalg.pinv(_list_columns(student_families, teacher_families))

    def centre(rows: np.ndarray) -> np.ndarray:
        centred: np.ndarray = (rows - rows.mean(0)).reshape(-1, *shape)
        return centred

    return Decomposition(
        solution[-1].reshape(shape), centre(solution[:num_students]), centre(solution[num_students:-1])
    )


def weigh_without(student_families: Sequence[str], teacher_families: Sequence[str], left_out: int) -> np.ndarray | None:
    """Returns gamma's least-squares weights of all cells but one.

    Args:
        student_families: One for each student.
        teacher_families: One for each teacher.
        left_out: The cell, students by teachers, whose weight is 0.

    Returns:
        They, students by teachers; None if the other cells cannot tell gamma from the main effects.
    """
    columns_CE = _list_columns(student_families, teacher_families)
    columns_CE[left_out] = 0
    weights_C = np.linalg.pinv(columns_CE)[-1]
    # Main effects must cancel in what is gamma.
    told_E = np.eye(columns_CE.shape[1])[-1]
    if not np.allclose(weights_C @ columns_CE, told_E, atol=1e-9):
        return None
    weights_ST: np.ndarray = weights_C.reshape(len(student_families), len(teacher_families))
    return weights_ST


def _list_columns(student_families: Sequence[str], teacher_families: Sequence[str]) -> np.ndarray:
    """Returns, for each cell, whether it is of each student and each teacher, and within a family."""
    same_ST = np.array([[own == other for other in teacher_families] for own in student_families], dtype=float)
    students = np.repeat(np.eye(len(student_families)), len(teacher_families), axis=0)
    teachers = np.tile(np.eye(len(teacher_families)), (len(student_families), 1))
    return np.column_stack([students, teachers, same_ST.reshape(-1)])


def leaves_spread(rest: np.ndarray, values: np.ndarray) -> bool:
    """Says whether what a model leaves of some values is more than rounding.

    Teachers that wrote the same texts may leave none: an interval from that would say that other models, seeds or
    questions change nothing.
    """
    return bool(np.abs(rest).max() > 1e-9 * np.abs(values).max())


def _estimate(value: float, variance: float, df: int) -> Estimate:
    error = float(np.sqrt(variance))
    half = float(stdtrit(df, (1 + LEVEL) / 2)) * error
    return Estimate(value, value - half, value + half, 2 * float(stdtr(df, -abs(value) / error)))


def gamma_over_teachers(
    accuracy_ST: np.ndarray, student_families: Sequence[str], teacher_families: Sequence[str]
) -> tuple[Estimate, int] | None:
    """Estimates gamma with an interval over teachers: what other teachers of the same families could change.

    A family's teachers have the same weights, so gamma is a sum over teachers of one number each; these numbers' pooled
    variance within families gives a t-test. With two families this is the two-sample t-test of how much better each
    teacher's students of the one family are than those of the other. What seeds and questions add is in the numbers.

    Returns:
        The estimate and its degrees of freedom, teachers less families; None if these are 0, or the numbers do not
        vary, see `leaves_spread`.
    """
    df = len(teacher_families) - len(set(teacher_families))
    if df == 0:
        return None
    weights_ST = decompose(student_families, teacher_families).gamma_ST
    norms_T = np.sqrt((weights_ST**2).sum(0))
    scores_T = (weights_ST * accuracy_ST).sum(0) / np.where(norms_T > 0, norms_T, 1)
    rest_T = np.zeros_like(scores_T)
    for family in set(teacher_families):
        is_own_T = np.array([other == family for other in teacher_families])
        rest_T[is_own_T] = scores_T[is_own_T] - scores_T[is_own_T].mean()
    if not leaves_spread(rest_T, accuracy_ST):
        return None
    value = float((weights_ST * accuracy_ST).sum())
    return _estimate(value, float((rest_T**2).sum()) / df * float((norms_T**2).sum()), df), df


def centre_cells(values_ST: np.ndarray) -> np.ndarray:
    """Returns a grid's values without its rows' and columns' main effects."""
    rows_S1, columns_1T = values_ST.mean(-1, keepdims=True), values_ST.mean(-2, keepdims=True)
    centred_ST: np.ndarray = values_ST - rows_S1 - columns_1T + values_ST.mean()
    return centred_ST


def estimate_over_pairs(
    accuracy_ST: np.ndarray, weights_GST: np.ndarray, rank: int
) -> tuple[list[Estimate], int] | None:
    """Estimates effects by a mixed model: students and teachers fixed, what each pair has of its own random.

    The grid is complete, so the model's REML fit to the cells is least squares: the residual variance of the cells is
    that of pairs, seeds and questions together.

    Args:
        accuracy_ST: One for each student and teacher.
        weights_GST: The least-squares weights of all of the model's effects.
        rank: How many of them are independent.

    Returns:
        The estimates and their residual degrees of freedom, (S - 1)(T - 1) - rank; None if these are 0, or the effects
        explain all, see `leaves_spread`.
    """
    num_students, num_teachers = accuracy_ST.shape
    df = (num_students - 1) * (num_teachers - 1) - rank
    if df == 0:
        return None
    weights_GC = weights_GST.reshape(len(weights_GST), -1)
    values_G = weights_GC @ accuracy_ST.reshape(-1)
    # The weights span what the effects' columns do.
    rest_C = centre_cells(accuracy_ST).reshape(-1)
    rest_C = rest_C - np.linalg.pinv(weights_GC) @ values_G
    if not leaves_spread(rest_C, accuracy_ST):
        return None
    variance = float((rest_C**2).sum()) / df
    squares_G = (weights_GC**2).sum(1)
    found = [
        _estimate(float(value), variance * float(square), df) for value, square in zip(values_G, squares_G, strict=True)
    ]
    return found, df


def gamma_over_pairs(
    accuracy_ST: np.ndarray, student_families: Sequence[str], teacher_families: Sequence[str]
) -> tuple[Estimate, int] | None:
    """Estimates gamma by the mixed model of `estimate_over_pairs`."""
    weights_ST = decompose(student_families, teacher_families).gamma_ST
    found = estimate_over_pairs(accuracy_ST, weights_ST[None], 1)
    return None if found is None else (found[0][0], found[1])


def estimate_gammas(
    accuracy_ST: np.ndarray, student_families: Sequence[str], teacher_families: Sequence[str]
) -> list[tuple[str, Estimate, int]]:
    """Returns what cell means alone say of gamma: the method, the estimate and its degrees of freedom, if it has any.

    Raises:
        ValueError: The grid does not identify the family interaction.
    """
    methods = {"teachers": gamma_over_teachers, "mixed model": gamma_over_pairs}
    found = {name: method(accuracy_ST, student_families, teacher_families) for name, method in methods.items()}
    return [(name, *estimate) for name, estimate in found.items() if estimate]


def describe_df(df: int | None, student_families: Sequence[str], teacher_families: Sequence[str]) -> str:
    """Returns what a reader of an estimate must know: how few models stand behind it."""
    if df is not None:
        return f"{df} degrees of freedom" + (": very few" if df < 4 else "")
    if len(teacher_families) == len(set(teacher_families)):
        return "one teacher of each family: this says nothing of other teachers of these families"
    return ""
