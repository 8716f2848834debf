"""The family interaction of each grid of a study's cells, and how the interactions of text and distributions differ.

gamma is a contrast of a grid's cells. The difference of two is one, too: of the cells of both grids, which answer the
same questions, so that its interval is theirs jointly. With the students and the teachers that both grids have:

    gamma_logits - gamma_text      what the distributions add to what the text alone gives a student of the family
    gamma_logits - gamma_own       the same texts in both, and in the second the distributions of the student's own
                                   family with all of them (`in_family_logits`): what the distributions' family changes
                                   while the text is held

Within a family the cells of gamma_own are those of gamma_logits, and cancel.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from itertools import compress, product
from typing import Any, NamedTuple

import numpy as np

from studies.analysis.estimator import ContrastEstimator
from studies.analysis.predictions import CellKey
from studies.design.controls import ON_POLICY
from studies.design.grid import Arm, Study, expand
from studies.inference.interaction import decompose, describe_df, estimate_gammas, explain_unidentified, weigh_without
from studies.inference.statistics import Estimate
from studies.numbers import estimated, points

LOGITS = "rationale+logits"


class Group(NamedTuple):
    """Cells that form a grid of students and teachers; the fields are `CellKey`'s."""

    supervision: str
    control: str | None
    trained_on: str | None
    task: str
    size: int | None = None

    @property
    def name(self) -> str:
        """What a warning calls the group."""
        return ", ".join(filter(None, (*self[:4], f"{self.size} questions" if self.size else None)))

    @property
    def condition(self) -> str:
        """The arms' name whatever the student and the teacher."""
        return "-".join(filter(None, self[:2]))


class Grid(NamedTuple):
    """A complete grid.

    Attributes:
        students: Their names.
        teachers: Their names.
        keys: Each cell's, by student and teacher.
    """

    students: list[str]
    teachers: list[str]
    keys: dict[tuple[str, str], CellKey]


def group_cells(keys: Iterable[CellKey]) -> dict[Group, list[CellKey]]:
    """Returns the cells with a teacher, by group."""
    groups = defaultdict(list)
    for key in keys:
        if key.teacher:
            groups[Group(key.supervision, key.control, key.trained_on, key.task, key.size)].append(key)
    return groups


