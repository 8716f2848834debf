"""Which diagnostics predict how well a student does, and how much of the family interaction they account for."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from studies.inference.interaction import centre_cells, estimate_over_pairs, leaves_spread
from studies.inference.parts import decompose_parts
from studies.numbers import signed, signed_between
from studies.text_table import format_table

# With fewer teachers, three orders of them or less are possible, or nothing can be resampled.
FEWEST_TEACHERS = 4
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Cell:
    """A teacher and a student on a task: what was diagnosed before training, and what came of it.

    Attributes:
        teacher: Name.
        student: Name.
        in_family: Whether they are of one family.
        accuracy: Of the trained student, a share.
        diagnostics: By name.
        families: The teacher's and the student's.
        parts: The teacher's and the student's, by name.
    """

    teacher: str
    student: str
    in_family: bool
    accuracy: float
    diagnostics: dict[str, float]
    families: tuple[str, str] = ("", "")
    parts: tuple[Mapping[str, str | None], Mapping[str, str | None]] = ({}, {})


class Correlation(NamedTuple):
    """Spearman's correlation between a diagnostic and accuracy, over teachers, averaged over students.

    Attributes:
        metric: The diagnostic.
        estimate: -1 to 1; None where a student has no two different teachers.
        low: Of the 95 % interval, by a bootstrap over teachers; None with too few, or of no width.
        high: Likewise.
        num_students: Averaged.
        num_teachers: That all of them had.
        note: What to beware of.
        lowest: Of the estimates without the teachers and students of one family, each left out in turn; None where that
            leaves no two teachers.
        highest: Likewise.
    """

    metric: str
    estimate: float | None
    low: float | None
    high: float | None
    num_students: int
    num_teachers: int
    note: str | None
    lowest: float | None = None
    highest: float | None = None


class Mediation(NamedTuple):
    """What is left of the family interaction once a diagnostic is a covariate.

    Attributes:
        metric: The diagnostic; None for none.
        gamma: In points of accuracy.
        low: Of the 95 % interval, Student's t on the cells' residuals; None without degrees of freedom.
        high: Likewise.
        slope: Points of accuracy per standard deviation of the diagnostic.
        left: gamma over gamma without the covariate.
        num_cells: Of the regression.
        note: What to beware of.
    """

    metric: str | None
    gamma: float | None
    low: float | None
    high: float | None
    slope: float | None
    left: float | None
    num_cells: int
    note: str | None


def join_cells(rows: Sequence[dict[str, Any]], results: dict[str, Any]) -> dict[tuple[str, str], list[Cell]]:
    """Matches a study's plain rationale arms with diagnostics, by the task that was learned and the one answered.

    Of several training sizes it is the mean accuracy.

    Args:
        rows: Of diagnostics.json.
        results: Of results.json.

    Raises:
        ValueError: None match.
    """
    known = {(row["teacher"], row["student"], row["task"]): row for row in rows}
    of_pair = defaultdict[tuple[str, str, str, str], list[dict[str, Any]]](list)
    for cell in results["cells"]:
        if cell["supervision"] == "rationale" and cell["control"] is None:
            of_pair[cell["trained_on"], cell["task"], cell["teacher"], cell["student"]].append(cell)
    joined: dict[tuple[str, str], list[Cell]] = {}
    for (trained_on, task, teacher, student), cells in of_pair.items():
        if (row := known.get((teacher, student, trained_on))) is not None:
            joined.setdefault((trained_on, task), []).append(
                Cell(
                    teacher=teacher,
                    student=student,
                    in_family=cells[0]["teacher_family"] == cells[0]["student_family"],
                    accuracy=float(np.mean([cell["accuracy"] for cell in cells])),
                    diagnostics={name: row[name] for name in row["intervals"]},
                    families=(cells[0]["teacher_family"], cells[0]["student_family"]),
                    parts=(_find_parts(results, "teachers", teacher), _find_parts(results, "students", student)),
                )
            )
    if not joined:
        raise ValueError(
            "results.json and diagnostics.json share no teacher, student and task; diagnose the study's own "
            f"(its tasks are {sorted({cell['trained_on'] for cell in results['cells']} - {None})})"
        )
    return joined


def _find_parts(results: dict[str, Any], role: str, name: str) -> dict[str, str | None]:
    parts: dict[str, str | None] = results["study"][role][name]["parts"]
    return parts


def correlate(cells: Sequence[Cell], metric: str, seed: int, num_resamples: int = NUM_RESAMPLES) -> Correlation:
    """Correlates a diagnostic with accuracy, as Table 4 of arXiv 2601.14249 does, with an interval.

    Teachers are resampled for all students at once, since they share them; only those count that all students had.
    Without resamples, or where they are all alike, there is no interval.
    """
    table = {(cell.student, cell.teacher): cell for cell in cells if metric in cell.diagnostics}
    students = sorted({student for student, _ in table})
    teachers = sorted({teacher for _, teacher in table})
    teachers = [name for name in teachers if all((student, name) in table for student in students)]
    number = len(teachers)
    grid = [[table[student, teacher] for teacher in teachers] for student in students]
    x_ST = np.array([[cell.diagnostics[metric] for cell in row] for row in grid])
    y_ST = np.array([[cell.accuracy for cell in row] for row in grid])
    if number < 2 or math.isnan(estimate := float(average_spearman(x_ST[None], y_ST[None])[0])):
        return Correlation(metric, None, None, None, len(students), number, "no student has two different teachers")
    if number < FEWEST_TEACHERS:
        note = f"only {number} teachers: no interval, and {math.factorial(number)} orders are possible"
        return Correlation(metric, estimate, None, None, len(students), number, note)
    if num_resamples == 0:
        return Correlation(metric, estimate, None, None, len(students), number, None)
    draws_RT = np.random.default_rng(seed).integers(number, size=(num_resamples, number))
    found_R = average_spearman(*(values_ST[:, draws_RT].transpose(1, 0, 2) for values_ST in (x_ST, y_ST)))
    low, high = np.nanquantile(found_R, [0.025, 0.975]).tolist()
    if high - low < 1e-9:
        note = "nearly all resamples of the teachers give it: no interval"
        return Correlation(metric, estimate, None, None, len(students), number, note)
    return Correlation(metric, estimate, low, high, len(students), number, None)


def average_spearman(x_RST: np.ndarray, y_RST: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation over T, averaged over those of S where both differ; nan where there is none."""
    ranks = [stats.rankdata(values, axis=-1) for values in (x_RST, y_RST)]
    x, y = (values - values.mean(-1, keepdims=True) for values in ranks)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        means_R: np.ndarray = np.nanmean((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)), axis=-1)
    return means_R


