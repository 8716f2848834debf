"""How often the intervals of a study's statistics hold, on simulated grids with known effects."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import norm

from lightning_modules.evaluation.proportions import LEVEL
from studies.design.power import Components, simulate_answers, simulate_seeds
from studies.inference.curves import find_needed_size
from studies.inference.interaction import decompose, estimate_gammas, estimate_over_pairs
from studies.inference.parts import decompose_parts
from studies.inference.statistics import estimate_accuracy, estimate_contrast

Interval = tuple[float, float]
TWO_BY_TWO = (["l", "q"], ["l", "q"])
# Correlations of the normal variables behind the answers; those of the answers are smaller: 0.53 and 0.33.
USUAL = Components(0.6, 0.025, 0.75, 0.5)
MIDDLE = (0.62, 0.58, 0.66, 0.62, 0.5)


@dataclass(frozen=True)
class Scenario:
    """Two students and two teachers of two families, and the untuned student.

    Attributes:
        name: Says what is special.
        num_questions: Test questions.
        accuracies: LL, LQ, QL, QQ (student, teacher), and of the first student untuned.
        components: How answers vary; the correlations are those of `simulate_seeds`.
        num_seeds: Training seeds of the four trained cells.
        spreads: What the standard deviation over seeds of each of them is multiplied by.
        num_groups: Groups that the questions come in, of which each cell finds some hard; None for none.
    """

    name: str
    num_questions: int = 200
    accuracies: tuple[float, float, float, float, float] = MIDDLE
    components: Components = USUAL
    num_seeds: tuple[int, int, int, int] = (3, 3, 3, 3)
    spreads: tuple[float, float, float, float] = (1, 1, 1, 1)
    num_groups: int | None = None

    @property
    def is_at_an_end(self) -> bool:
        """Whether a cell's accuracy is so near 0 or 1 that few of its questions count."""
        return min(self.accuracies) < 0.05 or max(self.accuracies) > 0.95

    @property
    def has_one_seed_each(self) -> bool:
        """Whether nothing estimates the variance over seeds: the interval then is of these trained models."""
        return max(self.num_seeds) == 1


SCENARIOS = [
    # The microworld's correlations are its own, of two seeds.
    Scenario("microworld", 400, (0.94, 0.63, 0.99, 0.98, 0.28), Components(0.89, 0.016, 0.8, 0.02)),
    Scenario("no effect, stable seeds", components=Components(0.6, 0.0, 0.75, 0.5)),
    Scenario("no effect, seeds vary"),
    Scenario("no effect, many questions", 1000, components=Components(0.6, 0.015, 0.75, 0.5)),
    Scenario("no effect, seeds dominate", 1000, components=Components(0.6, 0.04, 0.75, 0.5)),
    Scenario("no effect, unequal arms", 500, (0.48, 0.65, 0.72, 0.89, 0.3), Components(0.6, 0.03, 0.75, 0.5)),
    Scenario("gamma of 4 points", 500, (0.66, 0.58, 0.58, 0.66, 0.6), Components(0.6, 0.02, 0.75, 0.5)),
    Scenario("seeds 3, 3, 3, 1", num_seeds=(3, 3, 3, 1)),
    Scenario("seeds 1, 1, 1, 3", num_seeds=(1, 1, 1, 3)),
    Scenario("seeds 1, 3, 5, 2, many questions", 1000, num_seeds=(1, 3, 5, 2)),
    Scenario("one seed each", num_seeds=(1, 1, 1, 1)),
    Scenario("unequal seed variances", spreads=(0.5, 2, 0, 1)),
    Scenario("ceiling", accuracies=(0.98, 0.98, 0.98, 0.98, 0.98)),
    Scenario("floor", accuracies=(0.02, 0.02, 0.02, 0.02, 0.02)),
    Scenario("20 groups of 10 questions", num_groups=20),
    Scenario("20 groups of 10 questions, seeds 3, 3, 3, 1", num_groups=20, num_seeds=(3, 3, 3, 1)),
]


def name_targets() -> dict[str, np.ndarray]:
    """Returns the weights of what is estimated, by name."""
    return {
        "accuracy": np.array([1.0, 0, 0, 0, 0]),
        "gain": np.array([1.0, 0, 0, 0, -1]),
        "difference": np.array([1.0, -1, 0, 0, 0]),
        "gamma": np.append(decompose(*TWO_BY_TWO).gamma_ST.reshape(-1), 0),
    }


