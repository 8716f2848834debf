"""A study's predictions as arrays of answers to the same questions; what cannot be compared is named."""

from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.files.atomic import hash_json
from datamodules.files.seals import read_sealed
from datamodules.files.tables import parse_metadata, read_table
from datamodules.model_sources import name_model
from lightning_modules.evaluation.groups import group_by_task
from lightning_modules.evaluation.proportions import number_groups
from studies.analysis.outcome_values import COLUMNS, measure_outcome
from studies.analysis.pooling import Records, pool_languages
from studies.design.grid import Arm, Study, expand

# By extractor, and by its name and version, whose answers it read: arms', or their files' of a type.
Versions = dict[str, defaultdict[str, list[str]]]

EXTRACTOR = "neutral"
BUDGET = ("train_examples", "global_step", "supervised_tokens_per_epoch")


class CellKey(NamedTuple):
    """Names one student under one condition on one test task.

    Attributes:
        student: The student's name.
        supervision: What it learned from, or `untuned`.
        teacher: The teacher's name, or None.
        control: The control's name; None for the plain arm.
        trained_on: The study's task that it learned; None if untuned.
        task: The task of the questions.
        size: Number of training questions; None where the study names no sizes, if untuned, and of a mean over sizes.
    """

    student: str
    supervision: str
    teacher: str | None
    control: str | None
    trained_on: str | None
    task: str
    size: int | None = None

    @property
    def condition(self) -> str:
        """As `Arm.condition`."""
        return Arm(self.student, self.supervision, self.teacher, 0, control=self.control, size=self.size).condition


@dataclass(frozen=True)
class Cell:
    """The answers of a cell.

    Attributes:
        correct_SQ: 0 or 1 for each seed and question.
        seeds: Their numbers.
        extraction_rate: Share of completions with an answer.
        accuracies: By extractor, of those that all arms have.
        budget: What its training took, by name of `BUDGET`: one number for each seed; empty if untuned.
        coverage: Share of its completions' tokens in each class of alignment, mean over seeds; empty without one.
        texts: A hash of what it learned from, one for each seed; empty if untuned, or where the runs do not tell.
        outcomes: By name, what else the study compares, for each seed and question; of those that all of them tell.
    """

    correct_SQ: np.ndarray
    seeds: list[int]
    extraction_rate: float
    accuracies: dict[str, float]
    budget: dict[str, list[int]]
    coverage: dict[str, float]
    texts: list[str] = field(default_factory=list)
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """All that a study's arms answered.

    Attributes:
        cells: In the grid's order.
        questions: Number of questions that are compared, by task.
        groups: By task, the number of each question's group, from 0; None where each question stands alone.
        warnings: What a reader of the comparison must know.
        quantized: By type, the trained cells as files of it answered the same questions.
        is_outcome: Whether the cells hold another outcome in place of right and wrong.
        is_matched: Whether seeds of one number learned from the same draw of questions, whatever the arm.
    """

    cells: dict[CellKey, Cell]
    questions: dict[str, int]
    groups: dict[str, np.ndarray | None]
    warnings: list[str]
    quantized: dict[str, dict[CellKey, Cell]] = field(default_factory=dict)
    is_outcome: bool = False
    is_matched: bool = False


def predictions_path(study: Study, arm: Arm, kind: str | None = None) -> Path:
    """Returns where an arm's predictions are: its own, or those of its file of a type."""
    folder = Path(study.root) / study.name / "predictions"
    return (folder if kind is None else folder / kind) / f"{arm.id}.parquet"


def files_path(study: Study, arm: Arm) -> Path:
    """Returns the folder of an arm's files for llama.cpp."""
    return Path(study.root) / study.name / "files" / arm.id


def _refuse_other_arm(path: Path, table: pa.Table, arm: str, seed: int, run: str, runs: Set[str]) -> None:
    """Raises a ValueError if a file has another arm's predictions: of another name, seed, or run's student."""
    if {"arm", "seed"} <= {*table.column_names}:
        for own in {*zip(table["arm"].to_pylist(), table["seed"].to_pylist(), strict=True)} - {(arm, seed)}:
            raise ValueError(f"{path}: holds predictions of {own[0]}, seed {own[1]}, not of {arm}, seed {seed}")
    student = Path(parse_metadata(table.schema, path).get("student") or "")
    if others := (runs & {*student.parts}) - {run}:
        raise ValueError(f"{path}: holds predictions of the student of {min(others)}, not of {run}")


