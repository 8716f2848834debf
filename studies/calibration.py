"""How often the intervals of a study's statistics hold, on simulated grids with known effects."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from studies.interaction import decompose, estimate_gammas
from studies.power import Components, simulate_answers
from studies.statistics import LEVEL, estimate_accuracy, estimate_contrast

Interval = tuple[float, float]
TWO_BY_TWO = (["l", "q"], ["l", "q"])


@dataclass(frozen=True)
class Scenario:
    """Two students and two teachers of two families, and the untuned student.

    Attributes:
        name: Says what is special.
        num_questions: Test questions.
        accuracies: LL, LQ, QL, QQ (student, teacher), and of the first student untuned.
        components: How answers vary; the correlations are those of `simulate_answers`.
        num_seeds: Training seeds.
    """

    name: str
    num_questions: int
    accuracies: tuple[float, float, float, float, float]
    components: Components
    num_seeds: int = 3


# Correlations of the normal variables behind the answers; those of the answers are smaller: 0.53 and 0.33 for 0.75 and
# 0.5. The microworld's are its own, of two seeds.
SCENARIOS = [
    Scenario("microworld", 400, (0.94, 0.63, 0.99, 0.98, 0.28), Components(0.89, 0.016, 0.8, 0.02)),
    Scenario("no effect, stable seeds", 200, (0.62, 0.58, 0.66, 0.62, 0.5), Components(0.6, 0.0, 0.75, 0.5)),
    Scenario("no effect, seeds vary", 200, (0.62, 0.58, 0.66, 0.62, 0.5), Components(0.6, 0.025, 0.75, 0.5)),
    Scenario("no effect, many questions", 1000, (0.62, 0.58, 0.66, 0.62, 0.5), Components(0.6, 0.015, 0.75, 0.5)),
    Scenario("no effect, seeds dominate", 1000, (0.62, 0.58, 0.66, 0.62, 0.5), Components(0.6, 0.04, 0.75, 0.5)),
    Scenario("no effect, unequal arms", 500, (0.48, 0.65, 0.72, 0.89, 0.3), Components(0.6, 0.03, 0.75, 0.5)),
    Scenario("gamma of 4 points", 500, (0.66, 0.58, 0.58, 0.66, 0.6), Components(0.6, 0.02, 0.75, 0.5)),
]


def name_targets(accuracies: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Returns the weights and the true value of what is estimated, by name."""
    gamma = np.append(decompose(*TWO_BY_TWO).gamma_ST.reshape(-1), 0)
    weights = {
        "accuracy": np.array([1.0, 0, 0, 0, 0]),
        "gain": np.array([1.0, 0, 0, 0, -1]),
        "difference": np.array([1.0, -1, 0, 0, 0]),
        "gamma": gamma,
    }
    return {name: (weights_C, float(weights_C @ accuracies)) for name, weights_C in weights.items()}


def estimate_interval(cells: list[np.ndarray], weights_C: np.ndarray) -> Interval:
    """Returns the interval that a study reports."""
    used = [(cell, weight) for cell, weight in zip(cells, weights_C.tolist(), strict=True) if weight]
    if len(used) == 1:
        return estimate_accuracy(used[0][0])[1:]
    found = estimate_contrast([cell for cell, _ in used], [weight for _, weight in used])
    return found.low, found.high


def bootstrap_interval(cells: list[np.ndarray], weights_C: np.ndarray, rng: np.random.Generator) -> Interval:
    """Returns the percentiles of a plain hierarchical bootstrap: seeds resampled in each cell, questions in common."""
    num_resamples, num_questions = 1000, cells[0].shape[1]
    shares_RQ = rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), num_resamples) / num_questions
    draws_R = np.zeros(num_resamples)
    for cell_SQ, weight in zip(cells, weights_C, strict=True):
        if weight:
            size = len(cell_SQ)
            counts_RS = rng.multinomial(size, np.full(size, 1 / size), num_resamples)
            draws_R += weight * (counts_RS * (shares_RQ @ cell_SQ.T)).sum(1) / size
    low, high = np.percentile(draws_R, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)


def normal_interval(cells: list[np.ndarray], weights_C: np.ndarray) -> Interval:
    """Returns mean and 1.96 standard errors over seeds, questions taken as given, as papers report them."""
    value = sum(weight * cell.mean() for cell, weight in zip(cells, weights_C, strict=True))
    pairs = zip(cells, weights_C, strict=True)
    variance = sum(weight**2 * cell.mean(1).var(ddof=1) / len(cell) for cell, weight in pairs if len(cell) > 1)
    half = float(norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance))
    return value - half, value + half


def measure_coverage(
    scenario: Scenario, method: Callable[[list[np.ndarray], np.ndarray], Interval], num_simulations: int, seed: int = 0
) -> dict[str, float]:
    """Returns the share of simulated studies in which a method's interval holds the truth, by target."""
    rng = np.random.default_rng(seed)
    accuracies = np.array(scenario.accuracies)
    targets = name_targets(accuracies)
    trained_C = np.array([True] * 4 + [False])
    held = dict.fromkeys(targets, 0)
    for _ in range(num_simulations):
        answers_CSQ = simulate_answers(
            accuracies, scenario.num_seeds, scenario.num_questions, scenario.components, rng, trained_C
        )
        cells = [*answers_CSQ[:4], answers_CSQ[4, :1]]
        for name, (weights_C, truth) in targets.items():
            low, high = method(cells, weights_C)
            held[name] += low <= truth <= high
    return {name: count / num_simulations for name, count in held.items()}


def measure_pair_coverage(num_simulations: int, pair_sd: float = 0.03, seed: int = 0) -> dict[str, float]:
    """Returns the coverage of the intervals over models, by method, where each pair has an effect of its own.

    Three students and six teachers of two families, 3 seeds, 500 questions, gamma = 0.
    """
    rng = np.random.default_rng(seed)
    families = ["l", "q", "q"], ["l"] * 3 + ["q"] * 3
    main_ST = 0.6 + np.array([[0.03], [-0.03], [0.0]]) + np.linspace(-0.05, 0.05, 6)
    held: Counter[str] = Counter()
    for _ in range(num_simulations):
        accuracy_ST = main_ST + pair_sd * rng.standard_normal((3, 6))
        answers_CSQ = simulate_answers(accuracy_ST.reshape(-1), 3, 500, Components(0.6, 0.02, 0.75, 0.5), rng)
        means_ST = answers_CSQ.mean((1, 2)).reshape(3, 6)
        held.update(name for name, found, _ in estimate_gammas(means_ST, *families) if found.low <= 0 <= found.high)
    return {name: count / num_simulations for name, count in held.items()}
