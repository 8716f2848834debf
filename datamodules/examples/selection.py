"""Which rationales a student learns from: filters one after the other, and how many each leaves."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from datamodules.examples.store import ExampleView
from datamodules.files.atomic import hash_text
from datamodules.rationales.controls import match_lengths
from datamodules.tasks.questions import Question
from datamodules.text.words import separate_characters


@dataclass(frozen=True)
class RationaleFilters:
    """Which rationales are used.

    Args:
        teachers: Only the rationales of these teachers; null uses all that the files hold.
        correct_only: Only rationales that reached the gold answer.
        keep_truncated: Also rationales that were cut off where their teacher ran out of tokens.
        samples_per_question: At most so many rationales of each question and teacher.
        answered_by: Only questions that each of these teachers answered, whether it is used or not; `teachers` says
            whose rationales are. Arms with one teacher each then learn from the same questions.
        solved_by: Likewise, only questions that each of these teachers answered right at least once.
        matched_with: Only rationales to which each of these teachers, the used one among them, has another with
            nearly as many words; the arms of all then have equally many. Chosen after the other filters.
        match_seed: Of the choice among rationales of matched lengths.
        without: Only rationales in which none of these words is, nor in their question or its options, whatever the
            case.
    """

    teachers: list[str] | None = None
    correct_only: bool = True
    keep_truncated: bool = False
    samples_per_question: PositiveInt | None = None
    answered_by: list[str] | None = None
    solved_by: list[str] | None = None
    matched_with: list[str] | None = None
    match_seed: NonNegativeInt = 0
    without: list[str] | None = None

    def __post_init__(self) -> None:
        if not all(word.strip() for word in self.without or ()):
            raise ValueError("data.filters.without holds an empty word")

    @property
    def compared(self) -> set[str]:
        """The teachers whose rationales decide which are kept, whether they are used or not."""
        named = (self.teachers, self.answered_by, self.solved_by, self.matched_with)
        return {name for names in named for name in names or ()}


@dataclass(frozen=True)
class ValidationSplit:
    """Which questions are held out of training: each with its translations, and with the others of its group.

    Args:
        fraction: Share of the questions, or of groups of them, that is held out for `val/` metrics.
        seed: Chooses them.
    """

    fraction: ClosedUnitInterval = 0.0
    seed: NonNegativeInt = 0

    def split(self, examples: ExampleView, clusters: Mapping[str, str]) -> tuple[ExampleView, ExampleView]:
        """Returns what is trained on, and what is held out.

        Args:
            examples: Of any questions.
            clusters: By question id, what a question shares with those that go with it.

        Raises:
            ValueError: Nothing is left to train on.
        """
        shared = [clusters[question_id] for question_id in examples.column("question_id")]
        names = sorted(set(shared), key=lambda name: hash_text(f"{self.seed}{name}"))
        held_out = set(names[: round(self.fraction * len(names))])
        is_held_out = np.array([name in held_out for name in shared])
        if is_held_out.all():
            raise ValueError(f"data.validation.fraction={self.fraction} leaves no question to learn from")
        if self.fraction > 0 and not held_out:
            warnings.warn(
                f"data.validation.fraction={self.fraction} holds out none of {len(names)} questions, so that there are "
                "no val/ metrics; raise it, or set it to 0",
                stacklevel=2,
            )
        return examples.where(~is_held_out), examples.where(is_held_out)


def refuse_idle_seed(name: str, seed: int | None, limit: int | None) -> None:
    """Raises a ValueError where a seed is to draw the questions of a limit, and there is none."""
    if limit is None and seed is not None:
        raise ValueError(f"{name}={seed} would be ignored: it draws those of data.limit")


def draw_questions(questions: Sequence[Question], limit: int | None, seed: int | None) -> Sequence[Question]:
    """Returns so many questions, in their order: the first, or those that a seed draws, with their clusters together.

    Of one seed, a smaller number's are among a larger one's.

    Args:
        questions: All.
        limit: How many; None keeps all.
        seed: Orders them before the first are taken; None leaves them in their order.

    Raises:
        ValueError: A seed is to draw more than there are.
    """
    if limit is None or seed is None:
        return questions[:limit]
    if limit > len(questions):
        raise ValueError(f"data.limit={limit}: there are only {len(questions)} questions to draw from")
    order = sorted(questions, key=lambda question: hash_text(f"{seed} {question.cluster or question.id}"))
    drawn = {question.id for question in order[:limit]}
    return [question for question in questions if question.id in drawn]


def find_words(words: Sequence[str], texts: Mapping[str, str]) -> set[str]:
    """Returns the names of the texts that hold one of the words as a word of its own, whatever the case.

    In scripts without spaces a word stands wherever its characters do.
    """
    forms = [(own := word.strip(), separate_characters(own)) for word in words]
    bodies = [re.escape(own) if apart == own else r"\s+".join(map(re.escape, apart.split())) for own, apart in forms]
    pattern = re.compile("|".join(rf"(?<!\w){body}(?!\w)" for body in bodies), re.IGNORECASE)
    return {name for name, text in texts.items() if pattern.search(separate_characters(text))}


def select_rationales(
    examples: ExampleView, filters: RationaleFilters, source: str, with_words: Set[str] = frozenset()
) -> tuple[ExampleView, dict[str, int]]:
    """Returns the rationales that the filters keep, in their order, and how many are left after each filter.

    Args:
        examples: All rationales of the files.
        filters: What is kept.
        source: The files, for messages.
        with_words: Ids of the rationales that hold, with their questions, a word of `without`.

    Raises:
        ValueError: Nothing is left, a teacher has written nothing, or a rationale is empty.
    """
    present = set(examples.column("teacher"))
    used = present if filters.teachers is None else set(filters.teachers)
    if absent := sorted(filters.compared - present):
        raise ValueError(f"{source}: no rationale of {absent}; there are {sorted(present)}")
    if filters.matched_with and (lacking := sorted(used - set(filters.matched_with))):
        raise ValueError(f"data.filters.matched_with does not name {lacking}, whose rationales are used")
    number, num_left = len(examples), dict[str, int]()
    why = _explain_none_correct(examples) if filters.correct_only else None

    def keep(name: str, kept: np.ndarray) -> None:
        nonlocal examples
        examples = examples.where(kept.astype(bool))
        num_left[name] = int(np.isin(examples.column("teacher").astype(str), sorted(used)).sum())

    is_whole = ~examples.column("truncated").astype(bool) | filters.keep_truncated
    # What is left out answers no question.
    shared = _find_shared_questions(examples.where(is_whole), filters)
    keep("rationales", np.isin(examples.column("teacher").astype(str), sorted({*used, *(filters.matched_with or [])})))
    truncated = examples.column("truncated").astype(bool)
    if truncated.any() and not filters.keep_truncated:
        keep("not truncated", ~truncated)
    if filters.answered_by or filters.solved_by:
        keep("shared questions", np.array([identifier in shared for identifier in examples.column("question_id")]))
    empty = (examples.lengths == 0) & examples.column("imported").astype(bool)
    if num_empty := int(empty.sum()):
        warnings.warn(f"{source}: {num_empty} published rationales are empty and are left out", stacklevel=2)
        keep("not empty", ~empty)
    if filters.correct_only:
        keep("correct", examples.column("correct") == True)  # noqa: E712 (null where unknown)
    if filters.without is not None:
        keep("without", np.array([identifier not in with_words for identifier in examples.column("id")], bool))
    if filters.samples_per_question is not None:
        seen: Counter[tuple[str, str]] = Counter()
        places = []
        for key in zip(examples.column("question_id"), examples.column("teacher"), strict=True):
            places.append(seen[key])
            seen[key] += 1
        keep("samples_per_question", np.array(places) < filters.samples_per_question)
    if (examples.lengths == 0).any():
        identifier = examples.where(examples.lengths == 0)[0].id
        raise ValueError(f"rationale {identifier!r} has an empty completion; correct_only leaves such ones out")
    if filters.matched_with:
        # Words, so that students with different tokenizers get the same rationales.
        lengths, names, ids = (examples.column(name).tolist() for name in ("num_words", "teacher", "question_id"))
        keep("matched lengths", match_lengths(lengths, names, ids, filters.matched_with, filters.match_seed))
        keep("matched lengths", np.isin(examples.column("teacher").astype(str), sorted(used)))
    if num_repeats := int(examples.column("repeats").astype(bool).sum()):
        warnings.warn(
            f"{source}: {num_repeats} of {len(examples)} rationales repeat another sample of their teacher word by "
            "word, and are learnt from as often as they are there",
            stacklevel=2,
        )
    if not len(examples):
        on = [
            name
            for name in ("correct_only", "answered_by", "solved_by", "matched_with", "without")
            if vars(filters)[name]
        ]
        named = f" ({', '.join(f'{name} is on' for name in on)})" if on else ""
        if num_left.get("not truncated") == 0:
            named = (
                ": all of them are truncated; set data.filters.keep_truncated, or annotate with a larger max_new_tokens"
            )
        raise ValueError(
            f"{source}: none of {number} rationales is left after filtering{named}; "
            f"{why or 'there is nothing to supervise'}"
        )
    return examples, num_left


def _explain_none_correct(examples: ExampleView) -> str | None:
    """Returns why no rationale can be right, with the way out; None where one is, or is wrong for all it says."""
    if all(correct is None for correct in examples.column("correct")):
        return "no question has a gold answer: add `gold` or `answer`, or set data.filters.correct_only=false"
    if not examples.column("answered").any():
        return (
            "none of them states an answer that could be read: end them with `The answer is ...`, give each its own "
            "`answer` beside the question's `gold`, or set data.filters.correct_only=false"
        )
    return None


def _find_shared_questions(examples: ExampleView, filters: RationaleFilters) -> set[str]:
    """Returns the questions that the teachers of `answered_by` answered and those of `solved_by` answered right."""
    ids, teachers = examples.column("question_id"), examples.column("teacher")
    shared = set(ids)
    for names, column in ((filters.answered_by, "answered"), (filters.solved_by, "correct")):
        fits = examples.column(column) == True  # noqa: E712 (null where unknown)
        for name in names or ():
            shared &= set(ids[fits & (teachers == name)])
    return shared
