"""The rationale store: what teachers answered, kept whatever the answer; filtering is the reader's choice."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from datamodules.answers.extractors import extract_neutral, find_stated_answer
from datamodules.answers.grading import is_correct
from datamodules.files.atomic import read_records
from datamodules.files.field_types import check_id, check_text, shorten
from datamodules.files.tables import read_metadata, read_table, write_table
from datamodules.model_cards import find_family
from datamodules.rationales.samples import SAMPLE_FIELDS, check_sample
from datamodules.tasks.question_index import QuestionIndex, has_choices
from datamodules.tasks.questions import Question, normalize_gold
from datamodules.tasks.records import AmbiguousIndexError, Record, Written, name_option, read_record
from datamodules.text.expressions import normalize_number
from datamodules.text.sentences import squash
from datamodules.text.thinking import split_thinking

FinishReason = Literal["stop", "length", "content_filter", "imported"]


@dataclass(frozen=True)
class Rationale:
    """A teacher's reasoning about one question, with the answer it reached.

    Attributes:
        question_id: The question's id.
        task: The question's task.
        split: The question's split.
        teacher: Who wrote it.
        family: The teacher's family, or `unknown`.
        sample: 0, 1, ... where one teacher answered several times.
        text: The reasoning, with the answer sentence if the teacher wrote one; without what it thought before.
        answer: An option's letter or a number, or None if none could be extracted.
        correct: Whether `answer` is the gold answer; None where gold is unknown.
        finish_reason: `stop`, `length` (truncated), `content_filter` (withheld by a provider), or `imported`.
        prompt_id: The prompt that was answered, or `imported`.
        num_prompt_tokens: Of the teacher's tokenizer; None where unknown.
        num_completion_tokens: Likewise, as generated, an end token included.
        thinking: What the teacher wrote between think marks, or an endpoint told apart as its reasoning.
        token_ids: What was drawn, see `datamodules.rationales.samples`; so are `log_probs` and `tokenizer`.
    """

    question_id: str
    task: str
    split: str
    teacher: str
    family: str
    sample: int
    text: str
    answer: str | None
    correct: bool | None
    finish_reason: FinishReason
    prompt_id: str
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    thinking: str = ""
    token_ids: list[int] | None = None
    log_probs: list[float] | None = None
    tokenizer: str | None = None

    @property
    def is_truncated(self) -> bool:
        """Whether the text ends where the teacher ran out of tokens, and not where it wanted to."""
        return self.finish_reason == "length"

    @property
    def id(self) -> str:
        """Names the rationale within a question set: question, teacher, sample."""
        return f"{self.question_id}/{self.teacher}/{self.sample}"


SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("question_id", "task", "split", "teacher", "family")]
    + [pa.field("sample", pa.int32())]
    + [pa.field(name, pa.string()) for name in ("text", "answer")]
    + [pa.field("correct", pa.bool_())]
    + [pa.field(name, pa.string()) for name in ("finish_reason", "prompt_id")]
    + [pa.field(name, pa.int32()) for name in ("num_prompt_tokens", "num_completion_tokens")]
    + [pa.field("thinking", pa.string())]
)


def name_paraphrase(writer: str, paraphraser: str) -> str:
    """Returns how rationales name their teacher if another has rewritten them."""
    return f"{writer}-by-{paraphraser}"


def read_gold_conditions(paths: list[str]) -> dict[str, bool]:
    """Returns, for each teacher of these stores, whether it was shown the gold answers.

    An annotated store's teacher was not; an imported one's metadata say. Of published collections nothing is known.
    """
    conditions: dict[str, bool] = {}
    for metadata in (read_metadata(Path(path)) for path in paths if path.endswith(".parquet")):
        annotated = {metadata["teacher"]: False} if "teacher" in metadata else {}
        conditions |= metadata.get("gold_conditioned", annotated)
    return conditions


def read_families(paths: list[str]) -> dict[str, str]:
    """Returns the family of each teacher of these files; `unknown` in published collections."""
    families: dict[str, str] = {}
    for path in paths:
        if path.endswith(".parquet"):
            table = read_table(Path(path), ["teacher", "family"])
            families |= dict(zip(*(table[name].to_pylist() for name in ("teacher", "family")), strict=True))
    return families


def find_repeats(rationales: Iterable[Rationale]) -> set[str]:
    """Returns the ids of rationales whose text an earlier one of the same teacher and question has already.

    Case and spaces play no part; a rationale without text repeats nothing.
    """
    seen, repeats = set[tuple[str, str, str]](), set[str]()
    for rationale in rationales:
        key = (rationale.question_id, rationale.teacher, " ".join(rationale.text.casefold().split()))
        if key[2] and key in seen:
            repeats.add(rationale.id)
        seen.add(key)
    return repeats


def drop_truncated(rationales: Iterable[Rationale], source: str, keep: bool) -> list[Rationale]:
    """Leaves out what was truncated, and says how much, unless that is kept."""
    everything = list(rationales)
    kept = [rationale for rationale in everything if keep or not rationale.is_truncated]
    if number := len(everything) - len(kept):
        warnings.warn(
            f"{source}: {number} of {len(everything)} rationales are truncated and left out; keep_truncated keeps them",
            stacklevel=3,
        )
    return kept


def write_rationales(path: Path, rationales: Iterable[Rationale], metadata: dict[str, Any]) -> None:
    """Writes a rationale store; `metadata` names the teacher's revision, tokenizer, prompt and decoding."""
    records, schema = [asdict(rationale) for rationale in rationales], SCHEMA
    if any(record["token_ids"] is not None for record in records):
        schema = pa.schema([*SCHEMA, *SAMPLE_FIELDS])
    write_table(path, records, metadata, schema)


