"""Diagnostics of teacher-student fit before any training: any number of teachers, one or several students."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from datamodules.examples.tokenization import load_tokenizer
from datamodules.files.atomic import check_name, refuse_foreign, write_sealed, write_text
from datamodules.files.seals import read_sealed
from datamodules.logit_cache.reader import LogitCache
from datamodules.provenance import claim_folder
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question
from lightning_modules.model.pretrained import Dtype
from studies.design.grid import StudentSpec, expand
from studies.diagnostics import (
    alignment,
    directions,
    gradients,
    likelihood,
    logits,
    overlap,
    ranks,
    surface,
    tokenizers,
)
from studies.diagnostics.metrics import Diagnostic, Fit
from studies.diagnostics.prediction import format_predictions, predict
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.sources import TaskData, TaskSource, load_task, read_rewards
from studies.diagnostics.table import format_tables, plot_heat_map
from studies.diagnostics.texts import Reading
from studies.jobs.plan import StudyPlan

METRICS: list[Diagnostic] = [
    *likelihood.METRICS,
    *ranks.METRICS,
    *surface.METRICS,
    *tokenizers.METRICS,
    *logits.METRICS,
    *alignment.METRICS,
    *gradients.METRICS,
    *directions.METRICS,
    *overlap.METRICS,
]
NUM_SHIFTED = 20


@dataclass(frozen=True)
class Diagnosis:
    """What is diagnosed.

    Attributes:
        name: Names the folder of the results.
        students: By name.
        tasks: By name.
        prompt: What the students read before a rationale.
        num_questions: Drawn from those that all teachers of a task answered.
        gradient_questions: The first so many of them, for what needs a gradient; 0 for none.
        own_prompt: What the students answer by themselves.
        own_tokens: Longest own answer; 0 for none.
        overlap_questions: To the first so many of them teachers that are models read the own answers, too; 0 for none,
            so that no teacher is loaded.
        local_steps: With how many steps before it a step is read, for nll_local.
        projection: Dimension of projected gradients; GRACE wants no fewer gradients than this.
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
    prompt: str = "instruction"
    num_questions: PositiveInt = 200
    gradient_questions: NonNegativeInt = 32
    own_prompt: str = "cot"
    own_tokens: NonNegativeInt = 128
    overlap_questions: NonNegativeInt = 32
    local_steps: PositiveInt = 2
    projection: PositiveInt = 512
    reward_weight: NonNegativeFloat = 1.0
    tokens_per_batch: PositiveInt = 512
    dtype: Dtype = "float32"
    num_resamples: PositiveInt = 1000
    seed: NonNegativeInt = 0
    root: str = "runs"

    def __post_init__(self) -> None:
        for what, names in {"name": [self.name], "students": self.students, "tasks": self.tasks}.items():
            for name in names:
                check_name(f"diagnosis: {what}", name)
        for name in (self.prompt, self.own_prompt):
            get_prompt(name)
        if not self.students or not self.tasks:
            raise ValueError(f"{self.name}: there is no student or no task to diagnose")

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return Path(self.root) / self.name


def _group_texts(readings: Sequence[Reading], questions: Sequence[Question]) -> list[list[str]]:
    """Returns the completions of each question."""
    groups: dict[str, list[str]] = {question.id: [] for question in questions}
    for reading in readings:
        groups[reading.text.question.id].append(reading.text.completion)
    return list(groups.values())


def diagnose_student(diagnosis: Diagnosis, student: str, task: str, data: TaskData) -> Iterator[dict[str, Any]]:
    """Yields a row for each teacher: every diagnostic's value, and its interval over questions."""
    reader = StudentReader(
        diagnosis.students[student],
        get_prompt(diagnosis.prompt),
        diagnosis.folder / "diagnostics",
        f"{student}-{task}",
        diagnosis.dtype,
        diagnosis.tokens_per_batch,
    )
    by_id = {question.id: question for question in data.questions}
    texts = reader.prepare([(by_id[item.question_id], item) for items in data.rationales.values() for item in items])
    caches = {
        data.rationales[teacher][0].teacher: LogitCache(Path(source.logits))
        for teacher, source in data.teachers.items()
        if source.logits
    }
    reader.open_caches(caches, texts)
    readings = reader.read(texts, diagnosis.local_steps)
    own = reader.answer(data.questions, diagnosis.own_prompt, diagnosis.own_tokens) if diagnosis.own_tokens else {}
    sampled = {question.id for question in data.questions[: diagnosis.gradient_questions]}
    first = [text for text in texts if text.question.id in sampled and text.rationale.sample == 0]
    found = reader.differentiate(first, diagnosis.projection, diagnosis.seed) if first else {}
    directed = reader.direct(first)
    visited = data.questions[: diagnosis.overlap_questions] if own else []
    rest = iter(readings)
    groups = {teacher: list(islice(rest, len(items))) for teacher, items in data.rationales.items()}
    words: dict[str, Any] = {teacher: _group_texts(group, data.questions) for teacher, group in groups.items()}
    if own:
        words[surface.OWN] = [[own[question.id]] for question in data.questions]
    counts = {n: surface.count_ngrams(words, n) for n in (1, 2)}
    rewards = read_rewards(diagnosis.tasks[task].rewards)
    vocabulary = tokenizers.list_vocabulary(reader.tokenizer)
    numbers = {question.id: index for index, question in enumerate(data.questions)}
    rng = np.random.default_rng(diagnosis.seed)
    weights_RQ = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=diagnosis.num_resamples)
    for teacher, group in groups.items():
        source = data.teachers[teacher]
        fit = Fit(
            teacher=teacher,
            readings=group,
            pool=readings,
            own=own,
            counts=counts,
            teacher_accuracy=data.accuracies[teacher],
            vocabularies=(
                (tokenizers.list_vocabulary(load_tokenizer(source.tokenizer)), vocabulary) if source.tokenizer else None
            ),
            rewards=rewards,
            gradients=found,
            reward_weight=diagnosis.reward_weight,
            aligned=reader.aligned,
            directions=directed,
            overlaps=(
                reader.visit(visited, own, diagnosis.own_prompt, diagnosis.own_tokens, source.model)
                if source.model and visited
                else {}
            ),
        )
        places = np.array([numbers[reading.text.question.id] for reading in group])
        estimates = {metric.name: metric.estimate(fit, weights_RQ, places) for metric in METRICS}
        known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
        yield {
            "teacher": teacher,
            "teacher_family": source.family,
            "student": student,
            "student_family": diagnosis.students[student].family,
            "task": task,
            "gold_conditioned": source.gold_conditioned,
            "num_rationales": len(group),
            "num_questions": len(numbers),
            **{name: estimate.value for name, estimate in known.items()},
            "intervals": {name: [estimate.low, estimate.high] for name, estimate in known.items()},
            "shifted_tokens": ranks.list_shifted_tokens(reader.tokenizer, group, NUM_SHIFTED),
        }


