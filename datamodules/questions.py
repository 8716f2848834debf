"""Questions: one item of a task each, from the Hugging Face hub or from a local file."""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from datamodules.files import read_records
from datamodules.microworld import generate_questions

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """One item of a task.

    Attributes:
        id: Unique within its file.
        task: For example `openbookqa`.
        split: `train`, `validation` or `test`.
        question: The text, without the options.
        choices: The options' texts in order, or None for a question with a free (numeric) answer.
        gold: The right option's letter, the number as text where there are no options, or None if unknown.
        language: BCP 47 tag.
    """

    id: str
    task: str
    split: str
    question: str
    choices: tuple[str, ...] | None
    gold: str | None
    language: str = "en"

    @property
    def letters(self) -> str:
        """The letters of the options, for example `ABCD`; empty without options."""
        return LETTERS[: len(self.choices or ())]

    def choice(self, letter: str) -> str:
        """Returns the text of the option with this letter."""
        assert self.choices is not None
        return self.choices[self.letters.index(letter)]


def normalize_number(value: Any) -> str:
    """Writes a number the one way answers are compared: no thousands commas, `72` for `72.0`.

    Raises:
        ValueError: The value is no finite number.
    """
    try:
        number = Decimal(str(value).replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"answer {value!r} is no number") from None
    if not number.is_finite():
        raise ValueError(f"answer {value!r} is no finite number")
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if number == 0 else text


def normalize_gold(gold: Any, choices: tuple[str, ...] | None) -> str | None:
    """Returns the gold answer as an option letter or a normalised number.

    Raises:
        ValueError: The gold answer is neither a letter nor the text of an option, nor a number.
    """
    if gold is None or gold == "":
        return None
    if choices is None:
        return normalize_number(gold)
    letters = LETTERS[: len(choices)]
    if isinstance(gold, str) and len(gold) == 1 and gold in letters:
        return gold
    if str(gold) in choices:
        return letters[choices.index(str(gold))]
    raise ValueError(f"gold answer {gold!r} is no option (letters {letters}, texts {list(choices)})")


def parse_question(record: dict, where: str, task: str, split: str) -> Question:
    """Makes a Question from a record of design.md's shape or of the hub's multiple-choice shape.

    The hub's shape (OpenBookQA, CommonsenseQA, ARC) has `question_stem` or `question`, `choices` with
    `text` and `label`, and `answerKey`.

    Args:
        record: The raw fields.
        where: `file:line`, for errors.
        task: Used where the record names none.
        split: Likewise.

    Raises:
        ValueError: A field is missing or wrong; the message begins with `where`.
    """
    try:
        identifier = record["id"]
        text = record.get("question_stem") or record["question"]
        choices, gold = record.get("choices"), record.get("gold")
        if isinstance(choices, dict):
            labels, choices = choices["label"], choices["text"]
            key = record.get("answerKey")
            if key and key not in labels:
                raise ValueError(f"gold answer {key!r} is no option (labels {labels})")
            gold = LETTERS[labels.index(key)] if key else None
        if not isinstance(identifier, str) or not identifier or not isinstance(text, str) or not text.strip():
            raise ValueError("`id` and `question` must be non-empty texts")
        if not isinstance(choices, list | None):
            raise ValueError(f"`choices` must be a list of texts or null, found {type(choices).__name__}")
        choices = tuple(str(choice) for choice in choices) if choices else None
        if choices is not None and len(choices) > len(LETTERS):
            raise ValueError(f"{len(choices)} options; at most {len(LETTERS)} can be lettered")
        return Question(
            id=identifier,
            task=record.get("task") or task,
            split=record.get("split") or split,
            question=text,
            choices=choices,
            gold=normalize_gold(gold, choices),
            language=record.get("language") or "en",
        )
    except KeyError as error:
        raise ValueError(f"{where}: question without field {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_source(source: str) -> Iterator[tuple[str, dict, str, str]]:
    """Yields (where, record, task, split) of a `hub:` or `microworld:` source or a file."""
    if source.startswith("hub:"):
        # Heavy, and only this branch needs it.
        from datasets import load_dataset

        parts = source.removeprefix("hub:").rsplit(":", 2)
        if len(parts) != 3:
            raise ValueError(f"{source}: write hub:NAME[@REVISION]:CONFIG:SPLIT, like hub:allenai/openbookqa:main:test")
        name, config, split = parts
        name, _, revision = name.partition("@")
        try:
            rows = load_dataset(name, config or None, split=split, revision=revision or None)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: cannot be loaded from the hub: {error}") from None
        for number, record in enumerate(rows):
            yield f"{source}:row {number}", record, Path(name).name, split
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


def load_questions(source: str, limit: int | None = None) -> list[Question]:
    """Loads questions from the hub, from the microworld's generator, or from a file.

    Sources are `hub:NAME[@REVISION]:CONFIG:SPLIT`, `microworld:SPLIT:NUMBER:SEED`, and paths of jsonl, jsonl.gz
    or parquet files.

    A file's record that names no task or split takes them from the file's name: `obqa_train.jsonl.gz`.

    Args:
        source: Where the questions are.
        limit: Keep the first so many; None keeps all.

    Raises:
        ValueError: The source is missing or empty, a record is malformed, or an id is there twice.
    """
    questions: dict[str, Question] = {}
    for where, record, task, split in _read_source(source):
        if limit is not None and len(questions) == limit:
            break
        question = parse_question(record, where, task, split)
        if question.id in questions:
            raise ValueError(f"{where}: question id {question.id!r} is there twice")
        questions[question.id] = question
    if not questions:
        raise ValueError(f"{source}: no questions")
    return list(questions.values())
