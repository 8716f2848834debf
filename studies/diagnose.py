"""Diagnostics of teacher-student fit before any training: any number of teachers, one or several students."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from datamodules.files import read_records, write_json, write_text
from datamodules.logit_cache import LogitCache
from datamodules.prompts import get_prompt
from datamodules.published import find_family
from datamodules.questions import Question, load_questions
from datamodules.rationales import Rationale, load_rationales, read_gold_conditions
from datamodules.tokenization import load_tokenizer
from lightning_modules.pretrained import Dtype
from studies.diagnostics import gradients, likelihood, logits, ranks, surface, tokenizers
from studies.diagnostics.metrics import Diagnostic, Fit
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.table import format_tables, plot_heat_map
from studies.diagnostics.texts import Reading
from studies.grid import StudentSpec

METRICS: list[Diagnostic] = [
    *likelihood.METRICS,
    *ranks.METRICS,
    *surface.METRICS,
    *tokenizers.METRICS,
    *logits.METRICS,
    *gradients.METRICS,
]
NUM_SHIFTED = 20


@dataclass(frozen=True)
class TaskSource:
    """One task's questions, and what teachers answered.

    Attributes:
        questions: See `load_questions`.
        rationales: Rationale stores and published collections.
        teachers: Use only these; null uses all that the files hold.
        gold_conditioned: Which teachers were shown the gold answers, where the files do not say.
        logits: Logit caches by teacher; used where the tokenizer is the student's.
        rewards: File of {"id": rationale id, "reward": number} lines, from a reward model; null takes right answers.
    """

    questions: str
    rationales: list[str]
    teachers: list[str] | None = None
    gold_conditioned: dict[str, bool] = field(default_factory=dict)
    logits: dict[str, str] = field(default_factory=dict)
    rewards: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What is diagnosed.

    Attributes:
        name: Names the folder of the results.
        students: By name.
        tasks: By name.
        teacher_tokenizers: Hub id, local folder or GGUF file, of teachers whose tokenizer is known.
        prompt: What the students read before a rationale.
        num_questions: Drawn from those that all teachers of a task answered.
        gradient_questions: The first so many of them, for what needs a gradient; 0 for none.
        own_prompt: What the students answer by themselves.
        own_tokens: Longest own answer; 0 for none.
        local_steps: With how many steps before it a step is read, for nll_local.
        projection: Dimension of projected gradients.
        reward_weight: How much the loss weighs in CAR.
        tokens_per_batch: Budget in padded tokens.
        dtype: Of the weights in memory.
        num_resamples: Of the bootstrap over questions.
        seed: Of the drawn questions, the projection and the bootstrap.
        root: Folder of all runs.
    """

    name: str
    students: dict[str, StudentSpec]
    tasks: dict[str, TaskSource]
    teacher_tokenizers: dict[str, str] = field(default_factory=dict)
    prompt: str = "instruction"
    num_questions: PositiveInt = 200
    gradient_questions: NonNegativeInt = 32
    own_prompt: str = "cot"
    own_tokens: NonNegativeInt = 128
    local_steps: PositiveInt = 2
    projection: PositiveInt = 512
    reward_weight: NonNegativeFloat = 1.0
    tokens_per_batch: PositiveInt = 512
    dtype: Dtype = "float32"
    num_resamples: PositiveInt = 1000
    seed: NonNegativeInt = 0
    root: str = "runs"

    def __post_init__(self) -> None:
        for name in (self.prompt, self.own_prompt):
            get_prompt(name)
        if not self.students or not self.tasks:
            raise ValueError(f"{self.name}: there is no student or no task to diagnose")

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return Path(self.root) / self.name


@dataclass(frozen=True)
class TaskData:
    """One task's part of the diagnosis.

    Attributes:
        questions: The drawn questions.
        pairs: Their rationales, teacher by teacher.
        accuracies: Each teacher's share of right answers in the files; None where gold is unknown.
        gold_conditioned: By teacher; None where it is unknown.
        families: By teacher.
    """

    questions: list[Question]
    pairs: list[tuple[Question, Rationale]]
    accuracies: dict[str, float | None]
    gold_conditioned: dict[str, bool | None]
    families: dict[str, str]