def estimate_interval(cells: list[np.ndarray], weights_C: np.ndarray, groups_Q: np.ndarray | None) -> Interval:
    """Returns the interval that a study reports; the last cell is untuned."""
    trained = [True] * (len(cells) - 1) + [False]
    pool = cells[:-1]
    used = [place for place, weight in enumerate(weights_C) if weight]
    if len(used) == 1:
        return estimate_accuracy(cells[used[0]], trained[used[0]], groups_Q, pool)[1:]
    own, weights = [cells[place] for place in used], [float(weights_C[place]) for place in used]
    found = estimate_contrast(own, weights, [trained[place] for place in used], groups_Q, pool)
    return found.low, found.high


def bootstrap_interval(
    cells: list[np.ndarray], weights_C: np.ndarray, groups_Q: np.ndarray | None, rng: np.random.Generator
) -> Interval:
    """Returns the percentiles of a plain hierarchical bootstrap: seeds resampled in each cell, questions in common."""
    num_resamples, num_questions = 500, cells[0].shape[1]
    picks_RQ = rng.integers(num_questions, size=(num_resamples, num_questions))
    places_RQ = picks_RQ + num_questions * np.arange(num_resamples)[:, None]
    counts = np.bincount(places_RQ.reshape(-1), minlength=places_RQ.size)
    shares_RQ = counts.reshape(num_resamples, num_questions) / num_questions
    draws_R = np.zeros(num_resamples)
    for cell_SQ, weight in zip(cells, weights_C, strict=True):
        if weight:
            size = len(cell_SQ)
            counts_RS = rng.multinomial(size, np.full(size, 1 / size), num_resamples)
            draws_R += weight * (counts_RS * (shares_RQ @ cell_SQ.T)).sum(1) / size
    low, high = np.percentile(draws_R, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)


def normal_interval(cells: list[np.ndarray], weights_C: np.ndarray, groups_Q: np.ndarray | None) -> Interval:
    """Returns mean and 1.96 standard errors over seeds, questions taken as given, as papers report them."""
    value = sum(weight * cell.mean() for cell, weight in zip(cells, weights_C, strict=True))
    pairs = zip(cells, weights_C, strict=True)
    variance = sum(weight**2 * cell.mean(1).var(ddof=1) / len(cell) for cell, weight in pairs if len(cell) > 1)
    half = float(norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance))
    return value - half, value + half