def leave_families_out(cells: Sequence[Cell], found: Correlation, seed: int) -> Correlation:
    """Returns a correlation with the range of its estimates without the models of one family, each in turn."""
    families = dict.fromkeys(family for cell in cells for family in cell.families)
    others = [
        correlate([cell for cell in cells if family not in cell.families], found.metric, seed, 0).estimate
        for family in families
        if any(family not in cell.families and found.metric in cell.diagnostics for cell in cells)
    ]
    known = [estimate for estimate in others if estimate is not None]
    return found._replace(lowest=min(known, default=None), highest=max(known, default=None))


def mediate_parts(cells: Sequence[Cell], metric: str | None) -> list[dict[str, Any]]:
    """Regresses accuracy on students, teachers, the parts that they share, and a diagnostic: a row for each effect.

    As `mediate`, with a column for each part whose effect the grid of these cells identifies; nothing where the grid is
    not complete, its models have no parts, or the diagnostic says no more than main effects and parts do. A row's
    interval is over pairs of models, see `estimate_over_pairs`; it has none without degrees of freedom.
    """
    cells = [cell for cell in cells if metric is None or metric in cell.diagnostics]
    students = {cell.student: cell.parts[1] for cell in cells}
    teachers = {cell.teacher: cell.parts[0] for cell in cells}
    table = {(cell.student, cell.teacher): cell for cell in cells}
    if not cells or len(table) < len(students) * len(teachers):
        return []
    decomposed = decompose_parts(students, teachers)
    if not decomposed.effects:
        return []
    grid = [[table[student, teacher] for teacher in teachers] for student in students]
    y_C = centre_cells(np.array([[100 * cell.accuracy for cell in row] for row in grid])).reshape(-1)
    # The weights span what the parts' columns do.
    columns_CG = np.linalg.pinv(decomposed.weights_GST.reshape(len(decomposed.weights_GST), -1))
    rank, slope_C1 = decomposed.rank, np.zeros((len(y_C), 0))
    if metric is not None:
        z_ST = centre_cells(np.array([[cell.diagnostics[metric] for cell in row] for row in grid]))
        rest_C = z_ST.reshape(-1) - columns_CG @ (np.linalg.pinv(columns_CG) @ z_ST.reshape(-1))
        if np.abs(rest_C).max() <= 1e-9 * max(1.0, float(np.abs(z_ST).max())):
            return []  # what pairs share says all of it
        rank, slope_C1 = rank + 1, z_ST.reshape(-1, 1)
    weights = np.linalg.pinv(np.hstack([columns_CG, slope_C1]))
    found = estimate_over_pairs(y_C.reshape(len(students), -1), weights.reshape(len(weights), len(students), -1), rank)
    values = weights @ y_C
    rows = []
    for effect in decomposed.effects:
        estimate = None if found is None else found[0][effect.place]
        rows.append(
            {
                "metric": metric,
                "part": " + ".join(effect.parts),
                "gamma": float(values[effect.place]),
                "low": None if estimate is None else estimate.low,
                "high": None if estimate is None else estimate.high,
                "num_cells": len(cells),
            }
        )
    return rows


