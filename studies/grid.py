"""A study's grid: students and teachers of several families, crossed with what is learned and with seeds."""

from dataclasses import dataclass
from itertools import product

from jsonargparse.typing import PositiveInt


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
        rationales: File of published rationales; null for a model.
        name: The teacher's name in that file.
    """

    family: str
    model: str | None = None
    rationales: str | None = None
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
        train_questions: What the arms learn from.
        test_questions: What every arm answers.
        students: By name.
        teachers: By name.
        supervisions: Of `label`, `rationale`, `rationale+logits`; the last only within a family.
        seeds: Number of training seeds of each arm.
        workers: Arms that run side by side on this machine.
        root: Folder of all runs.
    """

    name: str
    train_questions: str
    test_questions: str
    students: dict[str, StudentSpec]
    teachers: dict[str, TeacherSpec]
    supervisions: list[str]
    seeds: PositiveInt = 2
    workers: PositiveInt = 1
    root: str = "runs"

    def __post_init__(self) -> None:
        known = ("label", "rationale", "rationale+logits")
        if unknown := [name for name in self.supervisions if name not in known]:
            raise ValueError(f"study.supervisions: {unknown[0]!r} is none of {', '.join(known)}")
        if not self.students or not self.teachers:
            raise ValueError("study: there is no student or no teacher")


@dataclass(frozen=True)
class Arm:
    """One training condition of one student.

    Attributes:
        student: The student's name.
        supervision: What it learns from; `untuned` is not trained.
        teacher: The teacher's name; None for `untuned` and `label`.
        seed: The training seed.
    """

    student: str
    supervision: str
    teacher: str | None
    seed: int

    @property
    def condition(self) -> str:
        """The arm's name whatever the student and the seed, for example `rationale-a`."""
        return self.supervision if self.teacher is None else f"{self.supervision}-{self.teacher}"

    @property
    def id(self) -> str:
        """Names the arm's run, for example `b-rationale-a-seed0`."""
        return f"{self.student}-{self.condition}-seed{self.seed}"


def expand(study: Study) -> list[Arm]:
    """Returns all arms: each student untuned once, and each supervision with each fitting teacher and seed."""
    arms = [Arm(student, "untuned", None, 0) for student in study.students]
    for seed, student, supervision in product(range(study.seeds), study.students, study.supervisions):
        if supervision == "label":
            arms.append(Arm(student, supervision, None, seed))
            continue
        for teacher, spec in study.teachers.items():
            # Logits need the teacher itself, and the student's tokenizer, which the cache checks.
            shares = spec.model is not None and spec.family == study.students[student].family
            if supervision == "rationale" or shares:
                arms.append(Arm(student, supervision, teacher, seed))
    return arms
