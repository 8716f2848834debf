"""The comparison of a study's arms: accuracies, gains, contrasts, main effects and the family interaction."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from studies.analysis.estimator import ContrastEstimator
from studies.analysis.interactions import Interactions, explain_difference, explain_fragile, group_cells
from studies.analysis.outcomes import describe_outcomes
from studies.analysis.parts import describe_parts, explain_parts, group_parts, name_parts
from studies.analysis.predictions import EXTRACTOR, Answers, CellKey, read_answers
from studies.analysis.quantization import describe_quantization, format_losses
from studies.analysis.sizes import describe_needed_sizes, explain_needed, name_size, pool_sizes
from studies.analysis.supervisions import describe_supervisions
from studies.analysis.traits import describe_traits, format_traits
from studies.design.controls import ON_POLICY
from studies.design.grid import Study, find_scorers
from studies.design.power import measure_components
from studies.inference.statistics import adjust_holm, compare_models
from studies.numbers import estimated, points
from studies.text_table import escape_markup, format_table

METHODS = {
    "wilson": "Wilson's interval for as many questions as the variance over training seeds and questions is worth",
    "seeds and questions": "t-interval over training seeds and questions, variances of both recovered separately; the "
    "models are taken as given. A cell with one seed takes the pooled variance of the cells with several",
    "questions alone": "the same without seeds, since no cell has two: it leaves out what other training seeds would "
    "change",
    "difference in differences": "least squares over the grid's cells, for two by two (A_LL + A_QQ - A_LQ - A_QL) / 2; "
    "t-interval over training seeds and questions, the models are taken as given",
    "supervisions": "differences of supervisions, mean over the students and teachers that have both",
    "parts": "γ of each part of the family, least squares over the same cells: Acc(s, t) = mu + a_s + b_t + the sum of "
    "γ_part for the parts that both share; intervals as γ's; p_holm is over the parts of one grid and method",
    "sizes": "where arms are trained with several numbers of questions, γ of each number alone, and of the mean over "
    "all, each counting alike: the mean of a seed's answers over sizes takes the place of its answer, so that what "
    "nested sets of questions share is not taken for independent. A seed's questions are all arms', so contrasts "
    "are taken seed by seed",
    "needed size": "accuracy between two sizes is linear in the logarithm of the size; the interval holds the sizes at "
    "which the accuracy's own (`wilson`) holds the wanted one",
    "quantization": "a file's answers less its student's, seed by seed and question by question, take the place of "
    "answers; γ of these differences is what rounding does to γ",
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


class Analysis:
    """Estimates everything that a study's answers say.

    Args:
        study: The grid.
        answers: What its arms answered.
        seed: Of the bootstrap.
    """

    def __init__(self, study: Study, answers: Answers, seed: int = 0):
        self.study, self.cells, self.groups = study, answers.cells, answers.groups
        self.estimator = ContrastEstimator(answers)
        self.rng = np.random.default_rng(seed)

    def _family(self, teacher: str | None) -> str | None:
        return None if teacher is None else self.study.teachers[teacher].family

    def _against(self, key: CellKey) -> str | None:
        return self.study.find_against(key.trained_on)

    def describe_cells(self) -> list[dict[str, Any]]:
        """Returns each cell's accuracy, and its gain over the untuned student's zero-shot answers."""
        rows = []
        for key, cell in self.cells.items():
            accuracy, low, high = self.estimator.accuracy(key)
            untuned = CellKey(key.student, "untuned", None, None, None, key.task)
            gain = self.estimator.contrast({key: 1, untuned: -1}) if key != untuned and untuned in self.cells else None
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
                "size": key.size,
                "num_seeds": num_seeds,
                "num_questions": num_questions,
                "seed_variance": self.estimator.seed_source([key]),
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
                "coverage": cell.coverage,
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
                if control.swaps_logits and plain in self.cells:
                    others.append(("logits", [text]))
                if control.translator and (native := self.study.find_kind(str(key.trained_on), "same")):
                    others.append(("task", [plain._replace(trained_on=native)]))
                if control.in_family_logits:
                    others.append(("text", [plain._replace(teacher=find_scorers(self.study, key.student)[0])]))
            elif key.supervision == "rationale+logits":
                others = [("logits", [text])]
            elif key.supervision == ON_POLICY:
                others = [("on-policy", [text]), ("on-policy", [key._replace(supervision="rationale+logits")])]
                for name, control in self.study.controls.items():
                    if control.continues:
                        others.append(("on-policy", [key._replace(supervision=control.supervision, control=name)]))
            elif key.supervision == "rationale":
                others = [("rationale", [key._replace(supervision="label", teacher=None)])]
            if key.teacher and (against := self._against(key)):
                others.append(("task", [key._replace(trained_on=against)]))
            yield from ((kind, [key], right) for kind, right in others if all(other in self.cells for other in right))
        for members in group_cells(self.cells).values():
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
            key = left[0]
            rows.append({
                "name": f"{key.student}: {names[0]} against {names[1]}",
                "kind": kind,
                "student": key.student,
                "trained_on": key.trained_on,
                "task": key.task,
                "size": key.size,
                "left": names[0],
                "right": names[1],
                **asdict(self.estimator.contrast(weights)),
                "num_questions": self.estimator.questions[key.task],
                "num_seeds": self.estimator.count_seeds([*weights]),
                "seed_variance": self.estimator.seed_source([*weights]),
                "method": self.estimator.method([*weights]),
                **({} if self.estimator.is_outcome else {"models": self._count_models(left, right)}),
            })  # fmt: skip
        tests = defaultdict(list)
        for row in rows:
            tests[row["kind"], row["trained_on"], row["task"]].append(row)
        for family in tests.values():
            for row, p in zip(family, adjust_holm([row["p"] for row in family]), strict=True):
                row["p_holm"] = p
        return rows

    def _count_models(self, left: list[CellKey], right: list[CellKey]) -> dict[str, Any]:
        """Returns what McNemar's test and a paired bootstrap say of these very models."""
        correct = [np.concatenate([self.cells[key].correct_SQ for key in side]) for side in (left, right)]
        models = compare_models(correct[0], correct[1], self.rng, groups_Q=self.groups[left[0].task])
        return {**asdict(models), "method": "questions"}

    def describe_components(self) -> list[dict[str, Any]]:
        """Returns how answers vary in each group of cells, from which the power of the next study follows."""
        rows = []
        for group, members in group_cells(self.cells).items():
            cells = [self.cells[key].correct_SQ for key in members if len(self.cells[key].correct_SQ) > 1]
            if len(cells) > 1:
                rows.append({**group._asdict(), **asdict(measure_components(cells))})
        return rows


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
    answers = read_answers(study)
    analysis = Analysis(study, answers, seed)
    cells, contrasts = analysis.describe_cells(), analysis.describe_contrasts()
    # Means over sizes come first: they are what a reader wants before each size alone.
    pooled = [ContrastEstimator(pool_sizes(study, answers))] if len(study.sizes) > 1 else []
    estimators = [*pooled, analysis.estimator]
    found = [Interactions(study, estimator) for estimator in estimators]
    parts = [describe_parts(study, own, both.grids) for own, both in zip(estimators, found, strict=True)]

    def compare(own: Answers) -> list[dict[str, Any]]:
        return Analysis(study, own, seed).describe_contrasts()

    outcomes, lacking = describe_outcomes(study, answers, compare)
    rounded, more = describe_quantization(study, answers, seed, compare)
    return {
        # With languages, the tasks that were learned.
        "study": {**asdict(study), "tasks": {name: asdict(task.spec) for name, task in study.learned.items()}},
        "pooled": study.pooled,
        "num_questions": answers.questions,
        "num_groups": {
            task: int(groups_Q.max()) + 1 for task, groups_Q in answers.groups.items() if groups_Q is not None
        },
        "extractor": EXTRACTOR,
        "warnings": [
            *dict.fromkeys([*answers.warnings, *(line for own in found for line in own.warnings), *lacking, *more])
        ],
        "methods": METHODS,
        "cells": cells,
        "contrasts": contrasts,
        "supervisions": [row for own in estimators for row in describe_supervisions(own)],
        "effects": [row for own in found for row in own.effects],
        "gamma": [row for own in found for row in own.gammas],
        "gamma_differences": [row for own in found for row in own.differences],
        "parts": [row for rows, _ in parts for row in rows],
        "parts_refused": [row for _, rows in parts for row in rows],
        "outcomes": outcomes,
        "quantization": rounded,
        "needed_sizes": describe_needed_sizes(study, answers),
        "components": analysis.describe_components(),
        "traits": describe_traits(study),
    }