def load_task(name: str, spec: TaskSource, num_questions: int, seed: int) -> TaskData:
    """Draws questions that all teachers answered, so that teachers are compared on the same ones.

    Raises:
        ValueError: A teacher is absent, or no question has an answer from all.
    """
    questions = {question.id: question for question in load_questions(spec.questions)}
    by_teacher: dict[str, dict[str, list[Rationale]]] = defaultdict(lambda: defaultdict(list))
    for rationale in load_rationales(spec.rationales, questions):
        if rationale.text.strip():
            by_teacher[rationale.teacher][rationale.question_id].append(rationale)
    teachers = spec.teachers or sorted(by_teacher)
    if absent := sorted({*teachers, *spec.logits, *spec.gold_conditioned} - set(by_teacher)):
        raise ValueError(f"{name}: no rationale of {absent[0]!r}; there are {', '.join(sorted(by_teacher))}")
    shared = [key for key in questions if all(key in by_teacher[teacher] for teacher in teachers)]
    if not shared:
        fewest = min(teachers, key=lambda teacher: len(by_teacher[teacher]))
        raise ValueError(f"{name}: no question was answered by all teachers; {fewest!r} answered fewest, leave it out")
    order = np.random.default_rng(seed).permutation(len(shared))[:num_questions]
    drawn = [questions[shared[number]] for number in order]
    conditions: dict[str, bool | None] = {**read_gold_conditions(spec.rationales), **spec.gold_conditioned}
    known = {teacher: conditions.get(teacher) for teacher in teachers}
    if len(set(known.values())) > 1:
        groups = {value: [teacher for teacher in teachers if known[teacher] is value] for value in (True, False, None)}
        warnings.warn(
            f"{name}: teachers that saw the gold answer ({', '.join(groups[True])}) are kept apart from others "
            f"({', '.join(groups[False] + groups[None])}); their rationales are another kind of text",
            stacklevel=2,
        )
    answers = {teacher: [item for group in by_teacher[teacher].values() for item in group] for teacher in teachers}
    return TaskData(
        questions=drawn,
        pairs=[
            (question, item) for teacher in teachers for question in drawn for item in by_teacher[teacher][question.id]
        ],
        accuracies={teacher: _share_right(items) for teacher, items in answers.items()},
        gold_conditioned=known,
        families={teacher: _name_family(items[0]) for teacher, items in answers.items()},
    )


def _share_right(rationales: Sequence[Rationale]) -> float | None:
    known = [rationale.correct for rationale in rationales if rationale.correct is not None]
    return sum(known) / len(known) if known else None


def _name_family(rationale: Rationale) -> str:
    return find_family(rationale.teacher) if rationale.family == "unknown" else rationale.family


def _read_rewards(path: str | None) -> dict[str, float]:
    return {record["id"]: record["reward"] for _, record in read_records(Path(path))} if path else {}


def _group_texts(readings: Sequence[Reading], questions: Sequence[Question]) -> list[list[str]]:
    """Returns the completions of each question."""
    groups: dict[str, list[str]] = {question.id: [] for question in questions}
    for reading in readings:
        groups[reading.text.question.id].append(reading.text.completion)
    return list(groups.values())


