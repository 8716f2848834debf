"""What a diagnosis reads: a task's questions, and its teachers' rationales of those that all of them answered."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.files.atomic import read_records
from datamodules.model_cards import find_family
from datamodules.rationales.store import Rationale, drop_truncated, load_rationales, read_gold_conditions
from datamodules.tasks.questions import Question, load_questions


@dataclass(frozen=True)
class TeacherSource:
    """What is known of a teacher beside its rationales.

    Attributes:
        name: In the files of rationales; null for the name that it is listed by.
        family: Null for what the files, or its name, say.
        gold_conditioned: Whether it was shown the gold answers; null for what the files say.
        logits: Logit cache, used where the tokenizer is the student's; null for none.
        tokenizer: Hub id, local folder or GGUF file of its tokenizer; null where it is unknown.
        model: The same of the teacher itself, which reads the student's own answers; null does without.
    """

    name: str | None = None
    family: str | None = None
    gold_conditioned: bool | None = None
    logits: str | None = None
    tokenizer: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class TaskSource:
    """One task's questions, and what teachers answered.

    Attributes:
        questions: See `load_questions`.
        rationales: Rationale stores and published collections.
        teachers: By name; null takes all that the files hold.
        rewards: File of {"id": rationale id, "reward": number} lines, from a reward model; null takes right answers.
        keep_truncated: Whether to read rationales, too, that were cut off where their teacher ran out of tokens.
    """

    questions: str
    rationales: list[str]
    teachers: dict[str, TeacherSource] | None = None
    rewards: str | None = None
    keep_truncated: bool = False


@dataclass(frozen=True)
class TaskData:
    """One task's part of the diagnosis; all by teacher, as it is listed.

    Attributes:
        questions: The drawn questions.
        rationales: Of these questions.
        teachers: With family and gold_conditioned as the files have them where the config does not say.
        accuracies: Share of right answers in the files; None where gold is unknown.
    """

    questions: list[Question]
    rationales: dict[str, list[Rationale]]
    teachers: dict[str, TeacherSource]
    accuracies: dict[str, float | None]


def load_task(name: str, spec: TaskSource, num_questions: int, seed: int) -> TaskData:
    """Draws questions that all teachers answered, so that teachers are compared on the same ones.

    Raises:
        ValueError: A teacher is absent, or no question has an answer from all.
    """
    questions = {question.id: question for question in load_questions(spec.questions)}
    found: dict[str, list[Rationale]] = defaultdict(list)
    everything = load_rationales(spec.rationales, questions)
    for rationale in drop_truncated(everything, ", ".join(spec.rationales), spec.keep_truncated):
        if rationale.text.strip():
            found[rationale.teacher].append(rationale)
    teachers = spec.teachers or {teacher: TeacherSource() for teacher in sorted(found)}
    names = {teacher: source.name or teacher for teacher, source in teachers.items()}
    if absent := [teacher for teacher in names.values() if teacher not in found]:
        raise ValueError(f"{name}: no rationale of {absent[0]!r}; there are {', '.join(sorted(found))}")
    answered = {teacher: {item.question_id for item in found[names[teacher]]} for teacher in teachers}
    shared = [key for key in questions if all(key in keys for keys in answered.values())]
    if not shared:
        fewest = min(teachers, key=lambda teacher: len(answered[teacher]))
        raise ValueError(f"{name}: no question was answered by all teachers; {fewest!r} answered fewest, leave it out")
    order = np.random.default_rng(seed).permutation(len(shared))[:num_questions]
    drawn = {shared[number]: questions[shared[number]] for number in order}
    conditions = read_gold_conditions(spec.rationales)
    known = {
        teacher: replace(
            source,
            family=source.family or find_family(names[teacher], found[names[teacher]][0].family),
            gold_conditioned=conditions.get(names[teacher])
            if source.gold_conditioned is None
            else source.gold_conditioned,
        )
        for teacher, source in teachers.items()
    }
    _warn_of_mixed_conditions(name, known)
    places = {key: index for index, key in enumerate(drawn)}
    return TaskData(
        questions=list(drawn.values()),
        rationales={
            teacher: sorted(
                (item for item in found[names[teacher]] if item.question_id in drawn),
                key=lambda item: (places[item.question_id], item.sample),
            )
            for teacher in teachers
        },
        teachers=known,
        accuracies={teacher: _share_right(found[names[teacher]]) for teacher in teachers},
    )


def _warn_of_mixed_conditions(name: str, teachers: dict[str, TeacherSource]) -> None:
    shown = [teacher for teacher, source in teachers.items() if source.gold_conditioned]
    if 0 < len(shown) < len(teachers):
        warnings.warn(
            f"{name}: {len(shown)} of {len(teachers)} teachers were shown the gold answers; they are kept apart from "
            "the others, since theirs is another kind of text",
            stacklevel=3,
        )


def _share_right(rationales: Sequence[Rationale]) -> float | None:
    known = [rationale.correct for rationale in rationales if rationale.correct is not None]
    return sum(known) / len(known) if known else None


def read_rewards(path: str | None) -> dict[str, float]:
    """Returns a reward model's numbers by rationale id; none where there is no file."""
    return {record["id"]: record["reward"] for _, record in read_records(Path(path))} if path else {}
