"""What each kind of supervision teaches: over untuned students, and over the kind before it, mean over all pairs.

Cells of one seed may have learned from the same questions (`sizes`), and from texts that two teachers wrote alike, so
that they are not independent: the mean is taken seed by seed, and its own seeds are what its interval is over.
"""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np

from studies.analysis.predictions import Answers, CellKey
from studies.design.controls import ON_POLICY
from studies.inference.statistics import estimate_contrast, find_seed_source

UNTUNED = "untuned"
_KINDS = (UNTUNED, "label", "rationale", "rationale+logits", ON_POLICY)


def describe_supervisions(answers: Answers) -> list[dict[str, Any]]:
    """Returns a row for each supervision without a control, against each of those that come before it.

    Args:
        answers: What the study's arms answered.
    """
    groups = defaultdict[tuple[str, str, int | None], list[CellKey]](list)
    for key in answers.cells:
        if key.trained_on is not None and key.control is None:
            groups[key.trained_on, key.task, key.size].append(key)
    rows = []
    for (trained_on, task, size), keys in groups.items():
        present = [kind for kind in _KINDS if kind == UNTUNED or any(key.supervision == kind for key in keys)]
        for place, kind in enumerate(present[1:], 1):
            for against in dict.fromkeys((UNTUNED, present[place - 1])):
                pairs = [(key, other) for key in keys if key.supervision == kind
                         and (other := _find_other(key, against)) in answers.cells]  # fmt: skip
                differences = [_subtract(answers, *pair) for pair in pairs]
                seeds = set[int].intersection(*map(set, differences)) if pairs else set[int]()
                if not seeds:
                    continue
                mean_SQ = np.mean([[own[seed] for seed in sorted(seeds)] for own in differences], axis=0)
                rows.append({
                    "supervision": kind,
                    "against": against,
                    "trained_on": trained_on,
                    "task": task,
                    "size": size,
                    **asdict(estimate_contrast([mean_SQ], [1.0], groups_Q=answers.groups[task])),
                    "num_cells": len(pairs),
                    "num_seeds": len(seeds),
                    "seed_variance": find_seed_source([mean_SQ]),
                })  # fmt: skip
    return rows


def _find_other(key: CellKey, kind: str) -> CellKey:
    """Returns the same student's cell of another supervision, of the same teacher where that has one."""
    if kind == UNTUNED:
        return CellKey(key.student, kind, None, None, None, key.task)
    return key._replace(supervision=kind, teacher=None if kind == "label" else key.teacher)


def _subtract(answers: Answers, key: CellKey, other: CellKey) -> dict[int, np.ndarray]:
    """Returns a cell's answers less another's by seed, of the seeds that both have; an untuned student has none."""
    left, right = answers.cells[key], answers.cells[other]
    own = dict(zip(left.seeds, left.correct_SQ, strict=True))
    if other.trained_on is None:
        return {seed: answer_Q - right.correct_SQ.mean(0) for seed, answer_Q in own.items()}
    others = dict(zip(right.seeds, right.correct_SQ, strict=True))
    return {seed: own[seed] - others[seed] for seed in own if seed in others}
