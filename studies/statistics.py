"""Estimates from answers to the same questions: intervals over training seeds and questions, paired and multiple tests.

A cell's answers are an array [S, Q] of 0 and 1: training seeds x questions, the same questions in every cell. What is
estimated are contrasts, sums of w_c * accuracy_c. Their error has two independent parts, for other questions could have
been asked, and other seeds trained:

    questions   variance over questions of sum_c w_c * (mean answer of cell c), Q - 1 degrees of freedom; cells answer
                the same questions, so what makes a question hard for all of them cancels
    seeds       sum_c w_c^2 * (variance of cell c's accuracy over its seeds) / S_c, less what two seeds differ in by
                answering single questions differently, which the first part has counted already

Seeds of different cells count as independent, also where they have the same number. The variances are those of a
crossed analysis of variance: the REML estimates of a mixed model with a fixed mean per cell, random seeds within cells
and random questions, where none is negative. Two or three seeds say little of their own variance, so an interval weighs
each part with its own t-quantile:

    half width^2 = t(Q - 1)^2 * var_questions + t(df_seeds)^2 * var_seeds

which is the method of variance estimates recovery (Zou & Donner 2008, "Construction of confidence limits about effect
measures"; for sums of variances Graybill & Wang 1980). A bootstrap that resamples 3 seeds sees two thirds of their
variance and none of the uncertainty about it; `scripts.benchmark calibration` shows how often it fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import binomtest, norm

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        estimate: The number.
        low: Lower end.
        high: Upper end.
        p: Two-sided, of the number being zero.
    """

    estimate: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Uncertainty:
    """The two parts of an estimate's error.

    Attributes:
        questions: Variance over questions.
        seeds: Variance over training seeds; 0 where no cell has two seeds.
        df_questions: Degrees of freedom of `questions`.
        df_seeds: Of `seeds` (Satterthwaite 1946, over cells).
    """

    questions: float
    seeds: float
    df_questions: float
    df_seeds: float

    def half_width(self, p: float = 1 - LEVEL) -> float:
        """Returns half the width of the interval that misses with probability p."""
        quantiles = [stdtrit(df, p / 2) for df in (self.df_questions, self.df_seeds)]
        return float(np.sqrt(quantiles[0] ** 2 * self.questions + quantiles[1] ** 2 * self.seeds))

    def estimate(self, value: float) -> Estimate:
        """Returns the value with its interval, and the p at which the interval would just reach zero."""
        half = self.half_width()
        smallest = 1e-12
        if abs(value) >= self.half_width(smallest):
            p = smallest if value else 1.0
        else:
            p = brentq(lambda p: self.half_width(p) - abs(value), smallest, 1)
        return Estimate(value, value - half, value + half, p)


def measure_uncertainty(cells: Sequence[np.ndarray], weights: Sequence[float], pseudo: float = 0.0) -> Uncertainty:
    """Returns the error of sum_c w_c * accuracy_c.

    Args:
        cells: [S_c, Q] each.
        weights: One for each cell.
        pseudo: Discordant questions to be added, half of them in either direction.
    """
    num_questions = cells[0].shape[1]
    difference_Q = sum(weight * cell.mean(0) for weight, cell in zip(weights, cells, strict=True))
    squares = float(((difference_Q - np.mean(difference_Q)) ** 2).sum()) + pseudo * float(np.square(weights).sum()) / 2
    questions = squares / (num_questions - 1) / num_questions
    seeds = residual = spread = 0.0
    for weight, cell_SQ in zip(weights, cells, strict=True):
        if weight == 0 or (num_seeds := len(cell_SQ)) == 1:
            continue
        means_S1 = cell_SQ.mean(1, keepdims=True)
        own = weight**2 * float(means_S1.var(ddof=1)) / num_seeds
        rest_SQ = cell_SQ - means_S1 - cell_SQ.mean(0) + cell_SQ.mean()
        residual += weight**2 * float((rest_SQ**2).sum()) / (num_seeds - 1) / (num_questions - 1) / rest_SQ.size
        seeds += own
        spread += own**2 / (num_seeds - 1)
    df_seeds = seeds**2 / spread if spread > 0 else 1.0
    return Uncertainty(questions, max(seeds - residual, 0.0), num_questions - 1, df_seeds)


def estimate_contrast(cells: Sequence[np.ndarray], weights: Sequence[float]) -> Estimate:
    """Estimates sum_c w_c * accuracy_c over seeds and questions.

    One discordant question is added to the variance (Agresti & Min 2005), so that cells that happen to answer alike
    are not said to differ by exactly nothing.

    Args:
        cells: [S_c, Q] each, the same questions in all; a cell with one seed counts as without variance over seeds.
        weights: One for each cell; they sum to 0.
    """
    value = sum(weight * float(cell.mean()) for weight, cell in zip(weights, cells, strict=True))
    return measure_uncertainty(cells, weights, pseudo=1.0).estimate(value)


def estimate_accuracy(correct_SQ: np.ndarray) -> tuple[float, float, float]:
    """Returns a cell's accuracy and its interval: Wilson's, for as many questions as the variance is worth.

    The number of trials is p(1-p) / variance, and the normal quantile is replaced by the interval's own, as is usual
    for proportions of clustered samples (Dean & Pagano 2015). With one seed it is Wilson's interval, but for t.
    """
    share, num_questions = float(correct_SQ.mean()), correct_SQ.shape[1]
    uncertainty = measure_uncertainty([correct_SQ], [1.0])
    variance = uncertainty.questions + uncertainty.seeds
    if variance <= 1e-15:
        return share, *wilson_interval(share * num_questions, num_questions)
    trials = share * (1 - share) / variance
    return share, *wilson_interval(share * trials, trials, uncertainty.half_width() / float(np.sqrt(variance)))


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


@dataclass(frozen=True)
class ModelComparison:
    """Two trained models on the same questions: what other questions could change, whatever other seeds would.

    Attributes:
        left_only: Questions that the left one answers right in more of its seeds.
        right_only: The other way round.
        p: Exact two-sided binomial test of these counts: McNemar's for one seed, the sign test for several.
        low: Lower end of the difference's 95 % interval, by paired bootstrap over questions.
        high: Upper end.
    """

    left_only: int
    right_only: int
    p: float
    low: float
    high: float


def compare_models(
    left_SQ: np.ndarray, right_SQ: np.ndarray, rng: np.random.Generator, num_resamples: int = 10_000
) -> ModelComparison:
    """Compares trained models on the questions that both answered.

    Args:
        left_SQ: 0 or 1.
        right_SQ: For the same questions.
        rng: Draws the resamples.
        num_resamples: Of the bootstrap.
    """
    difference_Q = left_SQ.mean(0) - right_SQ.mean(0)
    left_only, right_only = int((difference_Q > 0).sum()), int((difference_Q < 0).sum())
    p = float(binomtest(left_only, left_only + right_only).pvalue) if left_only + right_only else 1.0
    # Few values occur, so a resample is how often each is drawn.
    values, counts = np.unique(difference_Q, return_counts=True)
    draws = rng.multinomial(len(difference_Q), counts / len(difference_Q), size=num_resamples) @ values
    low, high = np.percentile(draws / len(difference_Q), [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return ModelComparison(left_only, right_only, p, float(low), float(high))


def adjust_holm(ps: Sequence[float]) -> list[float]:
    """Returns each p, adjusted for there being as many tests (Holm 1979)."""
    order = np.argsort(ps, kind="stable")
    stepped = np.array(ps, dtype=float)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()
