"""The comparison of a study's arms: accuracies, gains, contrasts, main effects and the family interaction."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from studies.analysis.predictions import EXTRACTOR, Answers, CellKey, read_answers
from studies.design.grid import Study, expand, find_scorers
from studies.design.power import measure_components
from studies.inference.interaction import decompose, describe_df, estimate_gammas, explain_unidentified
from studies.inference.statistics import (
    Estimate,
    SeedSource,
    adjust_holm,
    compare_models,
    estimate_accuracy,
    estimate_contrast,
    find_seed_source,
)
from studies.text_table import format_table

METHODS = {
    "wilson": "Wilson's interval for as many questions as the variance over training seeds and questions is worth",
    "seeds and questions": "t-interval over training seeds and questions, variances of both recovered separately; the "
    "models are taken as given. A cell with one seed takes the pooled variance of the cells with several",
    "questions alone": "the same without seeds, since no cell has two: it leaves out what other training seeds would "
    "change",
    "difference in differences": "least squares over the grid's cells, for two by two (A_LL + A_QQ - A_LQ - A_QL) / 2; "
    "t-interval over training seeds and questions, the models are taken as given",
    "less γ after TASK": "γ less that of the arms that learned TASK, whose rationales are others; t-interval likewise",
    "teachers": "the family interaction; t-interval over teachers within families; the students are taken as given",
    "mixed model": "students and teachers fixed, pairs random; t-interval on the residual degrees of freedom",
    "questions": "these trained models only: exact McNemar test (with several seeds the sign test over questions, with "
    "groups of questions the sign-flip test over groups), paired bootstrap over questions or groups, 10,000 resamples",
    "groups": "where questions come in groups, such as those of one passage, every interval over questions is over "
    "groups, each with all its questions",
    "holm": "p_holm is adjusted within the contrasts of one kind and task (Holm 1979)",
}


SEED_NOTES = {
    "pooled": "the variance over seeds is pooled over the cells with several",
    "left out": "over questions alone: it leaves out what other training seeds would change",
}


class Group(NamedTuple):
    """Cells that form a grid of students and teachers; the fields are `CellKey`'s."""

    supervision: str
    control: str | None
    trained_on: str | None
    task: str

    @property
    def name(self) -> str:
        """What a warning calls the group."""
        return ", ".join(filter(None, self))