def measure_coverage(
    scenario: Scenario,
    method: Callable[[list[np.ndarray], np.ndarray, np.ndarray | None], Interval],
    num_simulations: int,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the share of simulated studies in which a method's interval holds the truth, by target.

    The truth is of all seeds and questions; with one seed each, of these seeds and all questions.
    """
    rng = np.random.default_rng(seed)
    targets = name_targets()
    accuracies, num_questions = np.array(scenario.accuracies), scenario.num_questions
    groups_Q = None
    if scenario.num_groups is not None:
        groups_Q = np.arange(scenario.num_groups).repeat(num_questions // scenario.num_groups)
    seeds = (*scenario.num_seeds, 1)
    held = dict.fromkeys(targets, 0)
    for _ in range(num_simulations):
        answers_CSQ, able_CS = simulate_seeds(
            accuracies,
            max(seeds),
            num_questions,
            scenario.components,
            rng,
            np.array([*scenario.spreads, 0.0]),
            scenario.num_groups,
        )
        cells = [answers_SQ[:number] for answers_SQ, number in zip(answers_CSQ, seeds, strict=True)]
        truth_C = able_CS[:, 0] if scenario.has_one_seed_each else accuracies
        for name, weights_C in targets.items():
            low, high = method(cells, weights_C, groups_Q)
            held[name] += bool(low <= weights_C @ truth_C <= high)
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


# Of text and of distributions: LL, LQ, QL, QQ (student, teacher).
GAMMAS = {
    "both 0": ((0.62, 0.58, 0.66, 0.62), (0.64, 0.6, 0.68, 0.64)),
    "of text 3, of distributions 6 points": ((0.63, 0.57, 0.6, 0.6), (0.66, 0.56, 0.6, 0.62)),
    "near the ceiling": ((0.94, 0.63, 0.98, 0.97), (0.95, 0.7, 0.98, 0.98)),
}


def measure_difference_coverage(name: str, num_simulations: int, seed: int = 0) -> dict[str, float]:
    """Returns the coverage of gamma of text, gamma of distributions, their difference, and that with the text held.

    Two by two models, 3 seeds, 300 questions. Where the text is held, the distributions of the student's own family
    come with all texts, which gives the other family's 2 points more than its own do.
    """
    rng = np.random.default_rng(seed)
    text, logits = (np.array(cells) for cells in GAMMAS[name])
    own = logits[1:3] + 0.02
    gamma_C = decompose(*TWO_BY_TWO).gamma_ST.reshape(-1)
    none_C, none_D = np.zeros(4), np.zeros(2)
    targets = {
        "text": np.concatenate([gamma_C, none_C, none_D]),
        "distributions": np.concatenate([none_C, gamma_C, none_D]),
        "difference": np.concatenate([-gamma_C, gamma_C, none_D]),
        # Within the family both have the same cells.
        "difference, text held": np.concatenate([none_C, gamma_C * [0, 1, 1, 0], -gamma_C[1:3]]),
    }
    accuracy_C = np.concatenate([text, logits, own])
    held: Counter[str] = Counter()
    for _ in range(num_simulations):
        cells = [*simulate_answers(accuracy_C, 3, 300, USUAL, rng)]
        for target, weights_C in targets.items():
            used = np.flatnonzero(weights_C)
            found = estimate_contrast([cells[place] for place in used], weights_C[used].tolist())
            held[target] += bool(found.low <= weights_C @ accuracy_C <= found.high)
    return {target: count / num_simulations for target, count in held.items()}


PART_NAMES = ("tokenizer", "architecture", "style")
# Unequal effects; the last part's is 0.
PART_EFFECTS = {4: (0.05, 0.0), 8: (0.06, 0.025, 0.0)}


def measure_part_coverage(num_families: int, num_simulations: int, seed: int = 0) -> dict[str, float]:
    """Returns the coverage of the intervals of a part's gamma, by part and method.

    A student and a teacher of each family, whose parts are all combinations of two values each; 3 seeds, 200
    questions. The mixed model is given effects of pairs of their own, which its intervals are over.

    Args:
        num_families: 4, of two parts, or 8, of three.
        num_simulations: Studies to draw.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    effects = PART_EFFECTS[num_families]
    names = PART_NAMES[: len(effects)]
    models = {
        f"{number}": dict(zip(names, values, strict=True))
        for number, values in enumerate(product(("one", "other"), repeat=len(names)))
    }
    decomposed = decompose_parts(models, models)
    main_F = np.linspace(-0.08, 0.08, num_families)
    accuracy_ST = 0.55 + main_F[:, None] + rng.permutation(main_F)
    for name, effect in zip(names, effects, strict=True):
        accuracy_ST += effect * np.array(
            [[own[name] == other[name] for other in models.values()] for own in models.values()]
        )
    held: Counter[str] = Counter()
    for _ in range(num_simulations):
        cells = [*simulate_answers(accuracy_ST.reshape(-1), 3, 200, USUAL, rng)]
        pairs_ST = accuracy_ST + 0.03 * rng.standard_normal(accuracy_ST.shape)
        paired = estimate_over_pairs(pairs_ST, decomposed.weights_GST, decomposed.rank)
        assert paired is not None
        for own, truth in zip(decomposed.effects, effects, strict=True):
            [name] = own.parts
            found = estimate_contrast(cells, own.weights_ST.reshape(-1).tolist())
            held[name] += bool(found.low <= truth <= found.high)
            over = paired[0][own.place]
            held[f"{name}, mixed model"] += bool(over.low <= truth <= over.high)
    return {name: count / num_simulations for name, count in held.items()}


def measure_size_coverage(num_simulations: int, seed: int = 0) -> float:
    """Returns the coverage of the interval of the size that an accuracy takes.

    Four sizes, 3 seeds, 200 questions; a seed's nested draw of training questions is worth as much at every size.
    """
    rng = np.random.default_rng(seed)
    sizes, accuracies, target = (16, 64, 256, 1024), np.array([0.35, 0.5, 0.65, 0.75]), 0.6
    truth = float(2 ** np.interp(target, accuracies, np.log2(sizes)))
    places = [number / 8 for number in range(8 * (len(sizes) - 1) + 1)]
    spread = (USUAL.seed_sd / norm.pdf(norm.ppf(USUAL.accuracy))) ** 2
    held = 0
    for _ in range(num_simulations):
        # Questions and seeds are shared by all sizes, as the normal variables behind the answers are.
        base_SQ = np.sqrt(USUAL.same_cell) * rng.standard_normal(200) + np.sqrt(spread) * rng.standard_normal((3, 1))
        base_SQ = base_SQ + np.sqrt(1 - USUAL.same_cell - spread) * rng.standard_normal((3, 200))
        cells = [(base_SQ > -norm.ppf(accuracy)).astype(float) for accuracy in accuracies]
        bands = []
        for place in places:
            left = min(int(place), len(cells) - 2)
            mixed_SQ = (1 - place + left) * cells[left] + (place - left) * cells[left + 1]
            bands.append(estimate_accuracy(mixed_SQ))
        found = find_needed_size(sizes, bands, places, target)
        held += bool((found.low or np.inf) <= truth <= (found.high or np.inf))
    return held / num_simulations