def mediate(cells: Sequence[Cell], metric: str | None) -> Mediation:
    """Regresses accuracy on students, teachers, one family or two, and a diagnostic.

    accuracy = m + a_student + b_teacher + gamma [same family] + c z + error, where z is the diagnostic in standard
    deviations. In a grid of two by two without z, gamma = (A_11 + A_22 - A_12 - A_21) / 2.
    """
    cells = [cell for cell in cells if metric is None or metric in cell.diagnostics]
    students, teachers = (
        [*dict.fromkeys(names)] for names in zip(*((c.student, c.teacher) for c in cells), strict=True)
    )
    columns = [[1.0] * len(cells)]
    columns += [[float(cell.student == name) for cell in cells] for name in students[1:]]
    columns += [[float(cell.teacher == name) for cell in cells] for name in teachers[1:]]
    columns.append([float(cell.in_family) for cell in cells])
    if metric is not None:
        values = np.array([cell.diagnostics[metric] for cell in cells])
        columns.append(((values - values.mean()) / (values.std() or 1.0)).tolist())
    design, accuracy = np.array(columns).T, 100 * np.array([cell.accuracy for cell in cells])
    freedom = len(cells) - design.shape[1]
    if np.linalg.matrix_rank(design, tol=1e-8) < design.shape[1]:
        what = "gamma" if metric is None else f"{metric} beside students, teachers and families"
        return Mediation(metric, None, None, None, None, None, len(cells), f"the cells do not identify {what}")
    solution = np.linalg.lstsq(design, accuracy, rcond=None)[0]
    place = len(students) + len(teachers) - 1
    gamma, slope = float(solution[place]), float(solution[-1]) if metric is not None else None
    if freedom < 1:
        return Mediation(metric, gamma, None, None, slope, None, len(cells), f"{len(cells)} cells leave no error")
    residual = accuracy - design @ solution
    if not leaves_spread(residual, accuracy):
        note = f"the effects explain all {len(cells)} cells and leave no error"
        return Mediation(metric, gamma, None, None, slope, None, len(cells), note)
    variance = residual @ residual / freedom * np.linalg.inv(design.T @ design)[place, place]
    half = float(stats.t.ppf(0.975, freedom) * math.sqrt(variance))
    return Mediation(metric, gamma, gamma - half, gamma + half, slope, None, len(cells), None)


