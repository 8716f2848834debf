"""Training size as an axis of a study: means over sizes, and the size that a wanted accuracy takes.

A seed draws its questions once, the same for all arms, and a smaller size's are among a larger one's. So the cells of
an arm's sizes are not independent: what joins them is taken seed by seed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from studies.analysis.estimator import ContrastEstimator
from studies.analysis.predictions import Answers, Cell, CellKey
from studies.design.grid import Study
from studies.inference.curves import find_needed_size

# Steps between two sizes at which the curve is looked at.
_STEPS = 32


def name_size(row: dict[str, Any], sizes: Sequence[int]) -> str:
    """Returns what of the sizes a row of the results is of; empty where the study has none."""
    if not sizes:
        return ""
    return f"{row['size']} questions" if row["size"] is not None else f"mean over sizes {', '.join(map(str, sizes))}"


def _list_curves(study: Study, answers: Answers) -> dict[CellKey, list[Cell]]:
    """Returns the cells of each arm that has all sizes, smallest first, by its key without a size.

    Only the seeds that all of them have are kept.
    """
    curves = defaultdict[CellKey, dict[int, Cell]](dict)
    for key, cell in answers.cells.items():
        if key.size is not None:
            curves[key._replace(size=None)][key.size] = cell
    found = {}
    for key, cells in curves.items():
        seeds = set.intersection(*(set(cell.seeds) for cell in cells.values()))
        if len(cells) == len(study.sizes) and seeds:
            found[key] = [keep_seeds(cells[size], sorted(seeds)) for size in study.sizes]
    return found


def keep_seeds(cell: Cell, seeds: list[int]) -> Cell:
    """Returns a cell's answers of some of its seeds, in this order."""
    return replace(cell, correct_SQ=cell.correct_SQ[[cell.seeds.index(seed) for seed in seeds]], seeds=seeds)


def pool_sizes(study: Study, answers: Answers) -> Answers:
    """Returns cells that are the mean over an arm's sizes, each size counting alike, and the untuned ones."""
    untuned = {key: cell for key, cell in answers.cells.items() if key.trained_on is None}
    pooled = {
        key: replace(cells[0], correct_SQ=np.mean([cell.correct_SQ for cell in cells], axis=0))
        for key, cells in _list_curves(study, answers).items()
    }
    return replace(answers, cells=untuned | pooled)


def trace_curve(
    estimator: ContrastEstimator, key: CellKey, cells: Sequence[Cell]
) -> tuple[list[float], list[tuple[float, float, float]]]:
    """Returns the accuracy with its interval along an arm's sizes, linear between two, seed by seed."""
    places, bands = list[float](), list[tuple[float, float, float]]()
    for number in range((len(cells) - 1) * _STEPS + 1):
        left, share = divmod(number, _STEPS)
        right = min(left + 1, len(cells) - 1)
        mixed_SQ = (1 - share / _STEPS) * cells[left].correct_SQ + share / _STEPS * cells[right].correct_SQ
        places.append(number / _STEPS)
        bands.append(estimator.measure(key, mixed_SQ))
    return places, bands


def describe_needed_sizes(study: Study, answers: Answers) -> list[dict[str, Any]]:
    """Returns a row for each arm that has all sizes: how many questions a wanted accuracy takes.

    Without a `target_accuracy` it is halfway between a student's worst and best mean over seeds, whatever arm and size.
    """
    if len(study.sizes) < 2:
        return []
    curves = _list_curves(study, answers)
    estimator = ContrastEstimator(answers)
    means = defaultdict[tuple[str, str | None, str], list[float]](list)
    for key, cells in curves.items():
        means[key.student, key.trained_on, key.task] += [float(cell.correct_SQ.mean()) for cell in cells]
    rows = []
    for key, cells in curves.items():
        own = means[key.student, key.trained_on, key.task]
        target = study.target_accuracy if study.target_accuracy is not None else (min(own) + max(own)) / 2
        places, bands = trace_curve(estimator, key, cells)
        needed = find_needed_size(study.sizes, bands, places, target)
        rows.append({**key._asdict(), "condition": key.condition, "target": target, **vars(needed)})
    return rows


def explain_needed(row: dict[str, Any], sizes: Sequence[int]) -> str:
    """Returns a sentence that says how many questions an arm needs."""

    def say(size: float | None) -> str:
        if size is None:
            return f"more than {sizes[-1]}"
        return f"{sizes[0]} or fewer" if size <= sizes[0] else f"{size:.0f}"

    needs = f"{say(row['needed'])} questions for {row['target']:.1%}"
    return (
        f"{row['student']}, {row['condition']}: needs {needs} (95 % interval: {say(row['low'])} to {say(row['high'])})"
    )
