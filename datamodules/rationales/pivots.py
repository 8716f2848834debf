"""English pivots: a question's rationales, given to its translations; they reason in the language they are in."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from datamodules.answers.grading import is_correct
from datamodules.rationales.store import Rationale
from datamodules.tasks.questions import Question
from datamodules.tasks.translations import has_other_order


def name_pivot(writer: str) -> str:
    """Returns how rationales name their teacher where they are of a question's original, in English."""
    return f"{writer}-pivot"


def _are_same(first: Question, second: Question) -> bool:
    return (first.language, first.question) == (second.language, second.question)


def give_translations(
    rationales: Iterable[Rationale], originals: Iterable[Question], translations: Sequence[Question]
) -> tuple[list[Rationale], Counter[str]]:
    """Returns the rationales of questions' originals as the questions' own.

    Args:
        rationales: Of the originals.
        originals: What the rationales are about.
        translations: Questions that name their `original`, or have their `parallel` in common with it.

    Returns:
        The rationales, by translation, and how many translations were left out, and why.

    Raises:
        ValueError: No translation has an original among these, or some are these themselves.
    """
    by_question, known, parallel = defaultdict[str, list[Rationale]](list), dict[str, Question](), dict[str, Question]()
    for question in originals:
        known[question.id] = question
        if question.parallel is not None:
            parallel[question.parallel] = question
    if own := [item for item in translations if item.id in known and _are_same(item, known[item.id])]:
        raise ValueError(
            f"{own[0].place}: question {own[0].id!r} is both a question and its translation, in language "
            f"{own[0].language!r}, as {len(own)} of {len(translations)} translations are; give others"
        )
    for rationale in rationales:
        by_question[rationale.question_id].append(rationale)
    counts, given = Counter[str](), list[Rationale]()
    for question in translations:
        original = known.get(question.original or "") or parallel.get(question.parallel or "")
        if original is None:
            counts["translations left out: of no question here"] += 1
        elif (original.gold, len(original.choices or ())) != (question.gold, len(question.choices or ())):
            counts["translations left out: another gold answer than the original"] += 1
        elif has_other_order(original, question):
            counts["translations left out: options in another order than the original's"] += 1
        elif not by_question[original.id]:
            counts["translations left out: no rationale"] += 1
        else:
            counts["translations"] += 1
            given += [
                replace(
                    rationale,
                    question_id=question.id,
                    task=question.task,
                    split=question.split,
                    correct=is_correct(rationale.answer, question),
                )
                for rationale in by_question[original.id]
            ]
    if counts["translations left out: of no question here"] == len(translations):
        first = translations[0]
        raise ValueError(
            f"{first.place}: question {first.id!r} and {len(translations) - 1} others translate none of these "
            f"questions; `original` of the first is {first.original!r}, `parallel` {first.parallel!r}"
        )
    return given, counts