def diagnose(diagnosis: Diagnosis) -> str:
    """Computes what is missing; writes diagnostics.json, diagnostics.md and diagnostics.png; returns the tables.

    Where the study's results.json is there, the tables end with what the diagnostics predict of it.
    """
    refuse_foreign(diagnosis.folder)
    tasks = {
        name: load_task(name, spec, diagnosis.num_questions, diagnosis.seed) for name, spec in diagnosis.tasks.items()
    }
    claim_folder(diagnosis.folder)
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
    content: dict[str, Any] = {"rows": rows, "metrics": metrics}
    table = format_tables(rows, metrics)
    results = diagnosis.folder / "results.json"
    if results.exists():
        content["predictions"] = list(predict(rows, list(metrics), read_sealed(results), diagnosis.seed))
        table += f"\n\n{format_predictions(content['predictions'])}"
    write_sealed(diagnosis.folder / "diagnostics.json", content)
    write_text(diagnosis.folder / "diagnostics.md", table + "\n")
    plot_heat_map(rows, metrics, diagnosis.folder / "diagnostics.png")
    return table


def describe_study(plan: StudyPlan, prompt: str, own_prompt: str, are_served: bool) -> dict[str, Any]:
    """Returns the settings of the diagnosis of a study's own teachers and students, on its training questions.

    Args:
        plan: The study.
        prompt: What its students learn to answer.
        own_prompt: What they are evaluated with.
        are_served: Whether its teachers are asked at an endpoint, where a name tells no tokenizer.
    """
    study, caches = plan.study, {}
    scorers = {arm.teacher for arm in expand(study) if arm.supervision == "rationale+logits"}
    for arm in expand(study):
        if (
            arm.supervision == "rationale+logits"
            and arm.control is None
            and (done := Path(plan.caches(arm)[0].done)).exists()
        ):
            caches[arm.teacher, plan.task(arm)] = str(done.parent)
    tasks = {}
    for task, learned in study.learned.items():
        if task not in study.texts:
            # Mixed ones are diagnosed apart.
            continue
        texts = {teacher: plan.text(teacher, task) for teacher in study.teachers}
        teachers = {
            teacher: {
                "name": texts[teacher].writer,
                "family": source.family,
                "logits": caches.get((teacher, task)),
                "tokenizer": source.model if teacher in scorers or not are_served else None,
                # Others may be models of an endpoint.
                "model": source.model if teacher in scorers else None,
            }
            for teacher, source in study.teachers.items()
        }
        files = list(dict.fromkeys(text.path for text in texts.values()))
        tasks[task] = {"questions": learned.spec.train, "rationales": files, "teachers": teachers}
    students = {
        name: {"model": spec.model, "family": spec.family, "keep_layers": spec.keep_layers}
        for name, spec in study.students.items()
    }
    base = {"name": study.name, "root": study.root, "prompt": prompt, "own_prompt": own_prompt}
    return {**base, "students": students, "tasks": tasks}


def parse(args: list[str]) -> Diagnosis:
    """Returns the diagnosis of a command line: `--config FILE`, and any of its settings."""
    parser = ArgumentParser(
        prog="python -m scripts.study diagnose", exit_on_error=False, allow_abbrev=False, description=__doc__
    )
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Diagnosis)
    parsed = parser.parse_args(args)
    parsed.pop("config")
    return Diagnosis(**parser.instantiate(parsed).as_dict())
