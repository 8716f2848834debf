"""A study's grid: students and teachers of several families, crossed with tasks, supervision, controls and seeds."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from datamodules.files.atomic import check_name
from datamodules.logit_cache.aligned import AlignmentKind
from datamodules.model_cards import UNKNOWN, Parts, find_family, find_parts
from studies.design.controls import ON_POLICY, ControlSpec, TraitSpec
from studies.design.tasks import (
    PLACE,
    LanguageSpec,
    LearnedTask,
    Outcome,
    RationaleLanguage,
    TaskSpec,
    TextSource,
    check_tasks,
    list_learned,
    list_pooled,
    list_texts,
    name_pooled,
    name_task,
)

# What llama.cpp's files hold most of a student's weights as; `none` is the student as it was trained.
Quantization = Literal["none", "f16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]


def _tell_family(role: str, name: str, stated: str) -> str:
    """Returns the family that is stated, or that a name tells.

    Raises:
        ValueError: It tells none.
    """
    family = find_family(name, stated)
    if family == UNKNOWN:
        raise ValueError(f"{role} {name}: configs/families.yaml knows no family of this name; set its family")
    return family


@dataclass(frozen=True)
class StudentSpec:
    """A student of the study.

    Attributes:
        model: Hub id, local folder, or GGUF file.
        family: As the teachers' families are called; empty is what the model's name tells (`configs/families.yaml`).
        keep_layers: Keep only these decoder layers.
        fit: Further arguments of its trainings, for example `--model.learning_rate=1e-4`.
        parts: What of the family it has; what is not stated is what `configs/models` says of the model.
    """

    model: str
    family: str = ""
    keep_layers: list[int] | None = None
    fit: list[str] = field(default_factory=list)
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", _tell_family("student", self.model, self.family))
        object.__setattr__(self, "parts", find_parts(self.model, self.parts))


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher of the study: a model that annotates, or published rationales.

    Attributes:
        family: As the students' families are called; empty is what the model's, or the published name tells.
        model: Hub id, local folder, or GGUF file; null for published rationales.
        rationales: File of published rationales, or one for each task; null for a model. `{language}` in it stands for
            a language of `study.languages`, and for `en`, whose rationales are the pivot.
        name: The teacher's name in these files.
        annotate: Further arguments when it writes, for example `--model.backend=OpenAIBackend`.
        parts: As a student's.
    """

    family: str = ""
    model: str | None = None
    rationales: str | dict[str, str] | None = None
    name: str | None = None
    annotate: list[str] = field(default_factory=list)
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.rationales is None):
            raise ValueError("a teacher has either a model or a file of rationales")
        if (self.rationales is None) != (self.name is None):
            raise ValueError("a teacher's name says whose rationales in the file are meant; give both or neither")
        object.__setattr__(self, "family", _tell_family("teacher", self.model or self.name or "", self.family))
        object.__setattr__(self, "parts", find_parts(self.model, self.parts))


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: Names the folder of its runs.
        tasks: By name; each arm learns one of them.
        languages: Each task with `{language}` in its train is a task in each of these languages, once with rationales
            of each kind; null for tasks as they are.
        students: By name.
        teachers: By name.
        supervisions: What the arms learn from; `rationale+logits` only within a family, unless there is an alignment.
            `on-policy`, likewise, is rounds as the section `on_policy` has them, with the teacher's rationales in their
            mix.
        alignment: How logits of a teacher of another family become the student's: `data.alignment.kind` of these arms
            only; null is what the section `fit` says.
        controls: By name; each is crossed with students, teachers, tasks and seeds, too.
        traits: By name; preferences that controls have teachers tuned to.
        seeds: Number of training seeds of each arm.
        sizes: Numbers of training questions, ascending: each arm is trained with each. A seed draws its questions once,
            the same for all arms, and a smaller size's are among a larger one's. Empty: all questions of the task.
        target_accuracy: For which the needed size is told; null is halfway between a student's worst and best arm.
        outcomes: What is compared beside accuracy: the `likelihood` of gold options; `reference_likelihood`, of what a
            task's `references` hold; `agreement` with the teacher's most probable tokens, for which teachers that are
            models answer and score the test questions, too.
        quantization: Types of GGUF files, and `none`: each trained arm is exported as each, calibrated on what it
            learned from, and answers by llama.cpp, too. Empty: none is.
        workers: Jobs that run side by side on this machine.
        root: Folder of all runs.
    """

    name: str
    tasks: dict[str, TaskSpec]
    students: dict[str, StudentSpec]
    teachers: dict[str, TeacherSpec]
    supervisions: list[Literal["label", "rationale", "rationale+logits", "on-policy"]]
    languages: LanguageSpec | None = None
    alignment: AlignmentKind | None = None
    controls: dict[str, ControlSpec] = field(default_factory=dict)
    traits: dict[str, TraitSpec] = field(default_factory=dict)
    seeds: PositiveInt = 2
    sizes: list[PositiveInt] = field(default_factory=list)
    target_accuracy: ClosedUnitInterval | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    quantization: list[Quantization] = field(default_factory=list)
    workers: PositiveInt = 1
    root: str = "runs"

    def __post_init__(self) -> None:
        check_name("study.name", self.name)
        for kind in ("tasks", "students", "teachers", "controls", "traits"):
            if not vars(self)[kind] and kind not in ("controls", "traits"):
                raise ValueError(f"study.{kind}: there is none")
            # They become names of files.
            for name in vars(self)[kind]:
                check_name(f"study.{kind}", name)
        if not (self.supervisions or self.controls):
            raise ValueError("study.supervisions: there is none, so nothing would be trained")
        for name, values in (("supervisions", self.supervisions), ("quantization", self.quantization)):
            if len(set(values)) < len(values):
                raise ValueError(f"study.{name}: {', '.join(values)}: name each once")
        if self.sizes != sorted(set(self.sizes)):
            raise ValueError(f"study.sizes: {', '.join(map(str, self.sizes))}: name each once, ascending")
        if ON_POLICY in self.supervisions and self.languages:
            raise ValueError(f"study.languages: supervision {ON_POLICY} has no arms in languages; leave one out")
        if self.target_accuracy is not None and len(self.sizes) < 2:
            raise ValueError("study.target_accuracy would be ignored: the size it takes is told between two sizes")
        check_tasks(self.tasks, self.languages, self.outcomes)
        if self.quantization and ("none" not in self.quantization or not self.types):
            raise ValueError(
                f"study.quantization: {', '.join(self.quantization)}: name `none`, which the others are compared with, "
                "and another; or leave it out"
            )
        for name, spec in self.teachers.items():
            files = spec.rationales
            if isinstance(files, str) and len(self.tasks) > 1:
                raise ValueError(f"study.teachers.{name}.rationales: name a file for each of {sorted(self.tasks)}")
            if isinstance(files, dict) and set(files) != set(self.tasks):
                raise ValueError(
                    f"study.teachers.{name}.rationales: of tasks {sorted(files)}; the study has {sorted(self.tasks)}"
                )
            for task, own in self.tasks.items() if files is not None else ():
                file = files[task] if isinstance(files, dict) else str(files)
                if (PLACE in file) != own.is_template:
                    raise ValueError(
                        f"study.teachers.{name}.rationales: {file}: needs {PLACE} where study.tasks.{task}.train has it"
                    )
        for name, control in self.controls.items():
            self._check_control(f"study.controls.{name}", control)
        for arm, number in Counter(arm.id for arm in expand(self)).items():
            if number > 1:
                raise ValueError(f"study: {number} arms would be called {arm}; name teachers and controls otherwise")

    @property
    def types(self) -> list[str]:
        """The types of GGUF files that each trained arm is exported as."""
        return [kind for kind in self.quantization if kind != "none"]

    @cached_property
    def learned(self) -> dict[str, LearnedTask]:
        """What the arms learn, by name: the tasks, each in its languages."""
        return list_learned(self.tasks, self.languages)

    @cached_property
    def texts(self) -> dict[str, TextSource]:
        """The sets of rationales that each teacher has, by name."""
        return list_texts(self.tasks, self.languages)

    @cached_property
    def pooled(self) -> dict[str, dict[str, str]]:
        """Tasks by language that are compared together, too, by the name of all."""
        return list_pooled(self.tasks, self.languages)

    def find_against(self, task: str | None) -> str | None:
        """Returns the task, or the pooled ones, that those which learned this are compared with, if any."""
        if task is None:
            return None
        if task not in self.pooled:
            return self.learned[task].spec.against
        assert self.languages is not None
        first = self.learned[next(iter(self.pooled[task].values()))]
        return self.find_kind(task, self.languages.find_against(first.kind))

    def find_kind(self, task: str, kind: RationaleLanguage | None) -> str | None:
        """Returns the task in the same language, or the pooled ones, with rationales of another kind, if there is."""
        is_pooled = task in self.pooled
        own = self.learned[next(iter(self.pooled[task].values())) if is_pooled else task]
        if self.languages is None or own.language is None or kind not in self.languages.rationales:
            return None
        return name_pooled(own.base, kind) if is_pooled else name_task(own.base, own.language, kind)

    def _check_control(self, where: str, control: ControlSpec) -> None:
        """Refuses a control that the grid's teachers cannot give, with a ValueError."""
        control.check(where, self.supervisions)
        if control.trait is not None and control.trait not in self.traits:
            raise ValueError(
                f"{where}.trait: {control.trait!r} is none of study.traits: {', '.join(self.traits) or 'none'}"
            )
        if control.compares and len(self.teachers) < 2:
            raise ValueError(f"{where}: compares teachers, but the study has only {', '.join(self.teachers)}")
        if control.translator and self.languages and "pivot" not in self.languages.rationales:
            raise ValueError(f"{where}.translator: translates English pivots; study.languages.rationales has no pivot")
        for name in [*control.together, *filter(None, [control.rewriter, control.rows_against])]:
            if name not in self.teachers:
                raise ValueError(f"{where}: {name!r} is none of the teachers {', '.join(self.teachers)}")
        if control.together and control.supervision == "rationale+logits":
            self._check_mixture(where, control)
        if control.rewriter is not None and self.teachers[control.rewriter].model is None:
            name = "paraphraser" if control.paraphraser else "translator"
            raise ValueError(f"{where}.{name}: {control.rewriter!r} is published; a model is to rewrite")
        for student in self.students if control.in_family_logits else ():
            if len(own := find_scorers(self, student)) > 1:
                raise ValueError(f"{where}: student {student} has several teachers of its family: {', '.join(own)}")
        if not any(list_teachers(self, control, student) for student in self.students):
            if control.rows_against:
                raise ValueError(
                    f"{where}: fits no student and teacher; {control.rows_against} and another teacher need a model, "
                    "of the student's family or with an alignment"
                )
            kind = "another" if control.alignment else "one"
            raise ValueError(f"{where}: fits no student and teacher, since none of {kind} family has a model")
        if control.rows:
            self._refuse_chunks(where, control, "whose most probable tokens could be compared")

    def _check_mixture(self, where: str, control: ControlSpec) -> None:
        fitting = [student for student in self.students if list_teachers(self, control, student)]
        if not fitting:
            raise ValueError(
                f"{where}: fits no student; all teachers of together need a model, of its family or with an alignment"
            )
        self._refuse_chunks(where, control, "to mix")

    def _refuse_chunks(self, where: str, control: ControlSpec, what: str) -> None:
        for student in self.students:
            teachers = list_teachers(self, control, student)
            if any(find_alignment(self, control, student, teacher) == "chunks" for teacher in teachers):
                raise ValueError(f"{where}: alignment chunks has no distributions {what}; set strict or bytes")


