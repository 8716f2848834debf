"""What students took over of the preferences that their teachers were tuned to."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files.tables import read_table
from datamodules.tasks.records import LETTERS
from studies.design.grid import Arm, Study, expand, find_twin
from studies.inference.trait_shift import estimate_shift, measure_log_odds
from studies.numbers import signed, signed_between


def preferences_path(study: Study, trait: str, name: str) -> Path:
    """Returns where the answers of an arm, or of a teacher, to a trait's neutral questions are."""
    return Path(study.root) / study.name / "traits" / trait / "preferences" / f"{name}.parquet"


def name_teacher(teacher: str, is_tuned: bool) -> str:
    """Returns what a teacher is called among those that answer a trait's questions."""
    return f"teacher-{teacher}-{'tuned' if is_tuned else 'before'}"


def list_askers(study: Study, trait: str) -> list[Arm]:
    """Returns the arms that answer a trait's questions: those that learn it, and those that they are held against."""
    controls = [name for name, control in study.controls.items() if control.trait == trait]
    twins = {find_twin(study, name) for name in controls} - {None}
    arms = [arm for arm in expand(study) if arm.control in controls]
    students = {arm.student for arm in arms}
    pairs = {(arm.student, arm.teacher) for arm in arms}
    more = [
        arm
        for arm in expand(study)
        if (arm.supervision == "untuned" and arm.student in students)
        or (arm.control in twins and (arm.student, arm.teacher) in pairs)
    ]
    return [*more, *arms]


def _read_log_odds(path: Path) -> dict[str, float]:
    """Returns the log-odds of the preferred option by question.

    Raises:
        ValueError: A question's options were not scored, or it has no gold answer.
    """
    found = {}
    for record in read_table(path, ["question_id", "gold", "option_log_likelihoods"]).to_pylist():
        scores, gold = record["option_log_likelihoods"], record["gold"]
        if gold is None or len(scores or ()) < 2:
            raise ValueError(
                f"{path}: question {record['question_id']!r} of a trait needs options that are scored, and a gold one"
            )
        found[record["question_id"]] = measure_log_odds(scores, LETTERS.index(gold))
    return found


def describe_traits(study: Study) -> list[dict[str, Any]]:
    """Returns, for each trait and each student, teacher, task, size and control, the shifts and their ratio.

    Arms whose answers are not all there are left out.

    Raises:
        ValueError: See `_read_log_odds`; or fewer than two questions are common to what is compared.
    """
    rows = []
    for trait in dict.fromkeys(filter(None, (control.trait for control in study.controls.values()))):
        cells: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
        for arm in list_askers(study, trait):
            path = preferences_path(study, trait, arm.id)
            if path.is_file():
                cells[arm.student, arm.teacher, arm.task, arm.size, arm.control].append(path)
        for (student, teacher, task, size, control), paths in cells.items():
            if control is None or study.controls[control].trait != trait:
                continue
            ends = [preferences_path(study, trait, name_teacher(teacher, is_tuned)) for is_tuned in (True, False)]
            twin = find_twin(study, control)
            twins = cells.get((student, teacher, task, size, twin)) if twin else None
            before = twins or cells.get((student, None, None, None, None))
            if not before or not all(path.is_file() for path in ends):
                continue
            own, other, *teachers = [
                [_read_log_odds(path) for path in group] for group in (paths, before, *([end] for end in ends))
            ]
            questions = sorted(set.intersection(*(set(found) for group in (own, other, *teachers) for found in group)))
            if len(questions) < 2:
                raise ValueError(
                    f"{paths[0]}: {len(questions)} of its questions of trait {trait} were answered by all that it is "
                    "held against, which tells no interval; ask all of them the same, two at least"
                )
            own_SQ, other_SQ, tuned_SQ, plain_SQ = (
                np.array([[found[question] for question in questions] for found in group])
                for group in (own, other, *teachers)
            )
            shift = estimate_shift(own_SQ, other_SQ, tuned_SQ[0], plain_SQ[0], is_trained=twins is not None)
            rows.append({
                "trait": trait,
                "student": student,
                "teacher": teacher,
                "trained_on": task or next(iter(study.learned)),
                "control": control,
                "size": size,
                "supervision": study.controls[control].supervision,
                "against": twin if twins else "untuned",
                "num_questions": len(questions),
                "num_seeds": len(paths),
                **asdict(shift),
            })  # fmt: skip
    return rows


def format_traits(rows: list[dict[str, Any]]) -> str:
    """Returns a line for each row; nothing without any."""

    def show(estimate: dict[str, float]) -> str:
        return f"{signed(estimate['estimate'], 2)} {signed_between(estimate['low'], estimate['high'], 2)}"

    lines = []
    for row in rows:
        ratio = "no ratio, since the teacher's is not told from 0"
        if row["ratio"] is not None:
            ratio = f"ratio {signed(row['ratio'], 3)} {signed_between(row['low'], row['high'], 3)}"
        size = f" ({row['size']} questions)" if row["size"] else ""
        student, teacher = show(row["student_shift"]), show(row["teacher_shift"])
        lines.append(
            f"- Trait {row['trait']}, {row['student']}: {row['control']} of {row['teacher']} after "
            f"{row['trained_on']}{size}, against {row['against']}: the student's log-odds shift {student}, the "
            f"teacher's {teacher}: {ratio} ({row['num_questions']} questions, {row['num_seeds']} seeds)"
        )
    return "\n".join(lines)
