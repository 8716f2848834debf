"""Intervals and contrasts over per-question correctness."""

from typing import TypeVar

import numpy as np
from scipy.stats import norm

Value = TypeVar("Value", float, np.ndarray)


def wilson_interval(correct: float, total: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion (Wilson 1927).

    Args:
        correct: Successes; a mean over seeds need not be whole.
        total: Trials, at least 1.
        level: Coverage.
    """
    z = float(norm.ppf((1 + level) / 2))
    share = correct / total
    centre = share + z**2 / (2 * total)
    half = z * float(np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)))
    scale = 1 + z**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def family_interaction(accuracy: dict[tuple[str, str], Value], first: str, second: str) -> Value:
    """Returns gamma = (A_11 + A_22 - A_12 - A_21) / 2: the in-family gain without either main effect.

    Args:
        accuracy: By (teacher's family, student's family); numbers, or draws of a bootstrap.
        first: A family.
        second: The other.
    """
    in_family = accuracy[first, first] + accuracy[second, second]
    cross_family = accuracy[first, second] + accuracy[second, first]
    return (in_family - cross_family) / 2


def bootstrap_means(correct_SQ: np.ndarray, weights_RQ: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws means of a cell under resampling of its seeds and of questions.

    Args:
        correct_SQ: 0 or 1 for each seed and question.
        weights_RQ: The share of each question in each resample; the same for cells that are compared.
        rng: Draws the seeds.

    Returns:
        [R] means.
    """
    num_seeds = len(correct_SQ)
    counts_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=len(weights_RQ))
    return np.einsum("rs,rs->r", counts_RS / num_seeds, weights_RQ @ correct_SQ.T)