def _read_predictions(path: Path, outcomes: Sequence[str]) -> pa.Table:
    """Reads what a study needs of a file of predictions.

    Raises:
        ValueError: The extractor's column is missing.
    """
    names = pq.read_schema(path).names
    if f"correct_{EXTRACTOR}" not in names:
        raise ValueError(f"{path}: has no column correct_{EXTRACTOR}; evaluate this arm again")
    correct = [name for name in names if name.startswith("correct_")]
    given = ("arm", "seed", "group", "language", "gold", *(COLUMNS[outcome] for outcome in outcomes))
    columns = ["task", "split", "question_id", f"answer_{EXTRACTOR}", *correct]
    return read_table(path, [*columns, *(name for name in given if name in names)])


def _sort_records(path: Path, records: list[dict[str, Any]]) -> Records:
    """Returns an arm's records by task, or by split where a task has several, and by question.

    Raises:
        ValueError: A question is there twice or has no gold answer.
    """
    for (_, question), number in Counter((record["task"], record["question_id"]) for record in records).items():
        if number > 1:
            raise ValueError(f"{path}: question {question!r} is there twice; evaluate this arm again")
    for record in records:
        if record[f"correct_{EXTRACTOR}"] is None:
            question = record["question_id"]
            raise ValueError(f"{path}: question {question!r} has no gold answer; a study's test questions need one")
    return {task: {record["question_id"]: record for record in own} for task, own in group_by_task(records).items()}


def _find_common(arms: dict[str, Records], warnings: list[str]) -> dict[str, list[str]]:
    """Returns the questions that all arms which answer a task have answered, by task; says so if some have more."""
    common = {}
    for task in dict.fromkeys(task for tasks in arms.values() for task in tasks):
        sets = {arm: set(tasks[task]) for arm, tasks in arms.items() if task in tasks}
        shared, union = set.intersection(*sets.values()), set.union(*sets.values())
        if not shared:
            raise ValueError(f"task {task}: there is no question that all arms answered")
        if shared < union:
            fewest = min(sets, key=lambda arm: len(sets[arm]))
            warnings.append(
                f"task {task}: the arms answered different questions; compared are the {len(shared)} of {len(union)} "
                f"that all answered ({fewest} answered {len(sets[fewest])})"
            )
        common[task] = sorted(shared)
    return common


def _find_groups(arms: dict[str, Records], common: dict[str, list[str]]) -> dict[str, np.ndarray | None]:
    """Returns the groups of each task's questions.

    Raises:
        ValueError: Two arms' predictions differ in them, or in a question's gold answer, or there is only one group.
    """
    groups = {}
    for task, questions in common.items():
        for question in questions:
            golds = {tasks[task][question].get("gold"): arm for arm, tasks in arms.items() if task in tasks}
            if len(golds) > 1:
                differ = ", and ".join(f"{gold!r} in {arm}" for gold, arm in [*golds.items()][:2])
                raise ValueError(
                    f"task {task}: question {question!r} has the gold answer {differ}; evaluate them again"
                )
        found = {
            arm: [tasks[task][question].get("group") for question in questions]
            for arm, tasks in arms.items()
            if task in tasks
        }
        first, *others = found
        for other in others:
            if found[other] != found[first]:
                raise ValueError(
                    f"task {task}: the questions' groups differ between {first} and {other}; evaluate them again"
                )
        groups[task] = numbers = number_groups(found[first])
        if len(questions) == 1 or (numbers is not None and not numbers.any()):
            raise ValueError(f"task {task}: one question, or one group of them, tells no interval; test on more")
    return groups


