"""A study's grid: students and teachers of several families, crossed with tasks, supervision, controls and seeds."""

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

from jsonargparse.typing import PositiveInt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TaskSpec:
    """A task of the study.

    Attributes:
        train: The questions that the arms learn from.
        test: Sources of the questions that they answer: the task's own and, as tests out of domain, others'.
    """

    train: str
    test: list[str]


@dataclass(frozen=True)
class StudentSpec:
    """A student of the study.

    Attributes:
        model: Hub id, local folder, or GGUF file.
        family: As the teachers' families are called.
        keep_layers: Keep only these decoder layers.
    """

    model: str
    family: str
    keep_layers: list[int] | None = None


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher of the study: a model that annotates, or published rationales.

    Attributes:
        family: As the students' families are called.
        model: Hub id, local folder, or GGUF file; null for published rationales.
        rationales: File of published rationales, or one for each task; null for a model.
        name: The teacher's name in these files.
    """

    family: str
    model: str | None = None
    rationales: str | dict[str, str] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.rationales is None):
            raise ValueError("a teacher has either a model or a file of rationales")
        if (self.rationales is None) != (self.name is None):
            raise ValueError("a teacher's name says whose rationales in the file are meant; give both or neither")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: Names the folder of its runs.
        tasks: By name; each arm learns one of them.
        students: By name.
        teachers: By name.
        supervisions: What the arms learn from; `rationale+logits` only within a family.
        seeds: Number of training seeds of each arm.
        workers: Jobs that run side by side on this machine.
        root: Folder of all runs.
    """

    name: str
    tasks: dict[str, TaskSpec]
    students: dict[str, StudentSpec]
    teachers: dict[str, TeacherSpec]
    supervisions: list[Literal["label", "rationale", "rationale+logits"]]
    seeds: PositiveInt = 2
    workers: PositiveInt = 1
    root: str = "runs"

    def __post_init__(self) -> None:
        for kind in ("tasks", "students", "teachers"):
            if not vars(self)[kind]:
                raise ValueError(f"study.{kind}: there is none")
            # They become names of files.
            if wrong := [name for name in vars(self)[kind] if not _NAME.fullmatch(name)]:
                raise ValueError(f"study.{kind}: {wrong[0]!r}: use letters, digits, '.', '_' and '-'")
        for name, task in self.tasks.items():
            if not task.test:
                raise ValueError(f"study.tasks.{name}.test: there are no questions to answer")
        for name, spec in self.teachers.items():
            files = spec.rationales
            if isinstance(files, str) and len(self.tasks) > 1:
                raise ValueError(f"study.teachers.{name}.rationales: name a file for each of {sorted(self.tasks)}")
            if isinstance(files, dict) and set(files) != set(self.tasks):
                raise ValueError(
                    f"study.teachers.{name}.rationales: of tasks {sorted(files)}; the study has {sorted(self.tasks)}"
                )


@dataclass(frozen=True)
class Arm:
    """One training condition of one student.

    Attributes:
        student: The student's name.
        supervision: What it learns from; `untuned` is not trained.
        teacher: The teacher's name; None for `untuned` and `label`.
        seed: The training seed.
        task: The task it learns; None where the study has only one, and for `untuned`, which answers all tests.
        control: The control's name; None for the plain arm.
    """

    student: str
    supervision: str
    teacher: str | None
    seed: int
    task: str | None = None
    control: str | None = None

    @property
    def condition(self) -> str:
        """The arm's name whatever the student, the task and the seed, for example `rationale-a`."""
        return "-".join(filter(None, (self.supervision, self.teacher, self.control)))

    @property
    def id(self) -> str:
        """Names the arm's run, for example `b-rationale-a-seed0`."""
        return "-".join(filter(None, (self.student, self.task, self.condition, f"seed{self.seed}")))


def expand(study: Study) -> list[Arm]:
    """Returns all arms: each student untuned once, and each supervision with each task, fitting teacher and seed."""
    arms = [Arm(student, "untuned", None, 0) for student in study.students]
    tasks = list(study.tasks) if len(study.tasks) > 1 else [None]
    for seed, task, student, supervision in product(range(study.seeds), tasks, study.students, study.supervisions):
        if supervision == "label":
            arms.append(Arm(student, supervision, None, seed, task))
            continue
        for teacher, spec in study.teachers.items():
            # Logits need the teacher itself, and the student's tokenizer, which the cache checks.
            shares = spec.model is not None and spec.family == study.students[student].family
            if supervision == "rationale" or shares:
                arms.append(Arm(student, supervision, teacher, seed, task))
    return arms