def part_thinking(rationale: Rationale) -> Rationale:
    """Returns a rationale whose text is what followed its thinking: nothing, and no answer, if that was truncated."""
    split = split_thinking(rationale.text)
    if not split.is_closed:
        wrong = None if rationale.correct is None else False
        return replace(rationale, text="", thinking=split.thinking, answer=None, correct=wrong, finish_reason="length")
    return replace(rationale, text=split.reply.strip(), thinking=split.thinking) if split.start else rationale


def _parse_flat(record: dict[str, Any], where: str) -> Rationale:
    known = fields(Rationale)
    missing = [field.name for field in known if field.default is MISSING and field.name not in record]
    if missing:
        raise ValueError(f"{where}: rationale without field {', '.join(missing)}")
    rationale = Rationale(**{field.name: record[field.name] for field in known if field.name in record})
    _check(rationale, where)
    return rationale if "thinking" in record else part_thinking(rationale)


def _check(rationale: Rationale, where: str, question: Question | None = None) -> None:
    """Raises a ValueError, `where` first, if a field is of a wrong type, or the answer is none to the question."""
    try:
        _check_types(rationale)
        if question is not None:
            _check_answer(rationale, question)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_types(rationale: Rationale) -> None:
    for name in ("question_id", "task", "split", "teacher", "family", "prompt_id"):
        (check_id if name == "teacher" else check_text)(getattr(rationale, name), name)
    for name in ("text", "thinking"):
        check_text(getattr(rationale, name), name, may_be_empty=True)
    if rationale.answer is not None:
        check_text(rationale.answer, "answer")
    if not isinstance(rationale.correct, bool | None):
        raise ValueError(f"`correct` must be true, false or null, found {shorten(rationale.correct)}")
    for name in ("sample", "num_prompt_tokens", "num_completion_tokens"):
        value = getattr(rationale, name)
        if not (value is None and name != "sample") and (type(value) is not int or not 0 <= value < 2**31):
            raise ValueError(f"`{name}` must be a whole number of 0 or more, found {shorten(value)}; at most 2**31 - 1")
    check_sample(rationale.token_ids, rationale.log_probs, rationale.tokenizer)
    if rationale.finish_reason not in get_args(FinishReason):
        reasons = ", ".join(get_args(FinishReason))
        raise ValueError(f"`finish_reason` must be one of {reasons}, found {shorten(rationale.finish_reason)}")