def read_answers(study: Study) -> Answers:
    """Reads the predictions of all arms of a study.

    Raises:
        ValueError: No arm has predictions, or a file of them cannot be used.
    """
    warnings: list[str] = []
    wanted = expand(study)
    versions: Versions = {}
    arms = _read_arms(study, wanted, None, warnings, versions)
    if not arms:
        raise ValueError(f"{Path(study.root) / study.name}: has no predictions yet; run the study first")
    trained = [arm for arm in wanted if arm.supervision != "untuned"]
    files = {kind: _read_arms(study, trained, kind, warnings, versions) for kind in study.types}
    members = pool_languages(study, arms)
    for own in files.values():
        members |= pool_languages(study, own)
    named = {arm.id: tasks for arm, tasks in arms.items()}
    named |= {f"{arm.id} in {kind}": tasks for kind, own in files.items() for arm, tasks in own.items()}
    extractors = {
        arm: {name for records in tasks.values() for record in records.values() for name in record}
        for arm, tasks in named.items()
    }
    names = set.intersection(*extractors.values())
    if other := [arm for arm, own in extractors.items() if own != set.union(*extractors.values())]:
        warnings.append(f"some arms lack extractors that others have, which are left out: {', '.join(other)}")
    warnings += _compare_versions({name: own for name, own in versions.items() if f"correct_{name}" in names})
    common = _find_common(named, warnings)
    cells, early = _build_cells(study, arms, members, common, names)
    warnings += [f"{arm}: its training ended early, {reason}" for arm, reason in early.items() if reason]
    warnings += _compare_budgets(cells)
    warnings += _name_same_texts(cells)
    warnings += _name_single_seeds(cells)
    counts = {task: len(questions) for task, questions in common.items()}
    quantized = {kind: _build_cells(study, own, members, common, names)[0] for kind, own in files.items() if own}
    groups = _find_groups(named, common)
    return Answers(cells, counts, groups, warnings, quantized, is_matched=bool(study.sizes))


def _read_arms(
    study: Study, wanted: Sequence[Arm], kind: str | None, warnings: list[str], versions: Versions
) -> dict[Arm, Records]:
    """Returns arms' records, or those of their files of a type; says which arms have none, and what read the others."""
    paths = {arm: predictions_path(study, arm, kind) for arm in wanted}
    arms = {}
    for arm, path in paths.items():
        if not path.is_file():
            continue
        table = _read_predictions(path, study.outcomes)
        name = f"{arm.condition}-{kind}" if kind else arm.condition
        _refuse_other_arm(path, table, name, arm.seed, arm.id, {own.id for own in wanted})
        for identifier in parse_metadata(table.schema, path).get("creation", {}).get("extractors", []):
            found = versions.setdefault(identifier.rpartition("-")[0], defaultdict(list))
            found[identifier].append(arm.id if kind is None else f"{arm.id} in {kind}")
        own = [column for column in table.column_names if column not in ("arm", "seed")]
        arms[arm] = _sort_records(path, table.select(own).to_pylist())
    if missing := [arm.id for arm in wanted if arm not in arms]:
        of = f" of {kind}" if kind else ""
        warnings.append(
            f"{len(missing)} of {len(wanted)} arms have no predictions{of} and are left out: {', '.join(missing)}"
        )
    return arms


def _compare_versions(versions: Versions) -> list[str]:
    """Returns a line for each extractor of which several versions read the answers that are compared."""
    lines = []
    for name, found in versions.items():
        most, *others = sorted(found, key=lambda identifier: -len(found[identifier]))
        if others:
            read = "; ".join(f"{identifier} those of {', '.join(found[identifier])}" for identifier in others)
            lines.append(
                f"versions of {name} read the answers, which may explain a difference: {read}; {most} the others; "
                "evaluate the older ones again"
            )
    return lines


def _build_cells(
    study: Study, arms: dict[Arm, Records], members: dict[Arm, list[Arm]], common: dict[str, list[str]], names: Set[str]
) -> tuple[dict[CellKey, Cell], dict[str, str | None]]:
    """Returns arms' cells, and by run why its training ended early, if it did; `members` are those of pooled arms."""
    seeds: dict[CellKey, list[Arm]] = defaultdict(list)
    for arm, tasks in arms.items():
        trained_on = None if arm.supervision == "untuned" else arm.task or next(iter(study.learned))
        for task in tasks:
            key = CellKey(arm.student, arm.supervision, arm.teacher, arm.control, trained_on, task, arm.size)
            seeds[key].append(arm)
    cells, early = {}, dict[str, str | None]()
    for key, own in seeds.items():
        records = [[arms[arm][key.task][question] for question in common[key.task]] for arm in own]
        correct = np.array([[record[f"correct_{EXTRACTOR}"] for record in row] for row in records], dtype=float)
        answered = [record[f"answer_{EXTRACTOR}"] is not None for row in records for record in row]
        accuracies = {}
        for name in sorted(name for name in names if name.startswith("correct_")):
            # Questions without options have no likelihoods.
            if graded := [record[name] for row in records for record in row if record[name] is not None]:
                accuracies[name.removeprefix("correct_")] = float(np.mean(graded))
        # Of a pooled arm, each of those that it is made of.
        trained = [[member.id for member in members.get(arm, [arm])] for arm in own if key.trained_on]
        facts = [{run: read_sealed(Path(study.root) / study.name / run / "DONE") for run in runs} for runs in trained]
        budget = (
            {name: [sum(fact[name] for fact in done.values()) for done in facts] for name in BUDGET} if facts else {}
        )
        early.update({run: fact.get("ended_early") for done in facts for run, fact in done.items()})
        shares = [fact["alignment"] for done in facts for fact in done.values() if fact.get("alignment")]
        coverage = {name: float(np.mean([share[name] for share in shares])) for name in (shares[0] if shares else ())}
        told = all("texts" in fact for done in facts for fact in done.values())
        texts = [hash_json([fact["texts"] for fact in done.values()]) for done in facts] if told else []
        numbers = [arm.seed for arm in own]
        outcomes = _measure_outcomes(study, key, records)
        cells[key] = Cell(correct, numbers, float(np.mean(answered)), accuracies, budget, coverage, texts, outcomes)
    return cells, early