class Analysis:
    """Estimates everything that a study's answers say.

    Args:
        study: The grid.
        answers: What its arms answered.
        seed: Of the bootstrap.
    """

    def __init__(self, study: Study, answers: Answers, seed: int = 0):
        self.study, self.cells, self.questions, self.groups = study, answers.cells, answers.questions, answers.groups
        self.warnings = list(answers.warnings)
        self.rng = np.random.default_rng(seed)

    def _family(self, teacher: str | None) -> str | None:
        return None if teacher is None else self.study.teachers[teacher].family

    def _against(self, key: "CellKey | Group") -> str | None:
        return self.study.tasks[key.trained_on].against if key.trained_on else None

    def _contrast(self, weights: dict[CellKey, float]) -> Estimate:
        cells, trained, pool = self._find_seeds([*weights])
        groups_Q = self.groups[next(iter(weights)).task]
        return estimate_contrast(cells, list(weights.values()), trained, groups_Q, pool)

    def _find_seeds(self, keys: list[CellKey]) -> tuple[list[np.ndarray], list[bool], list[np.ndarray]]:
        """Returns cells' answers, whether each was trained, and the answers that seeds' variance may be pooled over."""
        places = {(key.trained_on, key.task) for key in keys if key.trained_on}
        pool = [cell.correct_SQ for key, cell in self.cells.items() if (key.trained_on, key.task) in places]
        return [self.cells[key].correct_SQ for key in keys], [key.trained_on is not None for key in keys], pool

    def _seed_source(self, keys: list[CellKey]) -> SeedSource:
        return find_seed_source(*self._find_seeds(keys))

    def _method(self, keys: list[CellKey]) -> str:
        return "questions alone" if self._seed_source(keys) == "left out" else "seeds and questions"

    def describe_cells(self) -> list[dict[str, Any]]:
        """Returns each cell's accuracy, and its gain over the untuned student's zero-shot answers."""
        rows = []
        for key, cell in self.cells.items():
            _, [is_trained], pool = self._find_seeds([key])
            accuracy, low, high = estimate_accuracy(cell.correct_SQ, is_trained, self.groups[key.task], pool)
            untuned = CellKey(key.student, "untuned", None, None, None, key.task)
            gain = self._contrast({key: 1, untuned: -1}) if key != untuned and untuned in self.cells else None
            num_seeds, num_questions = cell.correct_SQ.shape
            rows.append({
                "student": key.student,
                "student_family": self.study.students[key.student].family,
                "teacher": key.teacher,
                "teacher_family": self._family(key.teacher),
                "supervision": key.supervision,
                "control": key.control,
                "condition": key.condition,
                "trained_on": key.trained_on,
                "task": key.task,
                "num_seeds": num_seeds,
                "num_questions": num_questions,
                "seed_variance": self._seed_source([key]),
                "num_examples": min(cell.budget["train_examples"]) if cell.budget else 0,
                "accuracy": accuracy,
                "low": low,
                "high": high,
                "extraction_rate": cell.extraction_rate,
                "gain": gain and gain.estimate,
                "gain_low": gain and gain.low,
                "gain_high": gain and gain.high,
                "accuracy_by_extractor": cell.accuracies,
                "accuracy_by_seed": cell.correct_SQ.mean(1).tolist(),
            })  # fmt: skip
        return rows

    def _find_pairs(self) -> Iterator[tuple[str, list[CellKey], list[CellKey]]]:
        """Yields what is compared: the kind, and the cells of either side, all of one student and task."""
        for key in self.cells:
            plain, text = key._replace(control=None), key._replace(control=None, supervision="rationale")
            others: list[tuple[str, list[CellKey]]] = []
            if key.control:
                control = self.study.controls[key.control]
                # Logits of another teacher than the writer have no plain arm; the same text without logits has.
                alone = [plain._replace(teacher=name) for name in control.together]
                others = [("control", alone or [plain if plain in self.cells else text])]
                if control.in_family_logits:
                    others.append(("text", [plain._replace(teacher=find_scorers(self.study, key.student)[0])]))
            elif key.supervision == "rationale+logits":
                others = [("logits", [text])]
            elif key.supervision == "rationale":
                others = [("rationale", [key._replace(supervision="label", teacher=None)])]
            if key.teacher and (against := self._against(key)):
                others.append(("task", [key._replace(trained_on=against)]))
            yield from ((kind, [key], right) for kind, right in others if all(other in self.cells for other in right))
        for members in self._groups().values():
            for student in dict.fromkeys(key.student for key in members):
                sides: dict[bool, list[CellKey]] = {True: [], False: []}
                for key in members:
                    if key.student == student:
                        sides[self._family(key.teacher) == self.study.students[student].family].append(key)
                if all(sides.values()):
                    yield "family", sides[True], sides[False]

    def describe_contrasts(self) -> list[dict[str, Any]]:
        """Returns the paired differences, with Holm's adjustment within each kind and task."""
        rows = []
        for kind, *pair in self._find_pairs():
            left, right = pair
            weights = {key: 1 / len(left) for key in left} | {key: -1 / len(right) for key in right}
            names = [", ".join(key.condition for key in side) for side in pair]
            if kind == "task":
                names = [f"{name} after {side[0].trained_on}" for name, side in zip(names, pair, strict=True)]
            correct = [np.concatenate([self.cells[key].correct_SQ for key in side]) for side in pair]
            key = left[0]
            rows.append({
                "name": f"{key.student}: {names[0]} against {names[1]}",
                "kind": kind,
                "student": key.student,
                "trained_on": key.trained_on,
                "task": key.task,
                "left": names[0],
                "right": names[1],
                **asdict(self._contrast(weights)),
                "num_questions": self.questions[key.task],
                "num_seeds": min(len(self.cells[key].correct_SQ) for key in weights),
                "seed_variance": self._seed_source([*weights]),
                "method": self._method([*weights]),
                "models": {
                    **asdict(compare_models(correct[0], correct[1], self.rng, groups_Q=self.groups[key.task])),
                    "method": "questions",
                },
            })  # fmt: skip
        tests = defaultdict(list)
        for row in rows:
            tests[row["kind"], row["trained_on"], row["task"]].append(row)
        for family in tests.values():
            for row, p in zip(family, adjust_holm([row["p"] for row in family]), strict=True):
                row["p_holm"] = p
        return rows

    def _groups(self) -> dict[Group, list[CellKey]]:
        """Returns the cells with a teacher, by group."""
        groups = defaultdict(list)
        for key in self.cells:
            if key.teacher:
                groups[Group(key.supervision, key.control, key.trained_on, key.task)].append(key)
        return groups

    def describe_components(self) -> list[dict[str, Any]]:
        """Returns how answers vary in each group of cells, from which the power of the next study follows."""
        rows = []
        for group, members in self._groups().items():
            cells = [self.cells[key].correct_SQ for key in members if len(self.cells[key].correct_SQ) > 1]
            if len(cells) > 1:
                rows.append({**group._asdict(), **asdict(measure_components(cells))})
        return rows

    def _families(self, students: list[str], teachers: list[str]) -> tuple[list[str], list[str]]:
        own, other = self.study.students, self.study.teachers
        return [own[name].family for name in students], [other[name].family for name in teachers]

    def _find_grid(self, group: Group, members: list[CellKey]) -> tuple[list[str], list[str]] | None:
        """Returns the students and teachers of a group's complete grid; None if it does not identify gamma."""
        arms = [arm for arm in expand(self.study) if arm.teacher and (arm.supervision, arm.control) == group[:2]]
        students = list(dict.fromkeys(arm.student for arm in arms))
        teachers = list(dict.fromkeys(str(arm.teacher) for arm in arms))
        if len({(arm.student, arm.teacher) for arm in arms}) < len(students) * len(teachers):
            return None  # only teachers of the student's family, or only others, by design
        there = {(key.student, key.teacher) for key in members}
        students = [student for student in students if any((student, teacher) in there for teacher in teachers)]
        complete = [teacher for teacher in teachers if all((student, teacher) in there for student in students)]
        lost = ", ".join(teacher for teacher in teachers if teacher not in complete)
        reason = explain_unidentified(*self._families(students, complete)) if complete else "no teacher is complete"
        if lost:
            self.warnings.append(f"{group.name}: the family interaction leaves out, since cells are missing, {lost}")
        if reason:
            self.warnings.append(f"{group.name}: the family interaction is not identified: {reason}")
            return None
        return students, complete

    def describe_grids(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns main effects and family interactions of all groups whose grid is complete."""
        effects, gammas = [], []
        for group, members in self._groups().items():
            if (grid := self._find_grid(group, members)) is None:
                continue
            students, teachers = grid
            families = self._families(students, teachers)
            where = group._asdict()
            keys = [
                CellKey(student=student, teacher=teacher, **where) for student, teacher in product(students, teachers)
            ]
            weights = decompose(*families)

            def contrast(weights_ST: np.ndarray, keys: list[CellKey] = keys) -> Estimate:
                return self._contrast(dict(zip(keys, weights_ST.reshape(-1).tolist(), strict=True)))

            for kind, names, weights_NST in (
                ("student", students, weights.students_NST),
                ("teacher", teachers, weights.teachers_NST),
            ):
                for name, weights_ST in zip(names, weights_NST, strict=True):
                    row = {"kind": kind, "name": name, **where, **asdict(contrast(weights_ST))}
                    effects.append({**row, "method": self._method(keys)})
            accuracy_ST = np.reshape([self.cells[key].correct_SQ.mean() for key in keys], weights.gamma_ST.shape)
            found: list[tuple[str, Estimate, int | None]] = [
                ("difference in differences", contrast(weights.gamma_ST), None),
                *estimate_gammas(accuracy_ST, *families),
            ]
            others = [key._replace(trained_on=self._against(group)) for key in keys]
            if all(other in self.cells for other in others):
                both = np.concatenate([weights.gamma_ST.reshape(-1), -weights.gamma_ST.reshape(-1)])
                difference = self._contrast(dict(zip([*keys, *others], both.tolist(), strict=True)))
                found.append((f"less γ after {self._against(group)}", difference, None))
            facts = {
                "families": sorted(set(families[0]) & set(families[1])),
                "num_students": len(students),
                "num_teachers": len(teachers),
                "num_seeds": min(len(self.cells[key].correct_SQ) for key in keys),
                "num_questions": self.questions[group.task],
            }
            source = self._seed_source(keys)
            # The others' intervals are over models, whose own seeds are in their spread.
            gammas += [
                {
                    **where,
                    "method": method,
                    **asdict(estimate),
                    **facts,
                    "seed_variance": source if df is None else None,
                    "note": describe_df(df, *families),
                }
                for method, estimate, df in found
            ]
        return effects, gammas


def analyze(study: Study, seed: int = 0) -> dict[str, Any]:
    """Reads every arm's predictions and compares them.

    Args:
        study: The grid.
        seed: Of the bootstrap.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: There are no predictions, or some cannot be used.
    """
    analysis = Analysis(study, read_answers(study), seed)
    cells, contrasts = analysis.describe_cells(), analysis.describe_contrasts()
    effects, gammas = analysis.describe_grids()
    return {
        "study": asdict(study),
        "num_questions": analysis.questions,
        "num_groups": {
            task: int(groups_Q.max()) + 1 for task, groups_Q in analysis.groups.items() if groups_Q is not None
        },
        "extractor": EXTRACTOR,
        "warnings": analysis.warnings,
        "methods": METHODS,
        "cells": cells,
        "contrasts": contrasts,
        "effects": effects,
        "gamma": gammas,
        "components": analysis.describe_components(),
    }


def format_results(results: dict[str, Any]) -> str:
    """Returns results as Markdown: for each task a table, arms down, students across, then gamma and the contrasts."""
    students = {name: spec["family"] for name, spec in results["study"]["students"].items()}
    cells = results["cells"]
    parts = []
    for place in dict.fromkeys((cell["trained_on"], cell["task"]) for cell in cells if cell["trained_on"]):
        trained_on, task = place
        shown = {
            (cell["condition"], cell["student"]): cell
            for cell in cells
            if cell["task"] == task and cell["trained_on"] in (None, trained_on)
        }
        columns = ["arm", *(f"student {name} ({family})" for name, family in students.items())]
        rows = []
        for condition in dict.fromkeys(condition for condition, _ in shown):
            rows.append([condition, *(_format_cell(shown.get((condition, student))) for student in students)])
        gammas, contrasts = (
            [row for row in results[name] if (row["trained_on"], row["task"]) == place]
            for name in ("gamma", "contrasts")
        )
        parts += [
            f"Trained on {trained_on}, {results['num_questions'][task]} questions of {task}"
            f"{_format_groups(results['num_groups'].get(task))}:",
            format_table(columns, rows),
            "\n".join(map(_format_gamma, gammas)) or "Family interaction γ: not identified.",
            "\n".join(map(_format_contrast, contrasts)),
        ]
    alone = all(cell["seed_variance"] in ("left out", "none") for cell in cells)
    over = (
        "questions alone, not over the training seeds, of which each arm has one"
        if alone
        else ("training seeds and questions")
    )
    parts.append(
        f"In brackets, 95 % intervals over {over}; in parentheses, training examples and the gain "
        "in points over `untuned`, the student's zero-shot answer to the same prompt. p of differences are Holm's."
    )
    parts.append("\n".join(f"- Mind: {warning}" for warning in results["warnings"]))
    return "\n\n".join(filter(None, parts))


def _format_groups(number: int | None) -> str:
    return f" in {number} groups, over which the intervals are" if number else ""


def _format_cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    more = f"{cell['num_examples']}" if cell["gain"] is None else f"{cell['num_examples']}; {100 * cell['gain']:+.1f}"
    return f"{cell['accuracy']:.1%} [{cell['low']:.1%}, {cell['high']:.1%}] ({more})"


def _format_points(row: dict[str, Any]) -> str:
    return f"{100 * row['estimate']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def _format_gamma(row: dict[str, Any]) -> str:
    what = "-".join(filter(None, (row["supervision"], row["control"])))
    notes = filter(None, (row["note"], SEED_NOTES.get(row["seed_variance"])))
    note = "".join(f"; {note}" for note in notes)
    return (
        f"- Family interaction γ = {_format_points(row)}, p = {row['p']:.2g} "
        f"({what}; {', '.join(row['families'])}; {row['method']}{note})"
    )


def _format_contrast(row: dict[str, Any]) -> str:
    note = SEED_NOTES.get(row["seed_variance"])
    return f"- {row['name']}: {_format_points(row)}, p = {row['p_holm']:.2g}{f' ({note})' if note else ''}"