def format_results(results: dict[str, Any]) -> str:
    """Returns results as Markdown: for each task a table, arms down, students across, then gamma and the contrasts."""
    # Tasks are named by files of questions, which may be anybody's.
    results = escape_markup(results)
    students = {name: spec["family"] for name, spec in results["study"]["students"].items()}
    cells, sizes = results["cells"], results["study"]["sizes"]
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
        names = "supervisions", "gamma", "gamma_differences", "parts", "parts_refused", "needed_sizes", "contrasts"
        supervisions, gammas, differences, effects, refused, needed, contrasts = (
            [row for row in results[name] if (row["trained_on"], row["task"]) == place] for name in names
        )
        parts += [
            f"Trained on {trained_on}, {results['num_questions'][task]} questions of {task}"
            f"{_format_groups(results['num_groups'].get(task))}:",
            format_table(columns, rows),
            _format_coverage(list(shown.values())),
            "\n".join(map(_format_contrast, contrasts)),
            *(_format_outcome(own, place, sizes) for own in results["outcomes"]),
            *(format_losses(own, place, lambda row: _format_gamma(row, sizes)) for own in results["quantization"]),
            "\n".join(f"- {explain_needed(row, sizes)}" for row in needed),
            # What the study is about comes last, where a terminal shows it.
            "\n".join(_format_supervision(row, sizes) for row in supervisions),
            "\n".join(_format_gamma(row, sizes) for row in gammas) or "Family interaction γ: not identified.",
            "\n".join(_format_difference(row, sizes) for row in differences),
            _format_parts(effects, refused, sizes),
        ]
    parts.append(format_traits(results["traits"]))
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
    more = f"{cell['num_examples']}" if cell["gain"] is None else f"{cell['num_examples']}; {points(cell['gain'])}"
    return f"{cell['accuracy']:.1%} [{cell['low']:.1%}, {cell['high']:.1%}] ({more})"


