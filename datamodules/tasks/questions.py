"""Questions: one item of a task each, from a task's hub files, the microworld's generator, or a local file."""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from datamodules.files.atomic import part_language, read_records
from datamodules.files.field_types import check_id, check_text, shorten
from datamodules.tasks.benchmarks import ask_why, count_task, read_task
from datamodules.tasks.microworld import generate_questions
from datamodules.tasks.records import LETTERS, AmbiguousIndexError, find_index_convention, make_id, read_record
from datamodules.tasks.translations import Translations, check_tag
from datamodules.text.expressions import normalize_expression, normalize_number
from datamodules.text.sentences import squash

AnswerKind = Literal["choice", "boolean", "number", "expression"]
# How the other way to say true and false calls each option.
_POLAR = {"yes": "true", "no": "false", "true": "yes", "false": "no"}


@dataclass(frozen=True)
class Question:
    """One item of a task.

    Attributes:
        id: Unique within its file.
        task: For example `openbookqa`.
        split: `train`, `validation` or `test`.
        question: The text, without the options.
        choices: The options' texts in order, or None for a question with a free answer.
        gold: The right option's letter; where there are no options, the number or the expression as text,
            normalised; None if unknown.
        language: BCP 47 tag.
        parallel: What it has in common with the same question in other languages, and with no other question; None
            where it is in one language alone.
        original: Id of the question that it is the translation of, in a set of its own: GSM8K's of MGSM's, SVAMP's of
            MSVAMP's. Rationales of that one are English pivots of this.
        replaced_in_rev2: Whether MGSM-Rev2 (arXiv 2511.05162) has another wording of it, since this one is wrong.
        group: What other questions it is asked with, as those of one passage, paraphrases or translations: a study's
            intervals then are over groups. None where it stands alone.
        expression: Whether a free answer is a LaTeX expression (MATH) rather than a decimal number.
        place: Where it was read, `file:line`, for messages; no part of what it is.
    """

    id: str
    task: str
    split: str
    question: str
    choices: tuple[str, ...] | None
    gold: str | None
    language: str = "en"
    expression: bool = False
    group: str | None = None
    parallel: str | None = None
    original: str | None = None
    replaced_in_rev2: bool = False
    place: str = field(default="", compare=False, repr=False)

    @property
    def content(self) -> dict[str, Any]:
        """All that it is, wherever it was read."""
        return {name: value for name, value in vars(self).items() if name != "place"}

    @property
    def cluster(self) -> str | None:
        """What it shares with the questions that are drawn with it: its group, or else its translations."""
        return self.group or self.parallel

    @property
    def kind(self) -> AnswerKind:
        """What the answer is: an option, true or false (or yes or no), a number, or an expression."""
        if self.choices is None:
            return "expression" if self.expression else "number"
        return "boolean" if is_boolean(self.choices) else "choice"

    @property
    def letters(self) -> str:
        """The letters of the options, for example `ABCD`; empty without options."""
        return LETTERS[: len(self.choices or ())]

    def choice(self, letter: str) -> str:
        """Returns the text of the option with this letter."""
        assert self.choices is not None
        return self.choices[self.letters.index(letter)]


def is_boolean(choices: tuple[str, ...]) -> bool:
    """Whether the options are true and false, or yes and no."""
    return {choice.casefold() for choice in choices} in ({"true", "false"}, {"yes", "no"})


def has_twins(choices: tuple[str, ...]) -> bool:
    """Whether two options have the same words, so that a text that names one names the other, too."""
    named = [squash(choice) or choice.strip() for choice in choices]
    return len(set(named)) < len(named)


def normalize_gold(gold: Any, choices: tuple[str, ...] | None, expression: bool = False) -> str | None:
    """Returns the gold answer as an option letter, or as a normalised number or expression.

    Where the options are true and false, yes and no are read, too, and the reverse.

    Raises:
        ValueError: The gold answer is neither a letter nor the text of one option, nor a number.
    """
    if gold is None or gold == "":
        return None
    if not isinstance(gold, str | int | float):
        raise ValueError(f"gold answer {shorten(gold)} must be a text or a number, found {type(gold).__name__}")
    if choices is None:
        return normalize_expression(str(gold)) if expression else normalize_number(gold)
    letters = LETTERS[: len(choices)]
    if isinstance(gold, str) and len(gold) == 1 and gold in letters:
        return gold
    if choices.count(str(gold)) > 1:
        raise ValueError(f"gold answer {gold!r} is the text of several options; name it by its letter")
    if str(gold) in choices:
        return letters[choices.index(str(gold))]
    if is_boolean(choices) and (word := str(gold).casefold()) in _POLAR:
        names = [choice.casefold() for choice in choices]
        return letters[names.index(word if word in names else _POLAR[word])]
    index = f"; the indices are 0 to {len(choices) - 1}" if type(gold) is int else ""
    raise ValueError(f"gold answer {gold!r} is no option (letters {letters}, texts {list(choices)}){index}")


