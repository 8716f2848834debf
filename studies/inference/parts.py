"""What a teacher shares with its student, part by part: the family interaction, taken apart.

    Acc(s, t) = mu + a_s + b_t + sum_p gamma_p * [part p of s = part p of t] + rest

Least squares over the cells of a complete grid; with one part, the family, it is the family interaction. A grid tells
two parts apart if some pairs share the one and not the other, beyond what main effects explain. Parts that all pairs
share or do not share together have one effect between them, the sum of theirs; what is not identified in another way
is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from studies.inference.interaction import centre_cells, explain_unidentified

# Of columns of 0, 1 and their means: what is less than this is rounding.
_SMALL = 1e-9


@dataclass(frozen=True)
class PartEffect:
    """An effect that a grid identifies.

    Attributes:
        parts: Whose; several where sharing one always goes with sharing the others.
        place: Its place among the decomposition's weights.
        weights_ST: Of the grid's cells.
    """

    parts: tuple[str, ...]
    place: int
    weights_ST: np.ndarray


@dataclass(frozen=True)
class Refusal:
    """Parts whose effects a grid does not identify.

    Attributes:
        parts: Their names.
        reason: Why.
    """

    parts: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PartDecomposition:
    """What a grid says of the parts of its families.

    Attributes:
        effects: Those that are identified.
        refusals: The other parts.
        weights_GST: Least-squares weights of all columns of the model, those of refused parts among them.
        rank: How many columns are independent.
    """

    effects: list[PartEffect]
    refusals: list[Refusal]
    weights_GST: np.ndarray
    rank: int


def decompose_parts(
    students: Mapping[str, Mapping[str, str | None]], teachers: Mapping[str, Mapping[str, str | None]]
) -> PartDecomposition:
    """Returns the least-squares weights of the parts' effects, and which parts have none, and why.

    Args:
        students: Each student's parts by name; None is not known.
        teachers: Likewise.
    """
    models = {f"student {name}": own for name, own in students.items()} | {
        f"teacher {n}": own for n, own in teachers.items()
    }
    names = dict.fromkeys(part for own in models.values() for part, value in own.items() if value is not None)
    refusals, columns = list[Refusal](), dict[str, np.ndarray]()
    lacking: dict[tuple[str, ...], list[str]] = {}
    for part in names:
        if lacks := tuple(model for model, known in models.items() if known.get(part) is None):
            lacking.setdefault(lacks, []).append(part)
            continue
        own, others = ([str(model[part]) for model in side.values()] for side in (students, teachers))
        if reason := explain_unidentified(own, others, part):
            refusals.append(Refusal((part,), reason))
        else:
            columns[part] = centre_cells(np.array([[value == other for other in others] for value in own], float))
    refusals += [
        Refusal(tuple(unknown), f"not known of {', '.join(lacks)}; state it in its `parts`")
        for lacks, unknown in lacking.items()
    ]
    groups = _group_equal(columns)
    if not groups:
        return PartDecomposition([], refusals, np.zeros((0, len(students), len(teachers))), 0)
    matrix_CG = np.column_stack([columns[parts[0]].reshape(-1) for parts in groups])
    weights_GST = np.linalg.pinv(matrix_CG).reshape(len(groups), len(students), len(teachers))
    tangled_GG, rank = _find_tangled(matrix_CG)
    effects = list[PartEffect]()
    seen = set[int]()
    for index, parts in enumerate(groups):
        if not tangled_GG[index].any():
            effects.append(PartEffect(parts, index, weights_GST[index]))
        elif index not in seen:
            together = np.flatnonzero(tangled_GG[index]).tolist()
            seen |= set(together)
            reason = "whether a pair shares one follows from the others, so that they are not told apart"
            refusals.append(Refusal(tuple(part for other in together for part in groups[other]), reason))
    return PartDecomposition(effects, refusals, weights_GST, rank)


def _group_equal(columns: Mapping[str, np.ndarray]) -> list[tuple[str, ...]]:
    """Returns the parts, those together whose columns are the same."""
    groups = list[tuple[str, ...]]()
    for part, column_ST in columns.items():
        for index, parts in enumerate(groups):
            if np.abs(columns[parts[0]] - column_ST).max() < _SMALL:
                groups[index] = (*parts, part)
                break
        else:
            groups.append((part,))
    return groups


def _find_tangled(matrix_CG: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns which columns depend on which, closed over chains of such; and the rank.

    The projector onto the null space has a block for each set of columns that depend on each other.
    """
    values, directions_GG = np.linalg.svd(matrix_CG, full_matrices=True)[1:]
    rank = int((values > _SMALL * values[0]).sum())
    null_GN = directions_GG[rank:].T
    tangled_GG = np.abs(null_GN @ null_GN.T) > _SMALL
    for _ in range(len(tangled_GG)):
        tangled_GG = tangled_GG | (tangled_GG.astype(int) @ tangled_GG.astype(int) > 0)
    return tangled_GG, rank