def diagnose_student(diagnosis: Diagnosis, student: str, task: str, data: TaskData) -> Iterator[dict[str, Any]]:
    """Yields a row for each teacher: every diagnostic's value, and its interval over questions."""
    spec = diagnosis.tasks[task]
    reader = StudentReader(
        diagnosis.students[student],
        get_prompt(diagnosis.prompt),
        diagnosis.folder / "diagnostics",
        f"{student}-{task}",
        diagnosis.dtype,
        diagnosis.tokens_per_batch,
    )
    texts = reader.prepare(data.pairs)
    reader.open_caches({teacher: LogitCache(Path(path)) for teacher, path in spec.logits.items()}, texts)
    readings = reader.read(texts, diagnosis.local_steps)
    own = reader.answer(data.questions, diagnosis.own_prompt, diagnosis.own_tokens) if diagnosis.own_tokens else {}
    sampled = {question.id for question in data.questions[: diagnosis.gradient_questions]}
    first = [text for text in texts if text.question.id in sampled and text.rationale.sample == 0]
    found = reader.differentiate(first, diagnosis.projection, diagnosis.seed) if first else {}
    groups: dict[str, list[Reading]] = defaultdict(list)
    for reading in readings:
        groups[reading.text.rationale.teacher].append(reading)
    words: dict[str, Any] = {teacher: _group_texts(group, data.questions) for teacher, group in groups.items()}
    if own:
        words[surface.OWN] = [[own[question.id]] for question in data.questions]
    counts = {n: surface.count_ngrams(words, n) for n in (1, 2)}
    rewards = _read_rewards(spec.rewards)
    student_vocabulary = tokenizers.list_vocabulary(reader.tokenizer) if diagnosis.teacher_tokenizers else set()
    numbers = {question.id: number for number, question in enumerate(data.questions)}
    rng = np.random.default_rng(diagnosis.seed)
    weights_RQ = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=diagnosis.num_resamples)
    for teacher, group in groups.items():
        tokenizer = diagnosis.teacher_tokenizers.get(teacher)
        fit = Fit(
            teacher=teacher,
            readings=group,
            pool=readings,
            own=own,
            counts=counts,
            teacher_accuracy=data.accuracies[teacher],
            vocabularies=(
                (tokenizers.list_vocabulary(load_tokenizer(tokenizer)), student_vocabulary) if tokenizer else None
            ),
            rewards=rewards,
            gradients=found,
            reward_weight=diagnosis.reward_weight,
        )
        places = np.array([numbers[reading.text.question.id] for reading in group])
        estimates = {metric.name: metric.estimate(fit, weights_RQ, places) for metric in METRICS}
        known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
        yield {
            "teacher": teacher,
            "teacher_family": data.families[teacher],
            "student": student,
            "student_family": diagnosis.students[student].family,
            "task": task,
            "gold_conditioned": data.gold_conditioned[teacher],
            "num_rationales": len(group),
            "num_questions": len(numbers),
            **{name: estimate.value for name, estimate in known.items()},
            "intervals": {name: [estimate.low, estimate.high] for name, estimate in known.items()},
            "shifted_tokens": ranks.list_shifted_tokens(reader.tokenizer, group, NUM_SHIFTED),
        }


def diagnose(diagnosis: Diagnosis) -> str:
    """Computes what is missing; writes diagnostics.json, diagnostics.md and diagnostics.png; returns the tables."""
    tasks = {
        name: load_task(name, spec, diagnosis.num_questions, diagnosis.seed) for name, spec in diagnosis.tasks.items()
    }
    rows = [
        row
        for student in diagnosis.students
        for task, data in tasks.items()
        for row in diagnose_student(diagnosis, student, task, data)
    ]
    metrics = {
        metric.name: {"description": metric.description, "source": metric.source, "better": metric.better}
        for metric in METRICS
        if any(metric.name in row for row in rows)
    }
    write_json(diagnosis.folder / "diagnostics.json", {"rows": rows, "metrics": metrics})
    table = format_tables(rows, metrics)
    write_text(diagnosis.folder / "diagnostics.md", table + "\n")
    plot_heat_map(rows, metrics, diagnosis.folder / "diagnostics.png")
    return table


def parse(args: list[str]) -> Diagnosis:
    """Returns the diagnosis of a command line: `--config FILE`, and any of its settings."""
    parser = ArgumentParser(prog="study.py diagnose", exit_on_error=False, allow_abbrev=False, description=__doc__)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Diagnosis)
    parsed = parser.parse_args(args)
    parsed.pop("config")
    return Diagnosis(**parser.instantiate(parsed).as_dict())