def find_scorers(study: Study, student: str) -> list[str]:
    """Returns the teachers whose logits a student can learn from: models of its family."""
    family = study.students[student].family
    return [name for name, spec in study.teachers.items() if spec.model is not None and spec.family == family]


def shares_tokenizer(study: Study, student: str, teacher: str) -> bool:
    """Says whether a teacher's logits are a student's as they are: within a family, or as both name one tokenizer."""
    own, other = study.students[student], study.teachers[teacher]
    return own.family == other.family or (own.parts.tokenizer or "") == other.parts.tokenizer


def find_alignment(study: Study, control: ControlSpec, student: str, teacher: str | None) -> AlignmentKind:
    """Returns how an arm's logits become the student's; `refuse` where they are so already, or there are none."""
    if control.in_family_logits:
        return "refuse"
    names = [*control.together, *filter(None, [teacher, control.rows_against])]
    if all(shares_tokenizer(study, student, name) for name in names):
        return "refuse"
    return control.alignment or study.alignment or "refuse"


def fits(study: Study, control: ControlSpec, student: str, teacher: str) -> bool:
    """Says whether a student can learn from a teacher under a control.

    Logits need the teacher itself, and the student's tokenizer, which the cache checks, or an alignment.
    """
    scorers = find_scorers(study, student)
    if control.trait is not None and study.teachers[teacher].model is None:
        return False
    is_cross = study.teachers[teacher].family != study.students[student].family
    if control.in_family_logits:
        return bool(scorers) and is_cross
    if control.supervision == "rationale":
        return True
    if is_cross:
        kind = control.alignment or study.alignment or "refuse"
        return study.teachers[teacher].model is not None and kind != "refuse"
    return teacher in scorers and not (control.alignment and control.swaps_logits)


