"""What a study's arms learn: its tasks as they are, or each in several languages with rationales of one or another."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from datamodules.text.languages import ENGLISH, resolve_tag

# `same`: written under the question in its language. `pivot`: under the same question in English. `mixed`: both.
RationaleLanguage = Literal["same", "pivot", "mixed"]
# See `Study.outcomes`.
Outcome = Literal["likelihood", "agreement", "reference_likelihood"]
# Stands for a language's tag in a source, or in a file of rationales.
PLACE = "{language}"
# What the arms of each are compared with, if the study has it.
_AGAINST: dict[RationaleLanguage, tuple[RationaleLanguage, ...]] = {
    "same": ("pivot",),
    "pivot": (),
    "mixed": ("pivot", "same"),
}


@dataclass(frozen=True)
class TaskSpec:
    """A task of the study.

    Attributes:
        train: The questions that the arms learn from; `{language}` stands for each language of `study.languages`.
        test: Sources of the questions that they answer: the task's own and, as tests out of domain, others'; with
            `{language}` those in the language that the arm learns.
        against: Another task of the study with the same questions and other rationales, of another language say: each
            arm, and the family interaction, is compared with that task's.
        references: Files of rationales of the test questions, and of no others; how likely each arm finds them is the
            outcome `reference_likelihood`. `{language}` as in `test`.
        annotate: Further arguments when teachers write for this task, for example `--data.prompt_language=en`.
    """

    train: str
    test: list[str]
    against: str | None = None
    annotate: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    @property
    def is_template(self) -> bool:
        """Whether it is a task in each language."""
        return PLACE in self.train


@dataclass(frozen=True)
class LanguageSpec:
    """The languages of questions, and of the rationales that arms learn from; each pair is crossed with all else.

    Attributes:
        questions: BCP 47 tags, each in the place of `{language}` in a task's train and test.
        rationales: `same` language as the question; English `pivot`, written under the same question in English
            (`{language}` is then `en`) and joined by `parallel` or `original`; `mixed`, both, of which an epoch draws
            one for each question. `same`, and `mixed`, are compared with `pivot`.
    """

    questions: list[str]
    rationales: list[RationaleLanguage]

    def __post_init__(self) -> None:
        for name, values in (("questions", self.questions), ("rationales", self.rationales)):
            if not values or len({*values}) < len(values):
                raise ValueError(f"study.languages.{name}: name one at least, and each once")
        for tag in self.questions:
            try:
                known = resolve_tag(tag)
            except ValueError as error:
                raise ValueError(f"study.languages.questions: {error}") from None
            if known == ENGLISH:
                raise ValueError(
                    f"study.languages.questions: {tag} is the pivot's language; give English questions a task without "
                    f"{PLACE}"
                )

    def find_against(self, kind: RationaleLanguage) -> RationaleLanguage | None:
        """Returns what arms with these rationales are compared with."""
        return next((other for other in _AGAINST[kind] if other in self.rationales), None)


@dataclass(frozen=True)
class LearnedTask:
    """What an arm learns.

    Attributes:
        spec: The task, with the language's tag in place.
        base: The task's name in the study.
        language: Of the questions; None where `study.languages` has no part in it.
        kind: Of the rationales.
        texts: Names of the rationales (`list_texts`) that it is learned from.
    """

    spec: TaskSpec
    base: str
    language: str | None = None
    kind: RationaleLanguage = "same"
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextSource:
    """A set of rationales that every teacher has.

    Attributes:
        base: The task's name in the study.
        train: The questions that they are about.
        annotate: Further arguments of who writes them.
        language: In place of `{language}` in a file of published ones; None where there is no such place.
        original: The name of those that are given to these questions, their translations; None if they are written.
    """

    base: str
    train: str
    annotate: list[str]
    language: str | None = None
    original: str | None = None


def name_task(base: str, language: str, kind: RationaleLanguage) -> str:
    """Names a task in a language, with rationales of a kind; those of `same` and `pivot` are called like it."""
    return f"{base}-{language}-{kind}"


def name_pooled(base: str, kind: RationaleLanguage) -> str:
    """Names what the arms of all languages learned, each its own."""
    return f"{base}-{kind}"


def _fill(spec: TaskSpec, language: str) -> TaskSpec:
    test, references = ([own.replace(PLACE, language) for own in named] for named in (spec.test, spec.references))
    return replace(spec, train=spec.train.replace(PLACE, language), test=test, references=references)


def list_learned(tasks: Mapping[str, TaskSpec], languages: LanguageSpec | None) -> dict[str, LearnedTask]:
    """Returns what the arms learn, by name."""
    learned: dict[str, LearnedTask] = {}
    for base, spec in tasks.items():
        if languages is None or not spec.is_template:
            learned[base] = LearnedTask(spec, base, texts=(base,))
            continue
        for tag in languages.questions:
            for kind in languages.rationales:
                other = languages.find_against(kind)
                own = replace(_fill(spec, tag), against=other and name_task(base, tag, other))
                kinds: tuple[RationaleLanguage, ...] = ("same", "pivot") if kind == "mixed" else (kind,)
                texts = tuple(name_task(base, tag, own_kind) for own_kind in kinds)
                learned[name_task(base, tag, kind)] = LearnedTask(own, base, tag, kind, texts)
    return learned


def list_texts(tasks: Mapping[str, TaskSpec], languages: LanguageSpec | None) -> dict[str, TextSource]:
    """Returns all sets of rationales by name, each after the one that it is made from."""
    texts: dict[str, TextSource] = {}
    for base, spec in tasks.items():
        if languages is None or not spec.is_template:
            texts[base] = TextSource(base, spec.train, spec.annotate)
            continue
        english, kinds = name_task(base, ENGLISH, "same"), {*languages.rationales}
        if kinds & {"pivot", "mixed"}:
            texts[english] = TextSource(base, _fill(spec, ENGLISH).train, spec.annotate, ENGLISH)
        for tag in languages.questions:
            train = _fill(spec, tag).train
            if kinds & {"same", "mixed"}:
                texts[name_task(base, tag, "same")] = TextSource(base, train, spec.annotate, tag)
            if kinds & {"pivot", "mixed"}:
                texts[name_task(base, tag, "pivot")] = TextSource(base, train, spec.annotate, tag, english)
    return texts


def list_pooled(tasks: Mapping[str, TaskSpec], languages: LanguageSpec | None) -> dict[str, dict[str, str]]:
    """Returns the tasks by language that are compared together, too, by the name of all; none of one language alone."""
    if languages is None or len(languages.questions) < 2:
        return {}
    return {
        name_pooled(base, kind): {tag: name_task(base, tag, kind) for tag in languages.questions}
        for base, spec in tasks.items()
        if spec.is_template
        for kind in languages.rationales
    }


def check_tasks(
    tasks: Mapping[str, TaskSpec], languages: LanguageSpec | None, outcomes: Collection[Outcome] = ()
) -> None:
    """Refuses tasks that do not go with the languages, or with what is compared.

    Raises:
        ValueError: See there.
    """
    templates = {name: spec for name, spec in tasks.items() if spec.is_template}
    if languages is not None and not templates:
        raise ValueError(f"study.languages would be ignored: no task of the study has {PLACE} in its train")
    for name, spec in tasks.items():
        if not spec.test:
            raise ValueError(f"study.tasks.{name}.test: there are no questions to answer")
        has_place = spec.is_template or any(PLACE in source for source in [*spec.test, *spec.references])
        if has_place and (languages is None or not spec.is_template):
            raise ValueError(f"study.tasks.{name}: {PLACE} needs study.languages, and to be in train, too")
        if spec.is_template and spec.against is not None:
            raise ValueError(f"study.tasks.{name}.against: study.languages says what is compared; leave it out")
        if spec.against is not None:
            _check_against(tasks, name, spec, spec.against)
    _check_references(tasks, outcomes)
    made = Counter([*list_learned(templates, languages), *list_pooled(templates, languages)])
    plain = {*tasks} - {*templates}
    for name in sorted(plain & {*made, *list_texts(templates, languages)} | {name for name in made if made[name] > 1}):
        raise ValueError(f"study.tasks: study.languages makes a task {name}, and so does another; name tasks otherwise")


def _check_references(tasks: Mapping[str, TaskSpec], outcomes: Collection[Outcome]) -> None:
    """Refuses references that no outcome of the study is of, and an outcome that lacks its own.

    Raises:
        ValueError: See there.
    """
    is_asked = "reference_likelihood" in outcomes
    if is_asked and "agreement" in outcomes:
        raise ValueError(
            "study.outcomes: agreement is with what each arm's own teacher answers, reference_likelihood of the same "
            "references for all; leave one of them out"
        )
    for name, task in tasks.items():
        if is_asked and not task.references:
            raise ValueError(f"study.tasks.{name}.references: there are none for the outcome reference_likelihood")
        if task.references and not is_asked:
            raise ValueError(
                f"study.tasks.{name}.references would be ignored: study.outcomes has no reference_likelihood"
            )


def _check_against(tasks: Mapping[str, TaskSpec], name: str, task: TaskSpec, against: str) -> None:
    """Refuses a task that another one cannot be compared with.

    Raises:
        ValueError: See there.
    """
    other = tasks.get(against)
    if other is None or against == name:
        known = ", ".join(own for own in tasks if own != name) or "none"
        raise ValueError(f"study.tasks.{name}.against: {against!r} is no other task of the study: {known}")
    if (task.train, task.test) != (other.train, other.test):
        raise ValueError(f"study.tasks.{name}.against: {against} has other questions; train and test must be alike")
