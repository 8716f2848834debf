"""Questions: one item of a task each, from a task's hub files, the microworld's generator, or a local file."""

import itertools
import string
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.files.atomic import read_records
from datamodules.files.field_types import check_id, check_text, shorten
from datamodules.tasks.benchmarks import read_task
from datamodules.tasks.microworld import generate_questions
from datamodules.text.expressions import normalize_expression, normalize_number
from datamodules.text.sentences import squash

LETTERS = string.ascii_uppercase
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
        group: What other questions it is asked with, as those of one passage, paraphrases or translations: a study's
            intervals then are over groups. None where it stands alone.
        expression: Whether a free answer is a LaTeX expression (MATH) rather than a decimal number.
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
    raise ValueError(f"gold answer {gold!r} is no option (letters {letters}, texts {list(choices)})")


def _read_choice(choice: Any) -> str:
    if isinstance(choice, int | float) and not isinstance(choice, bool):
        return str(choice)
    return check_text(choice, "choices", may_be_empty=True)


def parse_question(record: dict[str, Any], where: str, task: str, split: str) -> Question:
    """Makes a Question from a record of design.md's shape.

    Args:
        record: The raw fields.
        where: `file:line`, for errors.
        task: Used where the record names none.
        split: Likewise.

    Raises:
        ValueError: A field is missing or wrong; the message begins with `where`.
    """
    try:
        identifier, text = record["id"], record["question"]
        if not isinstance(identifier, str) or not identifier or not isinstance(text, str) or not text.strip():
            raise ValueError("`id` and `question` must be non-empty texts")
        check_id(identifier, "id")
        check_text(text, "question")
        choices, expression = record.get("choices"), record.get("expression") or False
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
            for name in ("task", "split", "language", "group")
            for value in [record.get(name)]
        }
        return Question(
            id=identifier,
            task=named["task"] or task,
            split=named["split"] or split,
            question=text,
            choices=choices,
            gold=normalize_gold(record.get("gold"), choices, expression),
            language=named["language"] or "en",
            expression=expression,
            group=named["group"] or None,
        )
    except KeyError as error:
        raise ValueError(f"{where}: question without field {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_source(source: str) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Yields (where, record, task, split) of a `task:` or `microworld:` source or a file."""
    if source.startswith("task:"):
        for where, record in read_task(source):
            yield where, record, record["task"], record["split"]
        return
    if source.startswith("microworld:"):
        try:
            split, num, seed = source.removeprefix("microworld:").split(":")
            records = generate_questions(int(num), split, int(seed))
        except ValueError as error:
            raise ValueError(f"{source}: write microworld:SPLIT:NUMBER:SEED ({error})") from None
        for number, record in enumerate(records):
            yield f"{source}:{number}", record, "microworld", split
        return
    stem = Path(source).name.split(".")[0]
    task, _, split = stem.rpartition("_")
    for where, record in read_records(Path(source)):
        yield where, record, task or stem, split if task else "train"


def load_questions(sources: str | list[str], limit: int | None = None) -> list[Question]:
    """Loads questions from tasks' hub files, from the microworld's generator, or from files.

    Sources are `task:NAME:SPLIT[@FOLDER]` (see `benchmarks`), `microworld:SPLIT:NUMBER:SEED`, and paths of jsonl,
    jsonl.gz or parquet files.

    A file's record that names no task or split takes them from the file's name: `obqa_train.jsonl.gz`.

    Args:
        sources: Where the questions are; several are read one after the other.
        limit: Keep the first so many of each source; None keeps all.

    Raises:
        ValueError: A source is missing or empty, a record is malformed, or an id is there twice.
    """
    questions: dict[str, Question] = {}
    for source in [sources] if isinstance(sources, str) else sources:
        before = len(questions)
        for where, record, task, split in itertools.islice(_read_source(source), limit):
            question = parse_question(record, where, task, split)
            if question.id in questions:
                raise ValueError(f"{where}: question id {question.id!r} is there twice")
            questions[question.id] = question
        if len(questions) == before:
            raise ValueError(f"{source}: no questions")
    if twins := [question.id for question in questions.values() if question.choices and has_twins(question.choices)]:
        warnings.warn(
            f"{sources}: {len(twins)} questions have options with the same words, the first is {twins[0]!r}; an answer "
            "that names such an option without its letter is read as none",
            stacklevel=2,
        )
    if not questions:
        raise ValueError("data.questions is empty; name at least one source of questions")
    return list(questions.values())


def format_question(question: Question) -> str:
    """Returns a question with its options, a line each, as people read it."""
    return "\n".join([question.question, *(f"{letter}) {question.choice(letter)}" for letter in question.letters)])