def _measure_outcomes(study: Study, key: CellKey, records: list[list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    """Returns the outcomes that all seeds and questions of a cell tell, by name."""
    teacher = study.teachers[key.teacher] if key.teacher else None
    writer = None if teacher is None else teacher.name or name_model(str(teacher.model))
    found = dict[str, np.ndarray]()
    for name in study.outcomes:
        values = [[measure_outcome(name, record, writer) for record in row] for row in records]
        if all(value is not None for row in values for value in row):
            found[name] = np.array(values, dtype=float)
    return found


def _name_single_seeds(cells: dict[CellKey, Cell]) -> list[str]:
    """Returns a line for the cells of one training seed, by where their variance over seeds comes from, if anywhere."""
    several = {(key.trained_on, key.task) for key, cell in cells.items() if key.trained_on and len(cell.correct_SQ) > 1}
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for key, cell in cells.items():
        if key.trained_on and len(cell.correct_SQ) == 1:
            names[(key.trained_on, key.task) in several].add(key.condition)
    ends = {
        True: "the variance over seeds is pooled over the cells with several",
        False: "intervals leave out what another seed would change",
    }
    return [f"one training seed: {ends[has]} ({', '.join(sorted(own))})" for has, own in names.items() if own]


def _compare_budgets(cells: dict[CellKey, Cell]) -> list[str]:
    """Returns a line for each set of arms that are compared although their trainings took more or less."""
    groups: dict[tuple[str, str | None, str | None, int | None], dict[str, dict[str, list[int]]]] = defaultdict(dict)
    for key, cell in cells.items():
        if key.teacher:
            group = (key.supervision, key.control, key.trained_on, key.size)
            groups[group][f"student {key.student}, teacher {key.teacher}"] = cell.budget
    lines = []
    for (supervision, control, trained_on, size), members in groups.items():
        ranges = []
        for name in BUDGET:
            low = min(members, key=lambda arm: min(members[arm][name]))
            high = max(members, key=lambda arm: max(members[arm][name]))
            fewest, most = min(members[low][name]), max(members[high][name])
            if fewest < most:
                ranges.append(f"{name} {fewest} ({low}) to {most} ({high})")
        if ranges:
            what = ", ".join(
                filter(None, (supervision, control, f"{size} questions" if size else None, f"trained on {trained_on}"))
            )
            lines.append(f"{what}: training budgets differ, which may explain a difference: {'; '.join(ranges)}")
    return lines


def _name_same_texts(cells: dict[CellKey, Cell]) -> list[str]:
    """Returns a line for the teachers whose texts were the same, so that they are one teacher but for distributions."""
    groups: dict[tuple[str, str, str | None, int | None], dict[tuple[str, ...], list[str]]] = defaultdict(dict)
    for key, cell in cells.items():
        if key.teacher and key.control is None and cell.texts and key.supervision.startswith("rationale"):
            group = groups[key.student, key.supervision, key.trained_on, key.size]
            group.setdefault(tuple(cell.texts), []).append(key.teacher)
    found = defaultdict[tuple[str | None, str], set[str]](set)
    for (student, _, trained_on, _), own in groups.items():
        for teachers in own.values():
            if len(teachers) > 1:
                found[trained_on, ", ".join(teachers)].add(student)
    return [
        f"trained on {trained_on}: students {', '.join(sorted(students))} learned the same texts from {teachers}, "
        "which are one teacher but for their distributions; what is said of teachers counts them as several"
        for (trained_on, teachers), students in found.items()
    ]
