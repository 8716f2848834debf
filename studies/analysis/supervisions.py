"""What each kind of supervision teaches: over untuned students, and over the kind before it, mean over all pairs."""

from collections import defaultdict
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from studies.analysis.estimator import ContrastEstimator
from studies.analysis.predictions import CellKey
from studies.design.controls import ON_POLICY

UNTUNED = "untuned"
_KINDS = (UNTUNED, "label", "rationale", "rationale+logits", ON_POLICY)


def describe_supervisions(estimator: ContrastEstimator) -> list[dict[str, Any]]:
    """Returns a row for each supervision without a control, against untuned students and against what comes before it.

    Args:
        estimator: Of the study's cells.
    """
    groups = defaultdict[tuple[str, str, int | None], list[CellKey]](list)
    for key in estimator.cells:
        if key.trained_on is not None and key.control is None:
            groups[key.trained_on, key.task, key.size].append(key)
    rows = []
    for (trained_on, task, size), keys in groups.items():
        present = [kind for kind in _KINDS if kind == UNTUNED or any(key.supervision == kind for key in keys)]
        for before, kind in pairwise(present):
            for against in dict.fromkeys((UNTUNED, before)):
                pairs = [(key, _find_other(key, against)) for key in keys if key.supervision == kind]
                pairs = [pair for pair in pairs if pair[1] in estimator.cells]
                weights = defaultdict[CellKey, float](float)
                for key, other in pairs:
                    weights[key] += 1 / len(pairs)
                    weights[other] -= 1 / len(pairs)
                if pairs:
                    rows.append({
                        "supervision": kind,
                        "against": against,
                        "trained_on": trained_on,
                        "task": task,
                        "size": size,
                        **asdict(estimator.contrast(weights)),
                        "num_cells": len(pairs),
                        "num_seeds": estimator.count_seeds([key for key, _ in pairs]),
                        "seed_variance": estimator.seed_source([*weights]),
                    })  # fmt: skip
    return rows


def _find_other(key: CellKey, kind: str) -> CellKey:
    """Returns the same student's cell of another supervision, of the same teacher where that has one."""
    if kind == UNTUNED:
        return CellKey(key.student, kind, None, None, None, key.task)
    return key._replace(supervision=kind, teacher=None if kind == "label" else key.teacher)