class Interactions:
    """Estimates main effects and family interactions of all groups whose grid is complete.

    Attributes:
        grids: All complete ones, whether they identify the family interaction or not.
        effects: Rows of main effects.
        gammas: Rows of family interactions.
        differences: Rows of differences of family interactions.
        warnings: What is left out, or not identified, and why.

    Args:
        study: The grid.
        estimator: Of its cells.
    """

    def __init__(self, study: Study, estimator: ContrastEstimator):
        self.study, self.estimator = study, estimator
        self.warnings: list[str] = []
        self.effects: list[dict[str, Any]] = []
        self.gammas: list[dict[str, Any]] = []
        grids = {group: self._find_grid(group, keys) for group, keys in group_cells(estimator.cells).items()}
        self.grids = {group: grid for group, grid in grids.items() if grid is not None}
        found = {group: grid for group, grid in self.grids.items() if self._is_identified(group, grid)}
        for group, grid in found.items():
            self._describe(group, grid)
        self.differences = [row for pair in self._pair_grids(found) for row in self._compare(found, *pair)]

    def _families(self, students: list[str], teachers: list[str]) -> tuple[list[str], list[str]]:
        own, other = self.study.students, self.study.teachers
        return [own[name].family for name in students], [other[name].family for name in teachers]

    def _is_in_family(self, arm: Arm | CellKey) -> bool:
        assert arm.teacher is not None
        return self.study.teachers[arm.teacher].family == self.study.students[arm.student].family

    def _swaps_logits(self, control: str | None) -> bool:
        return control is not None and self.study.controls[control].swaps_logits

    def _holds_text(self, group: Group) -> bool:
        """Whether all texts of a group come with the distributions of the student's own family."""
        return self._swaps_logits(group.control) and self.study.controls[str(group.control)].in_family_logits

    def _find_grid(self, group: Group, members: list[CellKey]) -> Grid | None:
        """Returns a group's complete grid; None if it has none.

        A control that only swaps the logits of other families' texts has the plain arms within the family.
        """
        arms = [arm for arm in expand(self.study) if arm.teacher]
        own = [arm for arm in arms if (arm.supervision, arm.control) == group[:2]]
        if self._swaps_logits(group.control):
            own += [arm for arm in arms if (arm.supervision, arm.control) == (LOGITS, None) and self._is_in_family(arm)]
            plain = [key for key in self.estimator.cells if key[1] == LOGITS and key[3:] == (None, *group[2:])]
            members = [*members, *filter(self._is_in_family, plain)]
        students = [name for name in self.study.students if any(arm.student == name for arm in own)]
        teachers = [name for name in self.study.teachers if any(arm.teacher == name for arm in own)]
        if len({(arm.student, arm.teacher) for arm in own}) < len(students) * len(teachers):
            needs_logits = group.supervision in (LOGITS, ON_POLICY) and group.control is None
            if needs_logits and explain_unidentified(*self._families(students, teachers)) is None:
                self.warnings.append(
                    f"{group.name}: the family interaction is not identified: logits come from teachers of the "
                    "student's own family alone; study.alignment lets it learn from the others', too"
                )
            return None  # only teachers of the student's family, or only others, by design
        keys = {(key.student, str(key.teacher)): key for key in members}
        students = [student for student in students if any((student, teacher) in keys for teacher in teachers)]
        complete = [teacher for teacher in teachers if all((student, teacher) in keys for student in students)]
        if lost := ", ".join(teacher for teacher in teachers if teacher not in complete):
            self.warnings.append(f"{group.name}: the family interaction leaves out, since cells are missing, {lost}")
        if not complete:
            self.warnings.append(f"{group.name}: the family interaction is not identified: no teacher is complete")
            return None
        return Grid(students, complete, {pair: keys[pair] for pair in product(students, complete)})

    def _is_identified(self, group: Group, grid: Grid) -> bool:
        """Says whether a grid identifies gamma; warns if not."""
        reason = explain_unidentified(*self._families(grid.students, grid.teachers))
        if reason:
            self.warnings.append(f"{group.name}: the family interaction is not identified: {reason}")
        return reason is None

    def _state(self, weights: dict[CellKey, float], students: list[str], teachers: list[str]) -> dict[str, Any]:
        """Returns what a reader must know of an interaction's data."""
        families = self._families(students, teachers)
        return {
            "families": sorted(set(families[0]) & set(families[1])),
            "num_students": len(students),
            "num_teachers": len(teachers),
            "num_seeds": self.estimator.count_seeds([*weights]),
            "num_questions": self.estimator.questions[next(iter(weights)).task],
        }

    def _list_estimates(
        self, weights: dict[CellKey, float], students: list[str], teachers: list[str], value_ST: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """Returns a row for each method: of the contrast, and of what cells' values alone say, if they are given."""
        families = self._families(students, teachers)
        found: list[tuple[str, Estimate, int | None]] = [
            ("difference in differences", self.estimator.contrast(weights), None),
            *(estimate_gammas(value_ST, *families) if value_ST is not None else []),
        ]
        facts, source = self._state(weights, students, teachers), self.estimator.seed_source([*weights])
        return [
            {
                "method": method,
                **asdict(estimate),
                **facts,
                # The others' intervals are over models, whose own seeds are in their spread.
                "seed_variance": source if df is None else None,
                "note": describe_df(df, *families),
            }
            for method, estimate, df in found
        ]

    def _describe(self, group: Group, grid: Grid) -> None:
        """Adds a grid's main effects and its family interaction."""
        students, teachers, keys = grid
        decomposed = decompose(*self._families(students, teachers))

        def weigh(weights_ST: np.ndarray) -> dict[CellKey, float]:
            return dict(zip(keys.values(), weights_ST.reshape(-1).tolist(), strict=True))

        for kind, names, weights_NST in (
            ("student", students, decomposed.students_NST),
            ("teacher", teachers, decomposed.teachers_NST),
        ):
            for name, weights_ST in zip(names, weights_NST, strict=True):
                found = asdict(self.estimator.contrast(weigh(weights_ST)))
                method = self.estimator.method([*keys.values()])
                self.effects.append({"kind": kind, "name": name, **group._asdict(), **found, "method": method})
        accuracy_ST = np.reshape([self.estimator.mean(key) for key in keys.values()], decomposed.gamma_ST.shape)
        rows = self._list_estimates(weigh(decomposed.gamma_ST), students, teachers, accuracy_ST)
        against = self.study.find_against(group.trained_on)
        others = [key._replace(trained_on=against) for key in keys.values()]
        if all(other in self.estimator.cells for other in others):
            other_weights = dict(zip(others, (-decomposed.gamma_ST).reshape(-1).tolist(), strict=True))
            [less] = self._list_estimates(weigh(decomposed.gamma_ST) | other_weights, students, teachers, None)
            rows.append(less | {"method": f"less γ after {against}"})
        # What is asked of the first is not asked of the others, which are of the same cells.
        fragile = [self._find_fragile(grid, rows[0]), *[None] * (len(rows) - 1)]
        self.gammas += [{**group._asdict(), **row, "fragile": own} for row, own in zip(rows, fragile, strict=True)]

    def _find_fragile(self, grid: Grid, found: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Returns the cells without which gamma's interval has 0 and had not, or had, or lies on the other side of it.

        Args:
            grid: A complete one.
            found: Its gamma's row.

        Returns:
            Each cell with the gamma of all others, what changes it most first; None if gamma needs all cells.
        """
        families = self._families(grid.students, grid.teachers)
        rows = list[dict[str, Any]]()
        for index, (pair, left_out) in enumerate(grid.keys.items()):
            weights_ST = weigh_without(*families, index)
            if weights_ST is None:
                continue
            weights = dict(zip(grid.keys.values(), weights_ST.reshape(-1).tolist(), strict=True))
            del weights[left_out]
            rows.append({"student": pair[0], "teacher": pair[1], **asdict(self.estimator.contrast(weights))})
        if not rows:
            return None
        changed = [row for row in rows if _is_changed(found, row)]
        return sorted(changed, key=lambda row: -abs(row["estimate"] - found["estimate"]))

    def _pair_grids(self, grids: dict[Group, Grid]) -> list[tuple[Group, Group]]:
        """Returns the grids with distributions of the teachers' own, each with what it is compared with.

        Those that learn on-policy are compared with both that do not, and with those that go on from another arm.
        """
        continued = {name for name, control in self.study.controls.items() if control.continues}
        pairs = []
        for group in grids:
            if group.supervision == ON_POLICY:
                others = [other for other in grids if other[2:] == group[2:] and other.supervision != ON_POLICY]
                pairs += [(group, other) for other in others if other.control in {None, *continued}]
                continue
            is_plain = group.control is None or self._swaps_logits(group.control)
            if group.supervision != LOGITS or not is_plain or self._holds_text(group):
                continue
            others = [other for other in grids if other[2:] == group[2:]]
            is_compared = [other[:2] == ("rationale", None) or self._holds_text(other) for other in others]
            pairs += [(group, other) for other in compress(others, is_compared)]
        return pairs

    def _compare(self, grids: dict[Group, Grid], left: Group, right: Group) -> list[dict[str, Any]]:
        """Returns the difference of two grids' family interactions, of the models that both have."""
        sides = grids[left], grids[right]
        students = [name for name in sides[0].students if name in sides[1].students]
        teachers = [name for name in sides[0].teachers if name in sides[1].teachers]
        families = self._families(students, teachers)
        if reason := explain_unidentified(*families):
            name = f"{left.name} against {right.condition}"
            self.warnings.append(f"{name}: the difference of family interactions is not identified: {reason}")
            return []
        gamma_ST = decompose(*families).gamma_ST
        accuracies, weights = [], defaultdict[CellKey, float](float)
        for grid, sign in zip(sides, (1, -1), strict=True):
            keys = [grid.keys[pair] for pair in product(students, teachers)]
            accuracies.append(np.reshape([self.estimator.mean(key) for key in keys], gamma_ST.shape))
            for key, weight in zip(keys, gamma_ST.reshape(-1).tolist(), strict=True):
                weights[key] += sign * weight
        used = {key: weight for key, weight in weights.items() if weight}
        holds_text = self._holds_text(right)
        # With the text held, what is within a family cancels: no spread over pairs is left there.
        value_ST = None if holds_text else accuracies[0] - accuracies[1]
        gammas = [float((gamma_ST * accuracy_ST).sum()) for accuracy_ST in accuracies]
        where = {"trained_on": left.trained_on, "task": left.task, "size": left.size, "holds_text": holds_text}
        names = {"left": left.condition, "right": right.condition, "left_gamma": gammas[0], "right_gamma": gammas[1]}
        return [{**where, **names, **row} for row in self._list_estimates(used, students, teachers, value_ST)]


def _is_changed(found: dict[str, Any], without: dict[str, Any]) -> bool:
    """Says whether a cell's absence changes what is read first: whether the interval has 0, or on which side it is."""
    is_chance, would_be = (row["low"] <= 0 <= row["high"] for row in (found, without))
    return is_chance != would_be or (not is_chance and (found["low"] > 0) != (without["low"] > 0))


def explain_fragile(row: dict[str, Any]) -> str | None:
    """Returns that a family interaction depends on one cell, and on which; None if it does not."""
    if not row["fragile"]:
        return None
    cell, *others = row["fragile"]
    found = estimated(cell)
    more = f", and {len(others)} more of the cells change what it says" if others else ""
    return f"fragile: without student {cell['student']} from teacher {cell['teacher']} it is {found}{more}"


def explain_difference(row: dict[str, Any]) -> str:
    """Returns a sentence that says what a difference of family interactions means."""
    sides = [f"γ = {points(row[f'{side}_gamma'])} points ({row[side]})" for side in ("left", "right")]
    found = estimated(row)
    if row["holds_text"]:
        begin = (
            f"On the same texts, the teachers' own distributions give {sides[0]}, those of the student's family with "
            f"all texts {sides[1]}: whose distributions they are makes {found}"
        )
        ends = (
            "so the distributions' family matters where the text is the same",
            "so the student's own family's distributions widen the gap between the families' texts",
        )
    elif row["left"] == ON_POLICY:
        begin = f"On-policy gives {sides[0]}, off-policy {sides[1]}: learning from what it wrote itself adds {found}"
        ends = (
            "so more depends on the family where the student learns from what it wrote",
            "so less depends on the family where the student learns from what it wrote",
        )
    else:
        begin = f"Text and distributions give {sides[0]}, text alone {sides[1]}: the distributions add {found}"
        ends = (
            "so a teacher of the family helps more by its distributions than its text alone explains",
            "so with distributions less depends on the family than with the text alone",
        )
    chance = "which other seeds or questions could make nothing of"
    return f"{begin}, {ends[0] if row['low'] > 0 else ends[1] if row['high'] < 0 else chance}."
