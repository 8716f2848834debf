"""Controls of a comparison of teachers: seeded changes to their rationales that leave out one explanation at a time.

A rationale teaches by what it says, by its form, by its length and by where its answer stands. Where the answer stands
is made the same for all (`remove_answer`), what is said is taken away and the form kept (`shuffle_rationales`), or
equally many of each length are chosen (`match_lengths`).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from datamodules.answers import extract_neutral
from datamodules.files import hash_text
from datamodules.questions import Question
from datamodules.rationales import Rationale
from datamodules.statements import SENTENCE_END, list_statements

AnswerPosition = Literal["first", "last"]
Pair = tuple[Question, Rationale]
# Lengths within one bin differ by at most a quarter.
BIN_RATIO = 1.25


@dataclass(frozen=True)
class TextControl:
    """What is changed in rationales before they are tokenized.

    Attributes:
        answer_position: Where all answer sentences stand, in the prompt's words; None leaves each text as it is.
        shuffle_seed: Gives each rationale another's reasoning, see `shuffle_rationales`; None does not.
    """

    answer_position: AnswerPosition | None = None
    shuffle_seed: int | None = None

    @property
    def position(self) -> AnswerPosition | None:
        """Where the answer stands; of shuffled rationales last, unless said otherwise, since none is in the text."""
        return self.answer_position or ("last" if self.shuffle_seed is not None else None)


AS_WRITTEN = TextControl()


def remove_answer(text: str, question: Question, answer: str | None) -> str:
    """Returns a rationale without the sentences that state its answer, wherever they stand."""
    stated = list_statements(text, question)
    if (last := extract_neutral(text, question)) and last.rule == "line letter":
        stated.append(last)
    spans = [(found.start, found.end) for found in stated if found.answer == answer]
    breaks = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    kept = [
        text[start:end] for start, end in pairwise(breaks) if not any(a < end and start < b for a, b in spans)
    ]  # fmt: skip
    return "".join(kept).strip()


def shuffle_rationales(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Gives each rationale the reasoning of another question's, and leaves it its own answer.

    The reasonings of one task, teacher and sample with equally right answers change places in one cycle, so each is
    used once and none stays. What is left to learn from is how such a text looks, and the answer. A rationale is left
    out if it consists of its answer alone, or if there is no other to change places with.

    Args:
        pairs: Questions and their rationales.
        seed: Of the cycle.

    Returns:
        The pairs that are left, in their order.
    """
    reasonings, groups = {}, defaultdict[tuple, list[str]](list)
    for question, rationale in pairs:
        if reasoning := remove_answer(rationale.text.strip(), question, rationale.answer):
            reasonings[rationale.id] = reasoning
            kind = (rationale.task, rationale.teacher, rationale.sample, rationale.correct, rationale.answer is None)
            groups[kind].append(rationale.id)
    donors: dict[str, str] = {}
    for ids in groups.values():
        ids.sort(key=lambda identifier: hash_text(f"{seed}{identifier}"))
        if len(ids) > 1:
            donors |= zip(ids, [*ids[1:], ids[0]], strict=True)
    return [
        (question, replace(rationale, text=reasonings[donors[rationale.id]]))
        for question, rationale in pairs
        if rationale.id in donors
    ]


def match_lengths(
    lengths: np.ndarray, teachers: Sequence[str], question_ids: Sequence[str], compared: Sequence[str], seed: int
) -> np.ndarray:
    """Chooses equally many rationales of each teacher from each range of lengths (coarsened exact matching).

    A range spans a quarter. Where a teacher has more than the one with the fewest, questions are drawn; all teachers
    draw them in the same order.

    Args:
        lengths: int64 [N], tokens of each completion.
        teachers: Who wrote it.
        question_ids: About what.
        compared: The teachers that are matched.
        seed: Of the draw.

    Returns:
        bool [N]; False for all rationales of other teachers.
    """
    bins = defaultdict[int, list[int]](list)
    for number, (length, teacher) in enumerate(zip(lengths.tolist(), teachers, strict=True)):
        if teacher in compared:
            bins[int(math.log(length, BIN_RATIO))].append(number)
    kept = np.zeros(len(lengths), dtype=bool)
    for members in bins.values():
        counts = Counter(teachers[number] for number in members)
        fewest = min(counts[teacher] for teacher in compared)
        seen: Counter[str] = Counter()
        for number in sorted(members, key=lambda number: hash_text(f"{seed}{question_ids[number]}")):
            kept[number] = seen[teachers[number]] < fewest
            seen[teachers[number]] += 1
    return kept
