"""How good and of what kind each teacher's rationales are, by task and language: a table and a picture."""

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from datamodules.answers.extractors import EXTRACTORS, extract_neutral
from datamodules.files.atomic import atomic_path, read_records
from datamodules.files.command_line import CommandLine
from datamodules.rationales.store import Rationale, find_repeats, load_rationales, read_flat_rationales
from datamodules.tasks.questions import Question, load_questions
from datamodules.tasks.records import read_record
from datamodules.text.languages import ENGLISH
from datamodules.text.sentences import ANY_SENTENCE_END
from datamodules.text.words import count_words
from lightning_modules.evaluation.text_similarity import split_words
from studies.text_table import format_table

NOTES = """\
answered   an answer is recorded: the teacher's own if it was published, else the one that was extracted
right      it is the gold answer (of all that have a gold answer)
NAME       that extractor finds an answer in the text alone; a published text may have lost its answer sentence
cut        truncated at the token limit (of those that say so)
tokens     mean of the teacher's tokens; words: mean of the text's words, or characters where no spaces part these
first/last the first, or the last, of several sentences alone yields the answer that the text ends up with
options    names at least two options, by text or by letter
same       repeats a text that the same teacher already gave in this task
twice      repeats a text that the same teacher already gave to the same question"""


@dataclass(frozen=True)
class Quality:
    """What is known of one teacher's rationales of one task; shares are None where nothing can tell.

    Attributes:
        teacher: Who wrote them.
        task: Of their questions; with the language, as `mgsm/de`, where that is not English.
        number: Of rationales.
        shares: By the names of `NOTES`: answered, right, each extractor, cut, first, last, options, same, twice.
        tokens: Mean tokens of a completion, by the teacher's tokenizer.
        words: Mean words.
    """

    teacher: str
    task: str
    number: int
    shares: dict[str, float | None]
    tokens: float | None
    words: float


def _mean(values: list[Any]) -> float | None:
    """Returns the mean of what is not None."""
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None


def locate_answer(text: str, question: Question) -> tuple[bool, bool] | None:
    """Says whether the first, and whether the last sentence alone yields the text's answer.

    None for a text without an answer or with one sentence.
    """
    sentences = [part for part in ANY_SENTENCE_END.split(text.strip()) if part]
    answer = extract_neutral(text, question)
    if answer is None or len(sentences) < 2:
        return None
    alone = [extract_neutral(sentence, question) for sentence in (sentences[0], sentences[-1])]
    first, last = (found is not None and found.answer == answer.answer for found in alone)
    return first, last


def names_options(text: str, question: Question) -> bool | None:
    """Says whether a text names two options or more; None for a question without options."""
    if question.choices is None:
        return None
    words = f" {' '.join(split_words(text))} "
    named = 0
    for letter in question.letters:
        choice = " ".join(split_words(question.choice(letter)))
        by_letter = re.search(rf"(?<!\w){letter}[).:]|\b[Oo]ption {letter}\b", text)
        named += bool(by_letter or (choice and f" {choice} " in words))
    return named >= 2


def name_task(question: Question) -> str:
    """Returns what a question's task is called where languages are told apart: `mgsm`, and `mgsm/de`."""
    return question.task if question.language == ENGLISH else f"{question.task}/{question.language}"


def count_repeats(texts: list[str]) -> int:
    """Returns how many texts are there already, whatever their case and spaces."""
    return len(texts) - len({" ".join(text.casefold().split()) for text in texts})


def measure_quality(rationales: list[Rationale], questions: dict[str, Question]) -> list[Quality]:
    """Measures each teacher and task, sorted by task and teacher; a task's other languages than English apart.

    Args:
        rationales: Of any teachers and tasks.
        questions: By id; what a question is needed for stays unknown where it is not there.
    """
    groups = defaultdict(list)
    for rationale in rationales:
        question = questions.get(rationale.question_id)
        groups[rationale.task if question is None else name_task(question), rationale.teacher].append(rationale)
    qualities = []
    for (task, teacher), group in sorted(groups.items()):
        asked = [(item.text, questions[item.question_id]) for item in group if item.question_id in questions]
        places = [locate_answer(text, question) for text, question in asked]
        shares = {
            "answered": _mean([item.answer is not None for item in group]),
            "right": _mean([item.correct for item in group]),
            **{
                name: _mean([extract(text, question) is not None for text, question in asked])
                for name, extract in EXTRACTORS.items()
            },
            "cut": _mean([item.finish_reason == "length" for item in group if item.finish_reason != "imported"]),
            "first": _mean([place[0] for place in places if place]),
            "last": _mean([place[1] for place in places if place]),
            "options": _mean([names_options(text, question) for text, question in asked]),
            "same": count_repeats([item.text for item in group]) / len(group),
            "twice": len(find_repeats(group)) / len(group),
        }
        words = fmean(count_words(item.text) for item in group)
        tokens = _mean([item.num_completion_tokens for item in group])
        qualities.append(Quality(teacher, task, len(group), shares, tokens, words))
    return qualities


