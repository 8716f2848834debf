"""Contrasts of a study's cells, each with what its variance over training seeds comes from.

Where each seed draws its questions (`sizes`), seeds of one number are matched: all arms learned from the same draw, and
those of two teachers perhaps from the same texts. A contrast is then taken seed by seed, and varies as its seeds do.
"""

from collections.abc import Sequence

import numpy as np

from studies.analysis.predictions import Answers, CellKey
from studies.inference.statistics import Estimate, SeedSource, estimate_accuracy, estimate_contrast, find_seed_source


class ContrastEstimator:
    """Estimates sums of cells' accuracies, over seeds and questions.

    Args:
        answers: What the study's arms answered.
    """

    def __init__(self, answers: Answers):
        self.cells, self.questions, self.groups = answers.cells, answers.questions, answers.groups
        self.is_outcome, self.is_matched = answers.is_outcome, answers.is_matched
        self._pools: dict[frozenset[tuple[str, str]], list[np.ndarray]] = {}

    def contrast(self, weights: dict[CellKey, float]) -> Estimate:
        """Returns the sum of weight times accuracy; the cells are of one test task."""
        cells, trained, pool = self._find_seeds([*weights])
        groups_Q = self.groups[next(iter(weights)).task]
        pseudo = 0.0 if self.is_outcome else 1.0
        if self._is_seed_by_seed([*weights]):
            count = self.count_seeds([key for key in weights if key.trained_on])
            value_SQ = np.zeros((count, self.questions[next(iter(weights)).task]))
            for key, weight in weights.items():
                # An untuned cell's only row of answers goes with every seed.
                value_SQ += weight * self.cells[key].correct_SQ
            pseudo *= sum(weight**2 for weight in weights.values())
            return estimate_contrast([value_SQ], [1.0], groups_Q=groups_Q, pseudo=pseudo, is_matched=True)
        return estimate_contrast(cells, list(weights.values()), trained, groups_Q, pool, pseudo)

    def _is_seed_by_seed(self, keys: Sequence[CellKey]) -> bool:
        """Says whether cells' seeds are matched: they have the same ones, and several."""
        seeds = {tuple(self.cells[key].seeds) for key in keys if key.trained_on}
        return self.is_matched and len(seeds) == 1 and len(seeds.pop()) > 1

    def accuracy(self, key: CellKey) -> tuple[float, float, float]:
        """Returns a cell's accuracy and its interval."""
        return self.measure(key, self.cells[key].correct_SQ)

    def measure(self, key: CellKey, correct_SQ: np.ndarray) -> tuple[float, float, float]:
        """Returns the same of answers that take a cell's place."""
        pool = self._find_pool([key])
        return estimate_accuracy(correct_SQ, key.trained_on is not None, self.groups[key.task], pool)

    def mean(self, key: CellKey) -> float:
        """Returns a cell's accuracy alone."""
        return float(self.cells[key].correct_SQ.mean())

    def count_seeds(self, keys: Sequence[CellKey]) -> int:
        """Returns the fewest training seeds of some cells."""
        return min(len(self.cells[key].correct_SQ) for key in keys)

    def seed_source(self, keys: Sequence[CellKey]) -> SeedSource:
        """Says where a contrast's variance over seeds comes from."""
        return find_seed_source(*self._find_seeds(keys))

    def method(self, keys: Sequence[CellKey]) -> str:
        """Names what an interval of a contrast of these cells is over."""
        return "questions alone" if self.seed_source(keys) == "left out" else "seeds and questions"

    def _find_seeds(self, keys: Sequence[CellKey]) -> tuple[list[np.ndarray], list[bool], list[np.ndarray]]:
        """Returns cells' answers, whether each was trained, and the answers that seeds' variance may be pooled over."""
        trained = [key.trained_on is not None for key in keys]
        return [self.cells[key].correct_SQ for key in keys], trained, self._find_pool(keys)

    def _find_pool(self, keys: Sequence[CellKey]) -> list[np.ndarray]:
        places = frozenset((key.trained_on, key.task) for key in keys if key.trained_on)
        if places not in self._pools:
            pool = [cell.correct_SQ for key, cell in self.cells.items() if (key.trained_on, key.task) in places]
            self._pools[places] = pool
        return self._pools[places]