def _read_choice(choice: Any) -> str:
    if isinstance(choice, int | float) and not isinstance(choice, bool):
        return str(choice)
    return check_text(choice, "choices", may_be_empty=True)


def parse_question(
    record: dict[str, Any], where: str, task: str, split: str, ints_are_indices: bool | None = None
) -> Question:
    """Makes a Question from a record as `records` reads it.

    Args:
        record: The raw fields.
        where: `file:line`, for errors.
        task: Used where the record names none.
        split: Likewise.
        ints_are_indices: See `read_record`.

    Raises:
        AmbiguousIndexError: See `read_record`.
        ValueError: A field is missing or wrong; the message begins with `where`.
    """
    try:
        return replace(_make_question(read_record(record, ints_are_indices).question, task, split), place=where)
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from None


def _make_question(own: dict[str, Any], task: str, split: str) -> Question:
    identifier, text, choices, expression = own["id"], own["question"], own["choices"], own["expression"] or False
    if text is None:
        raise ValueError("question without field 'question' (or problem, prompt, instruction, messages, conversations)")
    if not isinstance(identifier, str | None) or identifier == "" or not isinstance(text, str) or not text.strip():
        raise ValueError("`id` and `question` must be non-empty texts")
    if identifier is not None:
        check_id(identifier, "id")
    check_text(text, "question")
    if not isinstance(choices, list | None):
        raise ValueError(f"`choices` must be a list of texts or null, found {type(choices).__name__}")
    if not isinstance(expression, bool) or (expression and choices):
        raise ValueError("`expression` must be true or false, and false where there are choices")
    choices = tuple(_read_choice(choice) for choice in choices) if choices else None
    if choices is not None and len(choices) > len(LETTERS):
        raise ValueError(f"{len(choices)} options; at most {len(LETTERS)} can be lettered")
    if choices is not None and len(choices) > 1 and len(set(choices)) == 1:
        raise ValueError(f"all {len(choices)} options are {shorten(choices[0])}; none of them can be right alone")
    named = {
        name: value if value is None or value == "" else check_text(value, name)
        for name in ("task", "split", "language", "group", "parallel", "original", "asks")
        for value in [own[name]]
    }
    language = check_tag(named["language"] or "en")
    if not isinstance(own["replaced_in_rev2"], bool | None):
        raise ValueError(f"`replaced_in_rev2` must be true or false, found {shorten(own['replaced_in_rev2'])}")
    if named["asks"]:
        text = ask_why(text, named["asks"], language)
    try:
        gold = normalize_gold(own["gold"], choices, expression)
    except ValueError as error:
        if choices is not None or expression or not isinstance(own["gold"], str):
            raise
        raise ValueError(
            f"{error}; an option needs `choices`, and a LaTeX expression `expression: true` beside it"
        ) from None
    return Question(
        id=make_id(text, choices) if identifier is None else identifier,
        task=named["task"] or task,
        split=named["split"] or split,
        question=text,
        choices=choices,
        gold=gold,
        language=language,
        expression=expression,
        group=named["group"] or None,
        parallel=named["parallel"] or None,
        original=named["original"] or None,
        replaced_in_rev2=own["replaced_in_rev2"] or False,
    )