def predict(
    rows: Sequence[dict[str, Any]], metrics: Sequence[str], results: dict[str, Any], seed: int
) -> Iterator[dict[str, Any]]:
    """Yields, for each task learned and answered, its correlations, strongest first, and its mediations."""
    for (trained_on, task), cells in join_cells(rows, results).items():
        found = [correlate(cells, metric, seed) for metric in metrics]
        found = [leave_families_out(cells, item, seed) for item in found if item.estimate is not None]
        plain = mediate(cells, None)
        mediations = [plain]
        if plain.gamma is not None:
            others = (mediate(cells, metric) for metric in metrics if any(metric in cell.diagnostics for cell in cells))
            mediations += [
                item._replace(left=item.gamma / plain.gamma)
                for item in others
                if item.gamma is not None and plain.gamma
            ]
        yield {
            "trained_on": trained_on,
            "task": task,
            "num_cells": len(cells),
            "correlations": [item._asdict() for item in sorted(found, key=lambda item: -abs(item.estimate or 0))],
            "mediations": [item._asdict() for item in mediations],
            "parts": [row for metric in (None, *metrics) for row in mediate_parts(cells, metric)],
        }


def format_predictions(predictions: Sequence[dict[str, Any]]) -> str:
    """Returns Markdown: how each diagnostic correlates with accuracy, and the gamma it leaves."""
    parts = []
    for prediction in predictions:
        left = {item["metric"]: item for item in prediction["mediations"]}
        plain = left[None]
        gamma = "not identified" if plain["gamma"] is None else f"{_format_interval(plain, 'gamma', 1)} points"
        title = (
            f"{prediction['trained_on']}, answering {prediction['task']}: {prediction['num_cells']} cells; "
            f"family interaction of the cells: {gamma}"
        )
        rows = []
        for item in prediction["correlations"]:
            own = left.get(item["metric"])
            rest = "–" if own is None else _format_interval(own, "gamma", 1)
            number = f"{item['num_students']} × {item['num_teachers']}"
            without = "–" if item["lowest"] is None else f"{signed(item['lowest'], 2)} to {signed(item['highest'], 2)}"
            note = item["note"] or (own["note"] if own else "") or ""
            rows.append([item["metric"], _format_interval(item, "estimate", 2), without, rest, number, note])
        columns = ["diagnostic", "Spearman with accuracy", "without one family", "interaction that is left", "n", ""]
        parts += [title, format_table(columns, rows), *_format_parts(prediction["parts"])]
    note = (
        "Spearman over teachers, averaged over students, 95 % by a bootstrap over teachers; without one family: the "
        "range of it, each family left out in turn. The interaction, and each part's effect, is a "
        "regression's on cells, in points, 95 % by Student's t; n is students × teachers."
    )
    return "\n\n".join([*parts, note])


def _format_parts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a table of what is left of each part's effect beside each diagnostic; nothing without parts."""
    if not rows:
        return []
    parts = [*dict.fromkeys(row["part"] for row in rows)]
    table = {(row["metric"], row["part"]): _format_interval(row, "gamma", 1) for row in rows}
    metrics = dict.fromkeys(row["metric"] for row in rows)
    columns = ["beside", *(f"γ of {part} that is left" for part in parts)]
    cells = [[metric or "nothing", *(table.get((metric, part), "–") for part in parts)] for metric in metrics]
    return [format_table(columns, cells)]


def _format_interval(item: dict[str, Any], name: str, digits: int) -> str:
    text = signed(item[name], digits)
    return text if item["low"] is None else f"{text} {signed_between(item['low'], item['high'], digits)}"