def _format_coverage(cells: list[dict[str, Any]]) -> str:
    """Returns how the teacher's tokens lie to the student's in arms with another tokenizer's distributions."""
    return "\n".join(
        f"- {cell['condition']}, student {cell['student']}: of its tokens the teacher's lie "
        + ", ".join(f"{share:.1%} {name}" for name, share in cell["coverage"].items())
        for cell in cells
        if cell["coverage"]
    )


def _format_supervision(row: dict[str, Any], sizes: list[int]) -> str:
    facts = f"mean over {row['num_cells']} arms", name_size(row, sizes), SEED_NOTES.get(row["seed_variance"])
    return f"- {row['supervision']} over {row['against']}: {estimated(row)} ({'; '.join(filter(None, facts))})"


def _format_gamma(row: dict[str, Any], sizes: list[int]) -> str:
    what = "; ".join(
        filter(None, ("-".join(filter(None, (row["supervision"], row["control"]))), name_size(row, sizes)))
    )
    notes = filter(None, (explain_fragile(row), row["note"], SEED_NOTES.get(row["seed_variance"])))
    note = "".join(f"; {note}" for note in notes)
    return (
        f"- Family interaction γ = {estimated(row)}, p = {row['p']:.2g} "
        f"({what}; {', '.join(row['families'])}; {row['method']}{note})"
    )


def _format_parts(effects: list[dict[str, Any]], refused: list[dict[str, Any]], sizes: list[int]) -> str:
    """Returns a line for each effect of a part, and what each grid says of which part of the family it was."""
    refusals, lines = group_parts(refused), list[str]()
    for group, rows in {**{own: [] for own in refusals}, **group_parts(effects)}.items():
        arms = ", ".join(filter(None, (group.condition, name_size(group._asdict(), sizes))))
        for row in rows:
            notes = filter(None, (row["note"], SEED_NOTES.get(row["seed_variance"])))
            lines.append(
                f"- γ of {name_parts(row)} = {estimated(row)}, p = {row['p_holm']:.2g} "
                f"({arms}; {row['method']}{''.join(f'; {note}' for note in notes)})"
            )
        lines.append(f"- {arms}: {explain_parts(rows, refusals.get(group, []))}")
    return "\n".join(lines)


def _format_outcome(own: dict[str, Any], place: tuple[str, str], sizes: list[int]) -> str:
    """Returns what a further outcome says of the arms that learned one task and answered one."""
    gammas, differences, effects, refused, contrasts = (
        [row for row in own[name] if (row["trained_on"], row["task"]) == place]
        for name in ("gamma", "gamma_differences", "parts", "parts_refused", "contrasts")
    )
    lines = [
        *(_format_gain(row) for row in own["cells"] if (row["trained_on"], row["task"]) == place),
        *(_format_gamma(row, sizes) for row in gammas),
        *(_format_difference(row, sizes) for row in differences),
        *filter(None, [_format_parts(effects, refused, sizes)]),
        *map(_format_contrast, contrasts),
    ]
    return "\n".join([f"{own['outcome']} ({own['meaning']}):", "", *lines]) if lines else ""


def _format_gain(cell: dict[str, Any]) -> str:
    mean = f"{cell['mean']:.1%} [{cell['low']:.1%}, {cell['high']:.1%}]"
    gain = "" if cell["gain"] is None else f", {estimated(cell['gain'])} over untuned"
    return f"- {cell['condition']}, student {cell['student']}: {mean}{gain}"


def _format_difference(row: dict[str, Any], sizes: list[int]) -> str:
    notes = "".join(f"; {note}" for note in (row["note"], SEED_NOTES.get(row["seed_variance"])) if note)
    size = f"{name_size(row, sizes)}: " if sizes else ""
    return f"- {size}{explain_difference(row)} p = {row['p']:.2g} ({row['method']}{notes})"


def _format_contrast(row: dict[str, Any]) -> str:
    note = SEED_NOTES.get(row["seed_variance"])
    return f"- {row['name']}: {estimated(row)}, p = {row['p_holm']:.2g}{f' ({note})' if note else ''}"