def _read_source(source: str) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Yields (where, record, task, split) of a `task:` or `microworld:` source or a file."""
    if source.startswith("task:"):
        for where, record in read_task(source):
            yield where, record, record["task"], record["split"]
        return
    if source.startswith("microworld:"):
        try:
            split, num, seed, *language = source.removeprefix("microworld:").split(":", 3)
            records = generate_questions(int(num), split, int(seed), *language)
        except ValueError as error:
            raise ValueError(f"{source}: write microworld:SPLIT:NUMBER:SEED[:LANGUAGE] ({error})") from None
        for number, record in enumerate(records):
            yield f"{source}:{number}", record, "microworld", split
        return
    stem = Path(source).name.split(".")[0]
    task, _, split = stem.rpartition("_")
    for where, record in read_records(Path(source)):
        yield where, record, task or stem, split if task else "train"


def load_questions(sources: str | list[str], limit: int | None = None) -> list[Question]:
    """Loads questions from tasks' hub files, from the microworld's generator, or from files.

    Sources are `task:NAME:SPLIT[:LANGUAGE][@FOLDER]` (see `benchmarks`), `microworld:SPLIT:NUMBER:SEED[:LANGUAGE]`, and
    paths of jsonl, jsonl.gz, json or parquet files, whose records `records` describes; `FILE:LANGUAGE` is the questions
    of a file that are in one language.

    A file's record that names no task or split takes them from the file's name: `obqa_train.jsonl.gz`. One without an
    id has a hash of its text and options. A record may repeat a question only to add another rationale to it.

    Args:
        sources: Where the questions are; several are read one after the other.
        limit: Keep the first so many of each source; None keeps all.

    Raises:
        ValueError: A source is missing or empty, a record is malformed, an id is there twice, or what should be a
            question's translation is none.
    """
    questions: dict[str, Question] = {}
    translations = Translations()
    for source in [sources] if isinstance(sources, str) else sources:
        own = _load_source(source, limit, questions)
        if not own:
            raise ValueError(f"{source}: no questions{_describe_languages(source)}")
        for question in own:
            translations.add(question)
        if not source.startswith(("task:", "microworld:")):
            _warn_without_gold(source, own)
    if twins := [question.id for question in questions.values() if question.choices and has_twins(question.choices)]:
        warnings.warn(
            f"{sources}: {len(twins)} questions have options with the same words, the first is {twins[0]!r}; an answer "
            "that names such an option without its letter is read as none",
            stacklevel=2,
        )
    if not questions:
        raise ValueError("data.questions is empty; name at least one source of questions")
    return list(questions.values())


def count_questions(sources: str | list[str], limit: int | None = None) -> int:
    """Returns how many questions `load_questions` would load, of the hub's by the task's file, without a network."""
    number = 0
    for source in [sources] if isinstance(sources, str) else sources:
        is_remote = source.startswith("task:") and "@" not in source
        own = count_task(source) if is_remote else len(load_questions(source))
        number += own if limit is None else min(own, limit)
    return number


def _load_source(source: str, limit: int | None, questions: dict[str, Question]) -> list[Question]:
    """Returns a source's questions, and adds them to those of others."""
    own: dict[str, Question] = {}
    ints_are_indices: bool | None = None
    for where, record, task, split in _read_source(source):
        try:
            question = parse_question(record, where, task, split, ints_are_indices)
        except AmbiguousIndexError:
            # The file's other answers may tell.
            ints_are_indices = find_index_convention(item for _, item, _, _ in _read_source(source))
            question = parse_question(record, where, task, split, ints_are_indices)
        known = questions.get(question.id)
        if known is None:
            questions[question.id] = own[question.id] = question
        elif known != question or question.id not in own or not read_record(record, True).rationales:
            other = ", with another text, options or gold answer" if known != question else ""
            raise ValueError(f"{where}: question id {question.id!r} is there twice, first in {known.place}{other}")
        if len(own) == limit:
            break
    return [*own.values()]


def _describe_languages(source: str) -> str:
    """Returns which languages a file's questions are in, of which a source wants another; nothing else."""
    file, language = part_language(source)
    if language is None:
        return ""
    known = sorted({str(record.get("language")) for _, record in read_records(Path(file))})
    return f" in language {language!r}; there are {', '.join(known)}"


def _warn_without_gold(source: str, questions: list[Question]) -> None:
    """Says that no answer can be right where no question of a file has a gold answer."""
    if all(question.gold is None for question in questions):
        ignored = Counter[str]()
        for (_, record, _, _), _ in zip(_read_source(source), questions, strict=False):
            ignored.update(set(record) - read_record(record, True).used)
        unread = f" (not read: {', '.join(sorted(ignored))})" if ignored else ""
        warnings.warn(
            f"{source}: 0 of {len(questions)} questions have a gold answer; name it `gold` or `answer`{unread}; "
            "without one no answer is right, and correct_only leaves nothing",
            stacklevel=3,
        )


def format_question(question: Question) -> str:
    """Returns a question with its options, a line each, as people read it."""
    return "\n".join([question.question, *(f"{letter}) {question.choice(letter)}" for letter in question.letters)])
