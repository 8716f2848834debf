"""Estimates from answers to the same questions: intervals over training seeds and questions, paired and multiple tests.

A cell's answers are an array [S, Q] of 0 and 1: training seeds x questions, the same questions in every cell. What is
estimated are contrasts, sums of w_c * accuracy_c. Their error has two independent parts, for other questions could have
been asked, and other seeds trained:

    questions   variance over questions of sum_c w_c * (mean answer of cell c), Q - 1 degrees of freedom; cells answer
                the same questions, so what makes a question hard for all of them cancels
    seeds       sum_c w_c^2 * (variance of cell c's accuracy over its seeds) / S_c, less what two seeds differ in by
                answering single questions differently, which the first part has counted already

Where questions come in groups (several of one passage, translations of one), a group is drawn with all its questions:
sums over groups take the place of questions, with as many degrees of freedom as groups less one (Liang & Zeger 1986).

One seed has no variance that could be seen. Such a cell takes the pooled variance of the cells with several seeds:
those of the contrast or, where it has none, of the study. Where no cell has two, the interval is over questions alone.

Seeds of different cells count as independent, also where they have the same number; where these learned from one draw
of questions, `studies.analysis.estimator` gives a contrast's answers seed by seed, as one cell. The variances are those
of a crossed analysis of variance: the REML estimates of a mixed model with a fixed mean per cell, random seeds within
cells and random questions, where none is negative. Two or three seeds say little of their own variance, so an interval
weighs each part with its own t-quantile:

    half width^2 = t(df_questions)^2 * var_questions + t(df_seeds)^2 * var_seeds

which is the method of variance estimates recovery (Zou & Donner 2008, "Construction of confidence limits about effect
measures"; for sums of variances Graybill & Wang 1980). A bootstrap that resamples 3 seeds sees two thirds of their
variance and none of the uncertainty about it; `scripts.benchmark calibration` shows how often it fails.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import binom, norm

from lightning_modules.evaluation.proportions import LEVEL, sum_groups, wilson_interval

# Where a contrast's variance over seeds comes from: each cell's own seeds; for a cell with one seed other cells'
# seeds; nowhere; or there is none, since nothing was trained.
SeedSource = Literal["own", "pooled", "left out", "none"]


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
        seeds: Variance over training seeds; 0 where nothing estimates it.
        df_questions: Degrees of freedom of `questions`.
        df_seeds: Of `seeds` (Satterthwaite 1946, over cells).
        residual: What of `seeds` single questions account for, where it is not taken off yet: pooled or matched.
    """

    questions: float
    seeds: float
    df_questions: float
    df_seeds: float
    residual: float = 0.0

    @property
    def variance(self) -> float:
        """Of the estimate, over seeds and questions."""
        return self.questions + max(self.seeds - self.residual, 0.0)

    def half_width(self, p: float = 1 - LEVEL) -> float:
        """Returns half the width of the interval that misses with probability p.

        Pooled seeds stand for more cells than they come from, and where chance makes their variance small, taking the
        residual off in full would leave nothing of it. It is taken off with the quantile of half as many degrees of
        freedom more: simulated, that holds for one to six of them, whatever share of the variance is seeds'.
        """
        dfs = (self.df_questions, self.df_seeds, 1.5 * self.df_seeds)
        questions, seeds, residual = (float(stdtrit(df, p / 2)) ** 2 for df in dfs)
        return float(np.sqrt(questions * self.questions + max(seeds * self.seeds - residual * self.residual, 0.0)))

    def estimate(self, value: float) -> Estimate:
        """Returns the value with its interval, and the p at which the interval would just reach zero."""
        half = self.half_width()
        smallest = 1e-12
        if abs(value) >= self.half_width(smallest):
            p = smallest if value else 1.0
        else:
            # On the scale of its logarithm, so that a small p is as exact as a large one.
            p = math.exp(brentq(lambda log_p: self.half_width(math.exp(log_p)) - abs(value), math.log(smallest), 0))
        return Estimate(value, value - half, value + half, p)


def find_seed_source(
    cells: Sequence[np.ndarray], trained: Sequence[bool] | None = None, pool: Sequence[np.ndarray] = ()
) -> SeedSource:
    """Says where the variance over seeds comes from; see `measure_uncertainty` for the arguments."""
    own = [cell for cell, is_trained in zip(cells, trained or [True] * len(cells), strict=True) if is_trained]
    if not own:
        return "none"
    if all(len(cell) > 1 for cell in own):
        return "own"
    return "pooled" if any(len(cell) > 1 for cell in (*own, *pool)) else "left out"


