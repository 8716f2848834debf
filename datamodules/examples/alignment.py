"""Where two tokenizations of one text meet: which of a teacher's rows governs each of a student's.

A token of the student that covers bytes [a, f) of the text belongs to the teacher's row whose token is the first to
end after a. What that row can say of it depends on where the two begin and end, and on nothing else: neither on
strings nor on characters, which a byte-level token may split.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.text.token_bytes import VocabularyBytes

NONE, STRICT, EXACT, CONDITIONAL, SPANNING = range(5)
CLASSES = ("none", "strict", "exact", "conditional", "spanning")


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the rows of a completion in the student's tokens, S of them, follow from the teacher's T rows.

    Attributes:
        classes: int8 [S]. STRICT: the student's token covers the bytes of one teacher token. EXACT: it begins with
            one and ends inside it. CONDITIONAL: it begins inside one and ends no later. SPANNING: it begins with one
            and ends after it. NONE: it begins inside one and ends after it, or stands for no text. A STRICT row is
            an exact one, too. Ends of turn are STRICT.
        governing: int32 [S]; the row of the teacher's token that is the first to end after the student's begins; -1
            where there is none.
        out: int32 [S]; the bytes of that token that were written before the student's begins.
        chunks: int32 [S]; the number of the shortest span with common ends that the token lies in; -1 for none.
        teacher_chunks: int32 [T]; likewise of the teacher's tokens.
    """

    classes: np.ndarray
    governing: np.ndarray
    out: np.ndarray
    chunks: np.ndarray
    teacher_chunks: np.ndarray


def align(
    student_ids: Sequence[int] | np.ndarray,
    teacher_ids: Sequence[int] | np.ndarray,
    student: VocabularyBytes,
    teacher: VocabularyBytes,
    may_part: bool = False,
) -> Alignment | None:
    """Walks over the ends of both tokenizations of a completion.

    The space that SentencePiece writes before a text counts as the byte before the text. Of a teacher that writes it
    the student's first row is CONDITIONAL on it; of a student that writes it alone, the first row is NONE.

    Args:
        student_ids: The completion's ids, the end of turn included where there is one.
        teacher_ids: Likewise of the teacher.
        student: The student's vocabulary.
        teacher: The teacher's vocabulary.
        may_part: The texts may part, as where an answer sentence was added to what the teacher wrote: the student's
            tokens that end beyond what both have in common are NONE.

    Returns:
        The alignment; None where the tokens make different texts, or, if they may part, have nothing in common.
    """
    assert len(student_ids) and len(teacher_ids), "a completion without tokens"
    student_ids, teacher_ids = np.asarray(student_ids), np.asarray(teacher_ids)
    text, teacher_text = student.join(student_ids), teacher.join(teacher_ids)
    is_whole = True
    if text == teacher_text:
        start, teacher_start = 0, 0
    elif teacher_text == b" " + text:
        start, teacher_start = 0, -1
    elif text == b" " + teacher_text:
        start, teacher_start = -1, 0
    else:
        has_space, teacher_has_space = text.startswith(b" "), teacher_text.startswith(b" ")
        start, teacher_start = -int(has_space > teacher_has_space), -int(teacher_has_space > has_space)
        is_whole = False
    shared = _count_shared(text[-start:], teacher_text[-teacher_start:])
    if not is_whole and not (may_part and shared):
        return None
    lengths, teacher_lengths = student.lengths[student_ids], teacher.lengths[teacher_ids]
    ends, teacher_ends = start + np.cumsum(lengths), teacher_start + np.cumsum(teacher_lengths)
    begins, teacher_begins = ends - lengths, teacher_ends - teacher_lengths
    governing = np.searchsorted(teacher_ends, begins, side="right")
    common = np.intersect1d(ends[lengths > 0], teacher_ends[teacher_lengths > 0])
    common = common[common <= shared]
    last = common.max(initial=-1)
    chunks = np.where((lengths > 0) & (ends <= last), np.searchsorted(common, ends), -1)
    teacher_chunks = np.where((teacher_lengths > 0) & (teacher_ends <= last), np.searchsorted(common, teacher_ends), -1)

    has_row = (lengths > 0) & (governing < len(teacher_ids)) & (begins >= teacher_start) & (ends <= shared)
    row = np.where(has_row, governing, 0)
    out, left = begins - teacher_begins[row], teacher_ends[row] - ends
    classes = np.where(left >= 0, np.where(out > 0, CONDITIONAL, EXACT), np.where(out > 0, NONE, SPANNING))
    classes[(out == 0) & (left == 0)] = STRICT
    classes, governing, out = (np.where(has_row, plane, fill) for plane, fill in ((classes, NONE), (row, -1), (out, 0)))
    if is_whole and student_ids[-1] in student.ends and teacher_ids[-1] in teacher.ends:
        classes[-1], governing[-1] = STRICT, len(teacher_ids) - 1
        chunks[-1] = teacher_chunks[-1] = len(common)
    return Alignment(
        classes.astype(np.int8),
        governing.astype(np.int32),
        out.astype(np.int32),
        chunks.astype(np.int32),
        teacher_chunks.astype(np.int32),
    )


def _count_shared(first: bytes, second: bytes) -> int:
    """Returns the number of bytes with which both begin."""
    number = min(len(first), len(second))
    differs = np.frombuffer(first[:number], np.uint8) != np.frombuffer(second[:number], np.uint8)
    return int(differs.argmax()) if differs.any() else number


def count_classes(alignments: Iterable[Alignment]) -> dict[str, int]:
    """Returns how many of the student's rows have each class, by name; those of STRICT are not among the exact."""
    counts: Counter[int] = Counter()
    for alignment in alignments:
        values, numbers = np.unique(alignment.classes, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return {name: counts[index] for index, name in enumerate(CLASSES)}
