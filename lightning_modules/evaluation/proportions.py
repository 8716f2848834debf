"""Intervals of shares, also of questions that come in groups."""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import norm

LEVEL = 0.95


def wilson_interval(correct: float, total: float, z: float = float(norm.ppf((1 + LEVEL) / 2))) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion (Wilson 1927).

    Args:
        correct: Successes; need not be whole.
        total: Trials.
        z: Quantile of the normal distribution.
    """
    share = correct / total
    centre = share + z**2 / (2 * total)
    half = z * float(np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)))
    scale = 1 + z**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def number_groups(groups: Sequence[str | None]) -> np.ndarray | None:
    """Returns the number of each question's group; a question without one is its own; None if no two share one."""
    names = [("", group) if group else (str(index), "") for index, group in enumerate(groups)]
    numbers = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]) if len(numbers) < len(names) else None


def sum_groups(values: np.ndarray, groups_Q: np.ndarray | None) -> np.ndarray:
    """Returns the sums of values [..., Q] over groups of questions, [..., G]; without groups each question is one."""
    if groups_Q is None:
        return values
    return np.apply_along_axis(lambda row_Q: np.bincount(groups_Q, row_Q), -1, values)


def group_interval(hits_Q: np.ndarray, groups_Q: np.ndarray | None) -> tuple[float, float]:
    """Returns the interval of a share: Wilson's; for groups of as many trials as their variance is worth.

    Groups are drawn whole: the variance is that of their sums, with as many degrees of freedom as groups less one
    (Dean & Pagano 2015). Where all are alike, each group is one trial.
    """
    share, size = float(hits_Q.mean()), hits_Q.size
    if groups_Q is None:
        return wilson_interval(share * size, size)
    sums_G = sum_groups(hits_Q - share, groups_Q)
    number = len(sums_G)
    variance = float((sums_G**2).sum()) * number / max(number - 1, 1) / size**2
    trials = share * (1 - share) / variance if variance > 1e-15 else number
    z = -float(stdtrit(max(number - 1, 1), (1 - LEVEL) / 2)) if variance > 1e-15 else float(norm.ppf((1 + LEVEL) / 2))
    return wilson_interval(share * trials, trials, z)