def _measure_seeds(cell_SQ: np.ndarray, groups_Q: np.ndarray | None) -> tuple[float, float]:
    """Returns the variance of a cell's accuracy over its seeds, and how much of it single questions account for."""
    num_seeds, num_questions = cell_SQ.shape
    means_S1 = cell_SQ.mean(1, keepdims=True)
    rest_SG = sum_groups(cell_SQ - means_S1 - cell_SQ.mean(0) + cell_SQ.mean(), groups_Q)
    num_groups = rest_SG.shape[1]
    rest = float((rest_SG**2).sum()) / (num_seeds - 1) * num_groups / (num_groups - 1) / num_questions**2
    return float(means_S1.var(ddof=1)), rest


def measure_uncertainty(
    cells: Sequence[np.ndarray],
    weights: Sequence[float],
    pseudo: float = 0.0,
    trained: Sequence[bool] | None = None,
    groups_Q: np.ndarray | None = None,
    pool: Sequence[np.ndarray] = (),
    is_matched: bool = False,
) -> Uncertainty:
    """Returns the error of sum_c w_c * accuracy_c.

    Args:
        cells: [S_c, Q] each.
        weights: One for each cell.
        pseudo: Discordant questions to be added, half of them in either direction.
        trained: Whether each cell's model was trained, so that other seeds could answer otherwise; by default all.
        groups_Q: Each question's group, numbered from 0; None where each is its own.
        pool: Other cells, whose seeds' variance is taken where no trained cell of these has two seeds.
        is_matched: Whether a cell is several, seed by seed: its few seeds stand for all of them, as pooled ones do.
    """
    num_questions = cells[0].shape[1]
    difference_Q = sum(weight * cell.mean(0) for weight, cell in zip(weights, cells, strict=True))
    sums_G = sum_groups(difference_Q - np.mean(difference_Q), groups_Q)
    num_groups = len(sums_G)
    squares = float((sums_G**2).sum()) + pseudo * float(np.square(weights).sum()) / 2
    questions = squares / (num_groups - 1) * num_groups / num_questions**2

    own = [
        (weight**2, cell)
        for weight, cell, is_trained in zip(weights, cells, trained or [True] * len(cells), strict=True)
        if is_trained and weight
    ]
    several = [(square / len(cell), cell) for square, cell in own if len(cell) > 1]
    if single := sum(square for square, cell in own if len(cell) == 1):
        several = several or [(0.0, cell) for cell in pool if len(cell) > 1]
    total = sum(len(cell) - 1 for _, cell in several)
    seeds = residual = spread = 0.0
    for factor, cell_SQ in several:
        df = len(cell_SQ) - 1
        factor += single * df / total
        variance, rest = _measure_seeds(cell_SQ, groups_Q)
        seeds += factor * variance
        residual += factor * rest
        spread += (factor * variance) ** 2 / df
    df_seeds = seeds**2 / spread if spread > 0 else 1.0
    if single or is_matched:
        return Uncertainty(questions, seeds, num_groups - 1, df_seeds, residual)
    return Uncertainty(questions, max(seeds - residual, 0.0), num_groups - 1, df_seeds)


def estimate_contrast(
    cells: Sequence[np.ndarray],
    weights: Sequence[float],
    trained: Sequence[bool] | None = None,
    groups_Q: np.ndarray | None = None,
    pool: Sequence[np.ndarray] = (),
    pseudo: float = 1.0,
    is_matched: bool = False,
) -> Estimate:
    """Estimates sum_c w_c * accuracy_c over seeds and questions; over questions alone where `find_seed_source` says so.

    One discordant question is added to the variance (Agresti & Min 2005), so that cells that happen to answer alike
    are not said to differ by exactly nothing. Of a finer outcome than right and wrong that is no question's size.

    Args:
        cells: [S_c, Q] each, the same questions in all.
        weights: One for each cell; they sum to 0.
        trained: As `measure_uncertainty`.
        groups_Q: Likewise.
        pool: Likewise.
        pseudo: Likewise; 0 for another outcome than right and wrong.
        is_matched: Likewise.
    """
    value = sum(weight * float(cell.mean()) for weight, cell in zip(weights, cells, strict=True))
    return measure_uncertainty(cells, weights, pseudo, trained, groups_Q, pool, is_matched).estimate(value)