def list_teachers(study: Study, control: ControlSpec, student: str) -> list[str | None]:
    """Returns whom a student learns from under a control, an arm each; None stands for several together."""
    if control.together:
        return [None] if all(fits(study, control, student, teacher) for teacher in control.together) else []
    if control.rows_against and not fits(study, control, student, control.rows_against):
        return []
    return [
        teacher
        for teacher in study.teachers
        # A teacher that was tuned to a trait may be held against what it was.
        if (teacher != control.rows_against or control.trait) and fits(study, control, student, teacher)
    ]


def find_twin(study: Study, name: str) -> str | None:
    """Returns the control that is as one with a trait, but of teachers as they were, on texts without its words."""
    control = study.controls[name]
    if control.trait is None:
        return None
    twin = replace(control, trait=None, without=study.traits[control.trait].words)
    return next((other for other, spec in study.controls.items() if spec == twin), None)


@dataclass(frozen=True)
class Arm:
    """One training condition of one student.

    Attributes:
        student: The student's name.
        supervision: What it learns from; `untuned` is not trained.
        teacher: The teacher's name; None for `untuned`, `label`, and a control with several teachers together.
        seed: The training seed.
        task: The task it learns; None where the study has only one, and for `untuned`, which answers all tests.
        control: The control's name; None for the plain arm.
        size: Number of training questions; None where the study names no sizes, and for `untuned`.
    """

    student: str
    supervision: str
    teacher: str | None
    seed: int
    task: str | None = None
    control: str | None = None
    size: int | None = None

    @property
    def condition(self) -> str:
        """The arm's name whatever the student, the task and the seed, for example `rationale-a`, `rationale-a-n32`."""
        size = f"n{self.size}" if self.size else None
        return "-".join(filter(None, (self.supervision, self.teacher, self.control, size)))

    @property
    def id(self) -> str:
        """Names the arm's run, for example `b-rationale-a-seed0`."""
        return "-".join(filter(None, (self.student, self.task, self.condition, f"seed{self.seed}")))


def expand(study: Study) -> list[Arm]:
    """Returns all arms: each student untuned once, then supervisions and controls with every fitting teacher."""
    arms = [Arm(student, "untuned", None, 0) for student in study.students]
    tasks = list(study.learned) if len(study.learned) > 1 else [None]
    for seed, task, size, student in product(range(study.seeds), tasks, study.sizes or [None], study.students):
        if "label" in study.supervisions:
            arms.append(Arm(student, "label", None, seed, task, size=size))
        taught: list[tuple[str, str | None, ControlSpec]] = [
            # A teacher that corrects what the student writes gives its distributions, too.
            (supervision, None, ControlSpec("rationale" if supervision == "rationale" else "rationale+logits"))
            for supervision in study.supervisions
            if supervision != "label"
        ]
        controls = [(spec.supervision, name, spec) for name, spec in study.controls.items()]
        for supervision, control, spec in [*taught, *controls]:
            if spec.translator and study.languages and study.learned[task or next(iter(study.learned))].kind != "pivot":
                continue
            teachers = list_teachers(study, spec, student)
            arms += [Arm(student, supervision, teacher, seed, task, control, size) for teacher in teachers]
    return arms
