"""What Kindred understands of a file of questions and rationales: fields, counts, lengths, examples as they are read.

A record that cannot be used is counted and named here, where the stages refuse the file.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datamodules.examples.tokenization import PROMPT, RATIONALE, build_examples, encode_prompts, split_completion
from datamodules.files.atomic import read_records
from datamodules.rationales.store import Rationale, parse_written, read_flat_rationales
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.question_index import QuestionIndex
from datamodules.tasks.questions import Question, load_questions, parse_question
from datamodules.tasks.records import AmbiguousIndexError, find_index_convention, read_record
from datamodules.text.plain_text import clean, clean_line, shorten
from datamodules.text.words import count_words
from studies.inputs.filter_counts import count_filters, format_filters

COLOURS = {"prompt": "\033[36m", "rationale": "\033[33m", "answer": "\033[32m"}
SHOWN = 5


@dataclass
class DataReport:
    """What a file holds.

    Attributes:
        path: The file.
        num_records: How many records it has.
        used: How many records have each field that is read.
        ignored: Likewise, of the fields that are not.
        questions: By id.
        rationales: Those that fit a question.
        problems: One line for each record that cannot be used.
        num_unmatched: How many of these are rationales of unknown or ambiguous questions.
        num_made_ids: How many records have no id.
        notes: Further lines, as of lengths.
        examples: Texts of the first examples, by part: prompt, rationale, answer.
    """

    path: str
    num_records: int = 0
    used: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    questions: dict[str, Question] = field(default_factory=dict)
    rationales: list[Rationale] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_unmatched: int = 0
    num_made_ids: int = 0
    notes: list[str] = field(default_factory=list)
    examples: list[dict[str, str]] = field(default_factory=list)

    def format(self, colour: bool = False) -> str:
        """Returns the report as text; parts of examples are coloured, or else marked."""
        right = sum(rationale.correct is True for rationale in self.rationales)
        stated = sum(rationale.answer is not None for rationale in self.rationales)
        truncated = sum(rationale.is_truncated for rationale in self.rationales)
        golds = sum(question.gold is not None for question in self.questions.values())
        kinds = Counter[str](question.kind for question in self.questions.values())
        teachers = Counter(rationale.teacher for rationale in self.rationales)
        total = len(self.rationales)
        lines = [
            f"{self.path}: {self.num_records} records",
            f"fields read     {_list(self.used)}",
            f"fields ignored  {_list(self.ignored)}",
            f"questions       {len(self.questions)}: {golds} with a gold answer, {_list(kinds)}; "
            f"{self.num_made_ids} records without an id",
            f"rationales      {total} by {_list(teachers)}: {stated} state an answer, {right} right, "
            f"{truncated} truncated, {self.num_unmatched} unmatched",
            *self.notes,
        ]
        lines += [f"cannot be used  {len(self.problems)} records"] if self.problems else []
        lines += [f"  {shorten(problem, 300)}" for problem in self.problems[:SHOWN]]
        if self.questions and not golds:
            lines.append("no question has a gold answer: name it `gold` or `answer`; correct_only leaves nothing")
        if total and not stated:
            lines.append("no rationale states an answer: end them with `The answer is ...`, or set correct_only=false")
        shown = [clean_line(line) for line in lines]
        for number, example in enumerate(self.examples, start=1):
            shown.append(f"--- example {number} of {len(self.examples)}")
            for part, text in example.items():
                own = clean(text)
                shown.append(f"{COLOURS[part]}{own}\033[0m" if colour else f"[{part}] {own}")
        return "\n".join(shown)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in counts.items()) or "none"


def _read_each(report: DataReport) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, record in read_records(Path(report.path)):
        report.num_records += 1
        yield where, record


def inspect_file(path: str, questions: str | None = None) -> DataReport:
    """Reads a file record by record, and goes on after one that cannot be used.

    Args:
        path: The file.
        questions: Where the questions of its rationales are; None for the file itself.

    Raises:
        ValueError: The file cannot be read at all.
    """
    report = DataReport(path)
    records = list(_read_each(report))
    is_store = bool(records) and all("question_id" in record and "text" in record for _, record in records)
    indices = find_index_convention(record for _, record in records)
    report.questions = {item.id: item for item in load_questions(questions)} if questions else {}
    unreadable = set[str]()
    for where, record in records:
        try:
            used = set(record) if is_store else set(read_record(record, True).used)
            report.used.update(name for name in record if name in used)
            report.ignored.update(name for name in record if name not in used)
            if questions is None and not is_store:
                stem = Path(path).name.split(".")[0]
                question = parse_question(record, where, stem, "train", indices)
                report.num_made_ids += record.get("id") is None and record.get("question_id") is None
                known = report.questions.setdefault(question.id, question)
                if known != question:
                    raise ValueError(f"{where}: question {question.id!r} is another one in {known.place}")
        except (AmbiguousIndexError, ValueError) as error:
            unreadable.add(where)
            report.problems.append(str(error) if str(error).startswith(path) else f"{where}: {error}")
    if is_store:
        report.rationales = read_flat_rationales(path)
        report.num_unmatched = sum(item.question_id not in report.questions for item in report.rationales)
        return report
    index, counts = QuestionIndex(report.questions.values()), Counter[tuple[str, str]]()
    for where, record in records:
        if where in unreadable:
            continue
        try:
            for rationale in parse_written(record, where, report.questions, index):
                key = rationale.question_id, rationale.teacher
                report.rationales.append(replace(rationale, sample=counts[key]))
                counts[key] += 1
        except ValueError as error:
            report.num_unmatched += "question" in str(error)
            report.problems.append(str(error))
    return report


def add_filters(report: DataReport) -> None:
    """Notes what each filter would leave of the rationales, if there are any."""
    if report.rationales:
        report.notes += format_filters(count_filters(report.rationales), len(report.rationales))


def _describe_thinking(report: DataReport, pairs: list[tuple[Question, Rationale]], prompt: Prompt) -> list[str]:
    """Returns a line on what stands between think marks, which no student learns by default; none without any."""
    thought = [item for item in report.rationales if item.thinking]
    if not thought:
        return []
    alone = sum(bool(item.thinking) and not split_completion(question, item, prompt)[0] for question, item in pairs)
    empty = sum(not item.text.strip() for item in thought)
    return [
        f"thinking        {len(thought)} rationales have some, which no student learns by default: what is left is an "
        f"answer alone in {alone}, nothing in {empty}; data.controls.thinking=keep teaches it where an answer follows"
    ]


def add_examples(report: DataReport, tokenizer: Any, prompt: Prompt, max_length: int, number: int = 3) -> None:
    """Notes lengths, in tokens or without a tokenizer in words, and takes the first examples as they are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = [
            (report.questions[item.question_id], item)
            for item in report.rationales
            if item.question_id in report.questions and item.text.strip()
        ]
    report.notes += _describe_thinking(report, pairs, prompt)
    if tokenizer is not None and pairs:
        examples = build_examples(tokenizer, prompt, pairs)
        lengths = sorted(len(example.token_ids) for example in examples)
        sums = [sum(int((example.segments == part).sum()) for example in examples) for part in (PROMPT, RATIONALE)]
        answers = sum(lengths) - sum(sums)
        report.notes.append(
            f"tokens          {sum(lengths)}: {sums[0]} of prompts, {sums[1]} of rationales, {answers} of answers; "
            f"examples of {lengths[0]} to {lengths[-1]}, half of them up to {lengths[len(lengths) // 2]}; "
            f"{sum(length > max_length for length in lengths)} longer than max_length={max_length}"
        )
    elif pairs:
        lengths = sorted(count_words(item.text) for _, item in pairs)
        report.notes.append(
            f"words           rationales of {lengths[0]} to {lengths[-1]}, half of them up to "
            f"{lengths[len(lengths) // 2]}; tokens with --tokenizer"
        )
    for question, rationale in pairs[:number]:
        text, answer = split_completion(question, rationale, prompt)
        posed = (
            prompt.render(question, False) if tokenizer is None else encode_prompts(tokenizer, prompt, [question])[0][0]
        )
        report.examples.append({"prompt": posed, "rationale": text, "answer": answer or "(states none)"})