def estimate_accuracy(
    correct_SQ: np.ndarray,
    is_trained: bool = True,
    groups_Q: np.ndarray | None = None,
    pool: Sequence[np.ndarray] = (),
) -> tuple[float, float, float]:
    """Returns a cell's accuracy and its interval: Wilson's, for as many questions as the variance is worth.

    The number of trials is p(1-p) / variance, and the normal quantile is replaced by the interval's own, as is usual
    for proportions of clustered samples (Dean & Pagano 2015). With one seed and no pool it is Wilson's interval, but
    for t.

    Args:
        correct_SQ: 0 or 1 for each seed and question.
        is_trained: Whether other seeds could answer otherwise.
        groups_Q: As `measure_uncertainty`.
        pool: Likewise.
    """
    share, num_questions = float(correct_SQ.mean()), correct_SQ.shape[1]
    uncertainty = measure_uncertainty([correct_SQ], [1.0], 0.0, [is_trained], groups_Q, pool)
    variance, most = uncertainty.variance, num_questions if groups_Q is None else int(groups_Q.max()) + 1
    if variance <= 1e-15:
        return share, *wilson_interval(share * most, most)
    trials = share * (1 - share) / variance
    if trials == 0:
        # One seed, all alike, and a pool whose seeds differ: a share half a question from the end stands for it.
        near = 0.5 / (most + 1)
        trials = near * (1 - near) / (near * (1 - near) / most + variance)
    return share, *wilson_interval(share * trials, trials, uncertainty.half_width() / float(np.sqrt(variance)))


@dataclass(frozen=True)
class ModelComparison:
    """Two trained models on the same questions: what other questions could change, whatever other seeds would.

    Attributes:
        left_only: Questions that the left one answers right in more of its seeds.
        right_only: The other way round.
        p: Exact two-sided sign-flip test of these counts' difference, group by group; where each question is its own
            group McNemar's for one seed, the sign test for several.
        low: Lower end of the difference's 95 % interval, by paired bootstrap over questions, or over their groups.
        high: Upper end.
    """

    left_only: int
    right_only: int
    p: float
    low: float
    high: float


def compare_models(
    left_SQ: np.ndarray,
    right_SQ: np.ndarray,
    rng: np.random.Generator,
    num_resamples: int = 10_000,
    groups_Q: np.ndarray | None = None,
) -> ModelComparison:
    """Compares trained models on the questions that both answered.

    Args:
        left_SQ: 0 or 1.
        right_SQ: For the same questions.
        rng: Draws the resamples.
        num_resamples: Of the bootstrap.
        groups_Q: As `measure_uncertainty`.
    """
    difference_Q = left_SQ.mean(0) - right_SQ.mean(0)
    left_only, right_only = int((difference_Q > 0).sum()), int((difference_Q < 0).sum())
    p = flip_signs(sum_groups(np.sign(difference_Q), groups_Q))
    # Few pairs of a sum and a size occur, so a resample is how often each is drawn.
    pairs_G2 = np.stack([sum_groups(values, groups_Q) for values in (difference_Q, np.ones_like(difference_Q))], -1)
    pairs_N2, counts_N = np.unique(pairs_G2, axis=0, return_counts=True)
    num_groups = len(pairs_G2)
    draws_R2 = rng.multinomial(num_groups, counts_N / num_groups, size=num_resamples) @ pairs_N2
    # Percentiles of few groups lie too close; these are as far out as t is from the normal (Hesterberg 2015).
    quantile = float(stdtrit(max(num_groups - 1, 1), (1 - LEVEL) / 2)) * np.sqrt(num_groups / max(num_groups - 1, 1))
    tail = 100 * float(norm.cdf(quantile))
    low, high = np.percentile(draws_R2[:, 0] / draws_R2[:, 1], [tail, 100 - tail])
    return ModelComparison(left_only, right_only, p, float(low), float(high))


def flip_signs(sums_G: np.ndarray) -> float:
    """Returns the exact two-sided p of a sum of whole numbers, each of which could as well have the other sign.

    Where all are -1, 0 or 1 it is the binomial test that McNemar's and the sign test are; of larger ones, which are
    groups' sums, it is Fisher's randomisation test, McNemar's for clustered pairs.
    """
    sizes, counts = np.unique(np.abs(sums_G[sums_G != 0]).astype(int), return_counts=True)
    chances = np.ones(1)  # of the number of sizes' sum that keep their sign
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spread)
    total, value = len(chances) - 1, abs(int(sums_G.sum()))
    return min(1.0, 2 * float(chances[(total + value) // 2 :].sum())) if value else 1.0


def adjust_holm(ps: Sequence[float]) -> list[float]:
    """Returns each p, adjusted for there being as many tests (Holm 1979)."""
    order = np.argsort(ps, kind="stable")
    stepped = np.array(ps, dtype=float)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()