def _check_answer(rationale: Rationale, question: Question) -> None:
    answer, gold = rationale.answer, question.gold
    if question.choices is not None:
        if answer is not None and answer not in [*question.letters]:
            raise ValueError(f"`answer` {shorten(answer)} is no option of question {question.id!r}: {question.letters}")
        is_right = gold is None or (answer is not None and question.choice(answer) == question.choice(gold))
    else:
        # Whether two expressions are equal takes more than their texts.
        is_right = answer is not None and (gold is None or question.expression or normalize_number(answer) == gold)
    if rationale.correct and not is_right:
        raise ValueError(f"`correct` is true, but the answer {shorten(answer)} is not {gold!r}, which is gold")


def read_flat_rationales(path: str) -> list[Rationale]:
    """Reads a rationale store whose questions need not be at hand.

    Raises:
        ValueError: The file or a record is malformed.
    """
    return [_parse_flat(record, where) for where, record in _read_whole(path)]


def _read_whole(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the records of a file; a store that knows how many it should hold is refused unless it does."""
    number = 0
    for pair in read_records(Path(path)):
        number += 1
        yield pair
    wanted = read_metadata(Path(path)).get("num_records", number) if path.endswith(".parquet") else number
    if number != wanted:
        raise ValueError(
            f"{path}: holds {number} of the {wanted} rationales that were written; make it anew, or, if it was edited "
            f"on purpose, seal it with: python -m scripts.seal {path}"
        )


def find_question(record: Record, where: str, questions: dict[str, Question], index: QuestionIndex) -> Question:
    """Returns the question that a record's rationales are about: by its id, or else by its text and options.

    Raises:
        ValueError: There is none, there are several, or it is another question than the record says.
    """
    identifier, text, choices = (record.question[name] for name in ("id", "question", "choices"))
    known = questions.get(identifier) if isinstance(identifier, str) else None
    if not isinstance(text, str) or not text.strip():
        if known is None:
            raise ValueError(f"{where}: a rationale for the unknown question {shorten(identifier)}")
        return known
    found = [known] if known is not None else index.find(text, choices)
    if not found:
        named = shorten(text) if identifier is None else f"{shorten(identifier)}, {shorten(text)}"
        raise ValueError(f"{where}: a rationale for the unknown question {named}: no question has its id or text")
    if len(found) > 1:
        places = ", ".join(f"{question.place} ({question.id})" for question in found)
        raise ValueError(f"{where}: its question's text is that of several: {places}; give it the question's id")
    [question] = found
    if squash(text) != squash(question.question) and question not in index.find(text, choices):
        raise ValueError(
            f"{where}: question {question.id!r} has another text there than in {question.place}: {shorten(text)}"
        )
    if choices and not has_choices(question, choices):
        raise ValueError(f"{where}: question {question.id!r} has other options, or in another order, than there")
    return question


def _read_answer(written: Written, question: Question, by_index: bool) -> str | None:
    """Returns the answer that is recorded beside a text, None if it is no answer; else the one that the text states."""
    if not written.has_answer:
        extraction = extract_neutral(split_thinking(written.text).reply, question)
        return extraction.answer if extraction else None
    try:
        answer = name_option(written.answer, question.choices) if by_index and question.choices else written.answer
        return normalize_gold(answer, question.choices, question.expression)
    except AmbiguousIndexError:
        raise
    except ValueError:
        # "$1,080", "72 clips", "Yes.", "\\boxed{B}".
        stated = find_stated_answer(f"The answer is {written.answer}", question)
        return stated.answer if stated else None


def parse_written(
    record: dict[str, Any], where: str, questions: dict[str, Question], index: QuestionIndex
) -> list[Rationale]:
    """Returns the rationales of anybody's record; of a teacher whom it does not name, the name is the file's.

    Raises:
        ValueError: A field is malformed, or the question is unknown.
    """
    try:
        own = read_record(record, ints_are_indices=True)
        if not own.rationales:
            return []
        known = questions.get(own.question["id"]) if _is_nested(record) else None
        question = known or find_question(own, where, questions, index)
        answers = [_read_answer(written, question, not _is_nested(record)) for written in own.rationales]
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    parsed = []
    for written, answer in zip(own.rationales, answers, strict=True):
        teacher = written.teacher or Path(where.rpartition(":")[0]).name.split(".")[0]
        rationale = Rationale(
            question_id=question.id,
            task=question.task,
            split=question.split,
            teacher=teacher,
            # Of a published collection nothing but its teachers' names is known.
            family="unknown" if _is_nested(record) else find_family(teacher, record.get("family")),
            sample=0,
            text=written.text,
            answer=answer,
            correct=is_correct(answer, question),
            finish_reason=next((known for known in get_args(FinishReason) if known == written.reason), "imported"),
            prompt_id="imported",
            thinking=written.thinking,
        )
        parsed.append(rationale if written.thinking else part_thinking(rationale))
    return parsed


def _is_nested(record: dict[str, Any]) -> bool:
    """Says whether a record is of a published collection: {"id", "rationales": {teacher: {"text", ...}}}."""
    return isinstance(record.get("rationales"), dict)


def _number_samples(
    found: list[Rationale], record: dict[str, Any], counts: Counter[tuple[str, str]]
) -> list[Rationale]:
    """Numbers a record's rationales among those of its question and teacher, unless it has its number."""
    if len(found) == 1 and type(record.get("sample")) is int:
        return [replace(found[0], sample=record["sample"])]
    numbered = []
    for rationale in found:
        key = rationale.question_id, rationale.teacher
        numbered.append(replace(rationale, sample=counts[key]))
        counts[key] += 1
    return numbered


def load_rationales(paths: list[str], questions: dict[str, Question]) -> list[Rationale]:
    """Loads the rationales of `questions` from rationale stores and from anybody's files.

    A file that is no store holds records as `tasks.records` describes them, such as published collections with
    `rationales` by teacher. They find their questions by id, or else by text; a teacher whom nothing names is called
    as the file. What a question has several of from one teacher are samples, in the file's order.

    Args:
        paths: Files.
        questions: By id.

    Raises:
        ValueError: A file is empty, it or a record is malformed, a rationale's question is unknown, or a rationale is
            there twice.
    """
    rationales: dict[str, Rationale] = {}
    index = QuestionIndex(questions.values())
    for path in paths:
        counts, own, names, num_records = Counter[tuple[str, str]](), list[Rationale](), set[str](), 0
        before = len(rationales)
        for where, record in _read_whole(path):
            if "text" in record and "question_id" in record:
                if not isinstance(record["question_id"], str) or record["question_id"] not in questions:
                    raise ValueError(f"{where}: a rationale for the unknown question {shorten(record['question_id'])}")
                found = [_parse_flat(record, where)]
            elif _is_nested(record):
                found = parse_written(record, where, questions, index)
            else:
                found = _number_samples(parse_written(record, where, questions, index), record, counts)
                own += found
                names |= record.keys()
                num_records += 1
            for rationale in found:
                _check(rationale, where, questions[rationale.question_id])
                if rationale.id in rationales:
                    raise ValueError(f"{where}: rationale {rationale.id!r} is there twice")
                rationales[rationale.id] = rationale
        if len(rationales) == before and not num_records:
            raise ValueError(f"{path}: no rationales")
        if num_records:
            _say_what_is_missing(path, own, num_records, names)
    return list(rationales.values())


def _say_what_is_missing(path: str, rationales: list[Rationale], num_records: int, names: set[str]) -> None:
    """Warns of a file's rationales without an answer.

    Raises:
        ValueError: The file has no rationales.
    """
    if not rationales:
        raise ValueError(
            f"{path}: 0 of {num_records} records have a rationale; name it `rationale`, `rationales` or `messages`; "
            f"the fields are {shorten(', '.join(sorted(names)))}"
        )
    silent = sum(rationale.answer is None and bool(rationale.text.strip()) for rationale in rationales)
    if silent:
        warnings.warn(
            f"{path}: {silent} of {len(rationales)} rationales state no answer, and so count as wrong; end them with "
            "`The answer is ...`, or give each its own `answer` beside the question's `gold`",
            stacklevel=3,
        )
