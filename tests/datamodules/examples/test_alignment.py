"""Which of a teacher's rows governs each of a student's."""

import itertools

import numpy as np
import pytest

from datamodules.examples.alignment import CLASSES, align, count_classes
from datamodules.text.token_bytes import END, SPECIAL, VocabularyBytes


def make_vocabulary(*tokens: bytes) -> VocabularyBytes:
    """Returns the vocabulary of these tokens, and of one more that ends a turn."""
    return VocabularyBytes.from_tokens([*tokens, b""], [0] * len(tokens) + [SPECIAL | END])


def describe(student: list[bytes], teacher: list[bytes]) -> list[tuple[str, int, int, int]]:
    """Aligns two ways to cut a text, an end of turn after each; returns each row's class, governing row, out, chunk."""
    parts = [*student], [*teacher]
    vocabularies = [make_vocabulary(*part) for part in parts]
    alignment = align(range(len(student) + 1), range(len(teacher) + 1), *vocabularies)
    assert alignment is not None
    planes = (alignment.classes, alignment.governing, alignment.out, alignment.chunks)
    return [(CLASSES[kind], *rest) for kind, *rest in zip(*(plane.tolist() for plane in planes), strict=True)]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([b"ab", b"c"], [b"ab", b"c"], [("strict", 0, 0, 0), ("strict", 1, 0, 1)]),
        ([b"a", b"b", b"c"], [b"abc"], [("exact", 0, 0, 0), ("conditional", 0, 1, 0), ("conditional", 0, 2, 0)]),
        ([b"abc"], [b"a", b"b", b"c"], [("spanning", 0, 0, 0)]),
        (
            [b"ab", b"cd", b"e"],
            [b"a", b"bc", b"de"],
            [("spanning", 0, 0, 0), ("none", 1, 1, 0), ("conditional", 2, 1, 0)],
        ),
        (
            [b"2", b"0", b"1", b" a"],
            [b"201", b" a"],
            [("exact", 0, 0, 0), *(("conditional", 0, out, 0) for out in (1, 2)), ("strict", 1, 0, 1)],
        ),
        ([b"\xf0\x9f", b"\x91\xa9"], [b"\xf0\x9f\x91", b"\xa9"], [("exact", 0, 0, 0), ("none", 0, 2, 0)]),
        ([b"a\r\n", b"b"], [b"a", b"\r", b"\nb"], [("spanning", 0, 0, 0), ("conditional", 2, 1, 0)]),
        ([b"\t\t", b"\t"], [b"\t", b"\t\t"], [("spanning", 0, 0, 0), ("conditional", 1, 1, 0)]),
        # The space that SentencePiece writes before the text.
        ([b"If", b" x"], [b" If", b" x"], [("conditional", 0, 1, 0), ("strict", 1, 0, 1)]),
        ([b"If", b" x"], [b" ", b"If", b" x"], [("strict", 1, 0, 0), ("strict", 2, 0, 1)]),
        ([b" If", b" x"], [b"If", b" x"], [("none", -1, 0, 0), ("strict", 1, 0, 1)]),
        ([b" ", b"If"], [b"If"], [("none", -1, 0, 0), ("strict", 0, 0, 0)]),
        ([b" If"], [b" If"], [("strict", 0, 0, 0)]),
    ],
)
def test_classes(student: list[bytes], teacher: list[bytes], expected: list[tuple[str, int, int, int]]) -> None:
    last = ("strict", len(teacher), 0, expected[-1][3] + 1)
    assert describe(student, teacher) == [*expected, last]


def test_ends_of_turn_are_rows_of_their_own_and_cut_texts_have_none() -> None:
    student, teacher = make_vocabulary(b"ab", b"c"), make_vocabulary(b"a", b"bc")
    cut = align([0, 1], [0, 1], student, teacher)
    assert cut is not None and count_classes([cut]) == dict.fromkeys(CLASSES, 0) | {"spanning": 1, "conditional": 1}
    half = align([0, 1, 2], [0, 1], student, teacher)
    assert half is not None and CLASSES[half.classes[-1]] == "none"
    assert (half.governing[-1], half.chunks[-1]) == (-1, -1)


def test_other_texts_are_not_aligned() -> None:
    student, teacher = make_vocabulary(b"ab", b"c"), make_vocabulary(b"a", b"bd")
    assert align([0, 1], [0, 1], student, teacher) is None
    assert align([0], [0], make_vocabulary(b"a"), make_vocabulary(b"  a")) is None


def test_a_row_without_text_has_no_class() -> None:
    vocabulary = VocabularyBytes.from_tokens([b"a", b"", b""], [0, SPECIAL, SPECIAL | END])
    alignment = align([0, 1, 0, 2], [0, 0, 2], vocabulary, vocabulary)
    assert alignment is not None
    assert [CLASSES[kind] for kind in alignment.classes] == ["strict", "none", "strict", "strict"]
    assert alignment.governing.tolist() == [0, -1, 1, 2] and alignment.chunks.tolist() == [0, -1, 1, 2]


def test_planes_are_small() -> None:
    alignment = align([0], [0], make_vocabulary(b"a"), make_vocabulary(b"a"))
    assert alignment is not None
    assert [plane.dtype for plane in vars(alignment).values()] == [np.int8, *[np.int32] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_chunks_are_the_groups_of_trl(seed: int) -> None:
    peer = pytest.importorskip("trl.experimental.gold.gold_trainer").ULDLoss._align_by_byte_offsets
    generator = np.random.default_rng(seed)
    text = bytes(generator.integers(97, 100, 40).tolist())
    sides = []
    for _ in range(2):
        cuts = [0, *sorted(generator.choice(np.arange(1, 40), 15, replace=False).tolist()), 40]
        sides.append(list(itertools.pairwise(cuts)))
    vocabularies = [make_vocabulary(*(text[start:end] for start, end in side)) for side in sides]
    alignment = align(range(16), range(16), *vocabularies)
    assert alignment is not None
    for chunks, groups in zip((alignment.chunks, alignment.teacher_chunks), peer(*sides), strict=True):
        assert [np.flatnonzero(chunks == number).tolist() for number in range(chunks.max() + 1)] == groups
