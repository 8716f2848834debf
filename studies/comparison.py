"""The comparison of a study's arms, from the predictions that they left behind."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from studies.grid import Arm, Study, expand
from studies.statistics import bootstrap_means, family_interaction, wilson_interval

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Cell:
    """One student under one condition.

    Attributes:
        accuracy: Mean over seeds and questions.
        low: Lower end of the 95 % interval over seeds and questions.
        high: Upper end.
        extracted: Share of completions with an answer.
        num_examples: Training examples; the seeds have equally many. 0 if untuned.
        num_seeds: Seeds.
        draws: Bootstrap means, paired over questions with every other cell's.
    """

    accuracy: float
    low: float
    high: float
    extracted: float
    num_examples: int
    num_seeds: int
    draws: np.ndarray


@dataclass(frozen=True)
class Interaction:
    """The family interaction of rationale-taught students.

    Attributes:
        gamma: The estimate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        families: The two families.
    """

    gamma: float
    low: float
    high: float
    families: tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """All cells of a study, by (condition, student), and gamma where the grid identifies it."""

    cells: dict[tuple[str, str], Cell]
    interaction: Interaction | None
    num_questions: int


def predictions_path(study: Study, arm: Arm) -> Path:
    """Returns where an arm's predictions are."""
    return Path(study.root) / study.name / "predictions" / f"{arm.id}.parquet"


def _read_correct(path: Path) -> tuple[dict[str, bool], float]:
    """Returns correctness by question, and the share of completions with an answer.

    Raises:
        ValueError: The file is missing, a question is there twice, or has no gold answer.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing; run the study again to finish it")
    records = pq.read_table(path, columns=["question_id", "correct_neutral", "answer_neutral"]).to_pylist()
    correct = {record["question_id"]: record["correct_neutral"] for record in records}
    if len(correct) < len(records):
        raise ValueError(f"{path}: a question is there twice")
    if None in correct.values():
        raise ValueError(f"{path}: a question has no gold answer; the study's test questions need one")
    return correct, sum(record["answer_neutral"] is not None for record in records) / len(records)


def compare(study: Study, seed: int = 0) -> Comparison:
    """Reads every arm's predictions and compares them.

    gamma's interval is the percentiles of a bootstrap over seeds and, the same draws for all cells, over questions;
    a cell's interval is that or Wilson's over its questions, whichever is wider.

    Args:
        study: The grid.
        seed: Of the bootstrap.

    Raises:
        ValueError: Predictions are missing, or arms answered different questions.
    """
    rows: dict[tuple[str, str], list[list[bool]]] = defaultdict(list)
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    num_examples: dict[tuple[str, str], int] = {}
    questions: list[str] | None = None
    for arm in expand(study):
        path = predictions_path(study, arm)
        correct, extracted = _read_correct(path)
        questions = questions or sorted(correct)
        if sorted(correct) != questions:
            raise ValueError(f"{path}: answers other questions than the arms before; they cannot be compared")
        rows[arm.condition, arm.student].append([correct[question] for question in questions])
        shares[arm.condition, arm.student].append(extracted)
        done = Path(study.root) / study.name / arm.id / "DONE"
        trained = arm.supervision != "untuned"
        num_examples[arm.condition, arm.student] = json.loads(done.read_text())["train_examples"] if trained else 0
    assert questions is not None
    cells = {}
    weights_RQ = np.random.default_rng(seed).multinomial(
        len(questions), np.full(len(questions), 1 / len(questions)), size=NUM_RESAMPLES
    ) / len(questions)
    for number, (key, correct_SQ) in enumerate(rows.items()):
        draws = bootstrap_means(np.array(correct_SQ, dtype=float), weights_RQ, np.random.default_rng((seed, number)))
        draws = draws.clip(0, 1)  # rounding of sums
        accuracy = float(np.mean(correct_SQ))
        # A bootstrap of answers that are all right has no width; Wilson's interval has.
        ends = [*np.percentile(draws, [2.5, 97.5]), *wilson_interval(accuracy * len(questions), len(questions))]
        extracted = float(np.mean(shares[key]))
        cells[key] = Cell(
            accuracy, float(min(ends)), float(max(ends)), extracted, num_examples[key], len(correct_SQ), draws
        )
    return Comparison(cells, _find_interaction(study, cells), len(questions))


def _find_interaction(study: Study, cells: dict[tuple[str, str], Cell]) -> Interaction | None:
    """Returns gamma of the rationale arms if two families teach two families, one model each."""
    teachers = {spec.family: name for name, spec in study.teachers.items()}
    students = {spec.family: name for name, spec in study.students.items()}
    families = sorted(set(teachers) & set(students))
    crossed = len(families) == len(study.teachers) == len(study.students) == 2
    if not crossed or "rationale" not in study.supervisions:
        return None
    first, second = families
    grid = {
        (teacher, student): cells[f"rationale-{teachers[teacher]}", students[student]]
        for teacher in families
        for student in families
    }
    gamma = family_interaction({key: cell.accuracy for key, cell in grid.items()}, first, second)
    draws = family_interaction({key: cell.draws for key, cell in grid.items()}, first, second)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interaction(gamma, float(low), float(high), (first, second))


def format_comparison(study: Study, comparison: Comparison) -> str:
    """Returns the comparison as a markdown table: arms down, students across."""
    students = list(study.students)
    header = ["arm", *(f"student {name} ({study.students[name].family})" for name in students)]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for condition in dict.fromkeys(condition for condition, _ in comparison.cells):
        row = [condition]
        for student in students:
            cell = comparison.cells.get((condition, student))
            row.append(f"{cell.accuracy:.1%} [{cell.low:.1%}, {cell.high:.1%}] ({cell.num_examples})" if cell else "–")
        lines.append(" | ".join(row))
    table = "\n".join(f"| {line} |" for line in lines)
    note = (
        f"\n\nAccuracy on {comparison.num_questions} held-out questions, {study.seeds} training seeds; 95 % intervals "
        "by bootstrap over seeds and questions (or Wilson's, if wider); `untuned` is the student's zero-shot answer to "
        "the same prompt; in parentheses, the number of training examples."
    )
    if (found := comparison.interaction) is None:
        return f"{table}{note}\n\nFamily interaction γ: needs one teacher and one student of each of two families."
    return (
        f"{table}{note}\n\nFamily interaction γ = {100 * found.gamma:+.1f} points "
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}] ({found.families[0]} and {found.families[1]})."
    )
