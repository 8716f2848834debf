"""How much of a teacher's shift towards a preference its students have, as a ratio with Fieller's interval.

The shift of a model is the mean over neutral questions of what its log-odds of the preferred option changed by. Both
shifts are over the same questions, and the teacher's is in the denominator: a ratio r is in the interval where the
student's shift less r times the teacher's is not told from 0 (Fieller 1954). The method needs a teacher that did shift.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from studies.inference.statistics import Estimate, measure_uncertainty

# Beyond this, a ratio is said to be unbounded.
LARGEST_RATIO = 1e6


@dataclass(frozen=True)
class TraitShift:
    """What a student took over of its teacher's preference.

    Attributes:
        teacher_shift: The teacher's, in log-odds, over questions.
        student_shift: The student's, over training seeds and questions.
        ratio: Student's by teacher's; None where the teacher's shift is not told from 0.
        low: Lower end of the ratio's 95 % interval; None likewise.
        high: Upper end.
    """

    teacher_shift: Estimate
    student_shift: Estimate
    ratio: float | None
    low: float | None
    high: float | None


def measure_log_odds(log_likelihoods: Sequence[float], preferred: int) -> float:
    """Returns the log-odds of the preferred option against all others together."""
    others = [value for index, value in enumerate(log_likelihoods) if index != preferred]
    return float(log_likelihoods[preferred] - np.logaddexp.reduce(others))


def estimate_shift(
    student_SQ: np.ndarray, before_SQ: np.ndarray, teacher_Q: np.ndarray, untuned_Q: np.ndarray, is_trained: bool
) -> TraitShift:
    """Estimates shifts and their ratio, over training seeds and questions.

    Args:
        student_SQ: Log-odds of the students that learned from the tuned teacher.
        before_SQ: Of what they are compared with.
        teacher_Q: Of the tuned teacher.
        untuned_Q: Of the same before.
        is_trained: Whether what they are compared with was trained, so that other seeds could answer otherwise.
    """
    cells = [student_SQ, before_SQ, teacher_Q[None], untuned_Q[None]]
    trained = [True, is_trained, False, False]
    # The estimator's discordant question is for right and wrong answers; these are numbers of any size.
    teacher = measure_uncertainty(cells[2:], [1.0, -1.0], trained=trained[2:]).estimate(
        float((teacher_Q - untuned_Q).mean())
    )
    own = float(student_SQ.mean() - before_SQ.mean())
    student = measure_uncertainty(cells[:2], [1.0, -1.0], trained=trained[:2]).estimate(own)

    def excess(ratio: float) -> float:
        """Returns by how much the student's shift is farther from this ratio than its error explains."""
        error = measure_uncertainty(cells, [1.0, -1.0, -ratio, ratio], trained=trained)
        return abs(own - ratio * teacher.estimate) - error.half_width()

    if teacher.low <= 0 <= teacher.high:
        return TraitShift(teacher, student, None, None, None)
    middle = own / teacher.estimate
    low, high = (_find_end(excess, middle, side) for side in (-1, 1))
    return TraitShift(teacher, student, middle, low, high)


def _find_end(excess: Callable[[float], float], middle: float, side: int) -> float:
    """Returns where `excess`, which is not above 0 in the middle, becomes so on one side."""
    if excess(middle) == 0:
        return middle
    step = 1e-3
    while excess(middle + side * step) <= 0:
        step *= 2
        if step > LARGEST_RATIO:
            return side * math.inf
    return float(brentq(excess, middle, middle + side * step))