def read_files(paths: list[str], source: str | None) -> tuple[list[Rationale], dict[str, Question]]:
    """Reads stores and published collections, and the questions that they hold or that `source` names.

    Raises:
        ValueError: A file is malformed, or a rationale is there twice.
    """
    questions = {item.id: item for item in load_questions(source)} if source else {}
    rationales: dict[tuple[str, str], Rationale] = {}
    for path in paths:
        first = next(read_records(Path(path)), None)
        if first is None:
            raise ValueError(f"{path}: no rationales")
        shape = read_record(first[1], ints_are_indices=True)
        if shape.question["question"] is None and not shape.rationales:
            found = read_flat_rationales(path)
        else:
            # One's own file holds its questions, unless others are named; a published collection always does.
            is_nested = isinstance(first[1].get("rationales"), dict)
            own = {item.id: item for item in load_questions(source if source and not is_nested else path)}
            questions |= own
            found = load_rationales([path], own)
        for item in found:
            if (item.task, item.id) in rationales:
                raise ValueError(f"{path}: rationale {item.id!r} of {item.task} is there twice")
            rationales[item.task, item.id] = item
    return list(rationales.values()), questions


def format_qualities(qualities: list[Quality]) -> str:
    """Returns a Markdown table, a line for each teacher and task."""
    rows = []
    for item in qualities:
        shares = ["–" if value is None else f"{value:.1%}" for value in item.shares.values()]
        tokens = "–" if item.tokens is None else f"{item.tokens:.0f}"
        rows.append([item.task, item.teacher, str(item.number), *shares, tokens, f"{item.words:.0f}"])
    columns = ["task", "teacher", "n", *qualities[0].shares, "tokens", "words"]
    return format_table(columns, rows, right=range(2, len(columns)))


def plot_qualities(qualities: list[Quality], path: Path) -> None:
    """Draws the table: a row for each teacher and task, a panel for what belongs together."""
    # Heavy, and only this needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows: list[Quality | None] = []
    for item in qualities:
        if rows and rows[-1] is not None and rows[-1].task != item.task:
            rows.append(None)
        rows.append(item)
    panels = [
        ("recorded answer", ["answered", "right"]),
        ("answers found, by extractor", list(EXTRACTORS)),
        ("answer's place", ["first", "last"]),
        ("names options", ["options"]),
        ("cut; repeated", ["cut", "same", "twice"]),
    ]
    height = 1.4 + 0.19 * len(rows)
    figure, axes = plt.subplots(1, len(panels) + 1, sharey=True, figsize=(15, height), width_ratios=[1.0] * 5 + [1.2])
    places = [(place, item) for place, item in enumerate(rows) if item is not None]
    for axis, (title, names) in zip(axes, panels, strict=False):
        for name, marker, colour in zip(names, "os^D", ("C0", "C1", "C2", "C3"), strict=False):
            known = [(place, share) for place, item in places if (share := item.shares[name]) is not None]
            axis.plot(
                [100 * share for _, share in known], [place for place, _ in known], marker, color=colour,
                markersize=4, alpha=0.85, label=name,
            )  # fmt: skip
        axis.set_xlim(-3, 103)
        axis.set_title(title, fontsize=9, pad=18)
        axis.set_xlabel("%", fontsize=8)
        if len(names) > 1:
            axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    axes[-1].barh([place for place, _ in places], [item.words for _, item in places], color="0.6", height=0.7)
    axes[-1].set_title("words, mean", fontsize=9, pad=18)
    for axis in axes:
        axis.grid(axis="both", alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks([place for place, _ in places], [f"{item.task}  {item.teacher}" for _, item in places])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def summarize(args: list[str]) -> None:
    """Prints the table of `annotate.py summary`, and draws it if a picture is wanted."""
    parser = CommandLine(
        prog="python -m scripts.annotate summary",
        description=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="rationale store or published collection")
    parser.add_argument("--questions", metavar="SOURCE", help="the stores' questions; without, some columns stay empty")
    parser.add_argument("--png", type=Path, metavar="FILE", help="the table as a picture")
    parsed = parser.parse_args(args)
    qualities = measure_quality(*read_files(parsed.files, parsed.questions))
    print(f"{format_qualities(qualities)}\n\n{NOTES}")
    if parsed.png:
        plot_qualities(qualities, parsed.png)
