"""What a study compares beside accuracy: outcomes of each question that are finer than right or wrong."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from studies.analysis.estimator import ContrastEstimator
from studies.analysis.interactions import Interactions
from studies.analysis.outcome_values import COLUMNS, MEANINGS
from studies.analysis.parts import describe_parts
from studies.analysis.predictions import Answers, CellKey
from studies.analysis.sizes import pool_sizes
from studies.design.grid import Study


def _take_outcome(answers: Answers, name: str) -> Answers:
    """Returns the cells with an outcome in place of right and wrong."""
    cells = {
        key: replace(cell, correct_SQ=cell.outcomes[name])
        for key, cell in answers.cells.items()
        if name in cell.outcomes
    }
    return replace(answers, cells=cells, is_outcome=True)


def _find_gain(estimator: ContrastEstimator, key: CellKey) -> dict[str, Any] | None:
    """Returns by how much a cell is above the same student untuned; None where that is not told."""
    untuned = CellKey(key.student, "untuned", None, None, None, key.task)
    if key == untuned or untuned not in estimator.cells:
        return None
    return asdict(estimator.contrast({key: 1, untuned: -1}))


def describe_outcomes(
    study: Study, answers: Answers, compare: Callable[[Answers], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns what the study says of each further outcome, by the methods of accuracy, and warnings.

    A row holds the outcome's name, the `cells` with their means and each one's gain over the untuned student's,
    `contrasts`, `gamma`, `gamma_differences`, `parts` and `parts_refused`.

    Args:
        study: The grid.
        answers: What its arms answered.
        compare: Returns the paired differences of cells that hold an outcome in place of right and wrong.
    """
    rows, warnings = list[dict[str, Any]](), list[str]()
    for name in study.outcomes:
        own = _take_outcome(answers, name)
        taught = {key for key in answers.cells if key.teacher}
        lacking = sorted({key.task for key in taught - set(own.cells)})
        if lacking:
            column = COLUMNS[name]
            warnings.append(f"{', '.join(lacking)}: some arms' predictions do not tell {name} (column {column})")
        estimator = ContrastEstimator(own)
        estimators = [*([ContrastEstimator(pool_sizes(study, own))] if len(study.sizes) > 1 else []), estimator]
        found = [Interactions(study, each) for each in estimators]
        parts = [describe_parts(study, each, both.grids) for each, both in zip(estimators, found, strict=True)]
        cells = [
            {
                **key._asdict(),
                "condition": key.condition,
                **dict(zip(("mean", "low", "high"), estimator.accuracy(key), strict=True)),
                "gain": _find_gain(estimator, key),
            }
            for key in own.cells
        ]
        rows.append(
            {
                "outcome": name,
                "meaning": MEANINGS[name],
                "cells": cells,
                "contrasts": compare(own),
                "gamma": [row for each in found for row in each.gammas],
                "gamma_differences": [row for each in found for row in each.differences],
                "parts": [row for both, _ in parts for row in both],
                "parts_refused": [row for _, both in parts for row in both],
            }
        )
    return rows, warnings
