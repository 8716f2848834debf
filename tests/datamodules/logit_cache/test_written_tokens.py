"""Tests of tokens as a server names them: taken out of a reply, given ids, and aligned with a student's."""

import math
from pathlib import Path

import numpy as np
import pytest

from datamodules.examples.alignment import CONDITIONAL, EXACT, NONE, SPANNING, STRICT, align
from datamodules.logit_cache.conversion import RowConverter, convert_chunks
from datamodules.logit_cache.format import CacheDescription
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.written_tokens import (
    TokenIds,
    Written,
    WrittenToken,
    pack_tokens,
    trim_tokens,
    unpack_tokens,
    write_cache,
)
from datamodules.text.token_bytes import END, SPECIAL, VocabularyBytes

STUDENT = VocabularyBytes.from_tokens(
    [b"", *(bytes([value]) for value in range(256)), b" good", b"od.", b" The", b" The sky"],
    [SPECIAL | END, *[0] * 260],
)


def write(*parts: bytes | str, log_prob: float | None = -0.5) -> list[WrittenToken]:
    return [WrittenToken(part, log_prob, ((part, -0.5), (b"other", -2.0))) for part in parts]


def spell(tokens: list[WrittenToken]) -> list[bytes | str]:
    return [token.meaning for token in tokens]


def encode(text: bytes) -> list[int]:
    """Spells a text with the student's longest tokens, and ends it."""
    ids = []
    while text:
        token = max((token for token in STUDENT.tokens if token and text.startswith(token)), key=len)
        ids.append(STUDENT.tokens.index(token))
        text = text[len(token) :]
    return [*ids, 0]


@pytest.mark.parametrize(
    ("parts", "text", "kept", "end"),
    [
        ((b"It is", b" good", b".", "<end>"), "It is good.", 3, "<end>"),
        ((b"It is", b" good", b"."), "It is good.", 3, None),
        ((b" It", b" is", b"<|im_end|>"), "It is", 2, b"<|im_end|>"),
        ((b"\n\n", b"It", b" is", b"\n", "<end>"), "It is", 2, None),
        ((b"It", b" is", b"\n"), "It is", 2, None),
        (("<think>", b"Hm", "</think>", b"\n", b"It", b" is", "<end>"), "It is", 2, "<end>"),
        ((b"It is", b" \xf0\x9f", b"\x98\x80", b".", "<end>"), "It is \N{GRINNING FACE}.", 4, "<end>"),
        ((b"is", b" It", b" is"), "is", 1, None),
        # None of these make the text, token by token: all stay, and nothing aligns.
        ((b"It is", b".\n"), "It is.", 2, None),
        ((b"It", b" was"), "It is", 2, None),
    ],
)
def test_the_tokens_of_the_text_are_taken_out_of_the_reply(parts, text: str, kept: int, end) -> None:
    tokens, found = trim_tokens(write(*parts), text, has_ended=True)
    assert len(tokens) == kept and (found and found.meaning) == end
    if kept < len(parts):
        spelt = b"".join(part for part in spell(tokens) if isinstance(part, bytes))
        assert spelt.decode().removeprefix(" ") == text.removeprefix(" ")
    if end:
        assert trim_tokens(write(*parts), text, has_ended=False) == (tokens, None)


def test_packed_tokens_are_themselves() -> None:
    tokens = [WrittenToken(bytes(range(256)), None, ()), WrittenToken("</s>", -1e-9, ((b"\n", -3.25), ("<x>", -9.0)))]
    assert unpack_tokens(pack_tokens(tokens, None)) == (tokens, None)
    assert unpack_tokens(pack_tokens([], tokens[1])) == ([], tokens[1])


def test_ids_are_given_by_first_appearance_and_the_end_is_0() -> None:
    ids = TokenIds()
    first = Written("q0/t/0", "q0", "a", write(b"a"), WrittenToken(b"<end>", -0.1, ((b"<end>", -0.1), (b"b", -4.0))))
    ids.add(first)
    ids.add(Written("q1/t/0", "q1", "ba", write(b"b", b"a"), None))
    described = ids.describe()
    assert described.tokens == [b"", b"a", b"other", b"", b"b"] and described.ends == [0]
    # The end's own id is never used.
    assert described.flags.tolist() == [SPECIAL | END, 0, 0, SPECIAL, 0]
    rows = ids.make_rows(first, 2)
    assert rows["token_ids"].tolist() == [1, 0] and rows["support"].tolist() == [[1, 2], [0, 4]]
    assert rows["label_log_prob"].tolist() == [-0.5, -0.1]
    np.testing.assert_allclose(np.exp(rows["log_probs"]).sum(1) + np.exp(rows["log_tails"][:, 0]), 1, atol=1e-12)


def test_tokens_of_the_same_bytes_are_one() -> None:
    ids = TokenIds()
    token = WrittenToken(b"a", -1.0, ((b"a", math.log(0.4)), (b"a", math.log(0.2)), (b"b", math.log(0.1))))
    written = Written("q0/t/0", "q0", "a", [token], None)
    ids.add(written)
    rows = ids.make_rows(written, 3)
    assert ids.count_best(token) == 2 and rows["support"].tolist() == [[1, 2, -1]]
    np.testing.assert_allclose(np.exp(rows["log_probs"][0]), [0.6, 0.1, 0.0], atol=1e-12)
    assert rows["log_tails"][0, 0] == pytest.approx(math.log(0.3))


@pytest.mark.parametrize("has_best", [True, False])
def test_a_cache_is_written_once_and_read_as_any(tmp_path: Path, has_best: bool) -> None:
    written = [
        Written("q0/t/0", "q0", "It is", write(b"It", b" is"), write("<end>")[0]),
        Written("q1/t/0", "q1", "It", write(b"It", log_prob=None), None),
    ]
    made = []

    def describe(vocabulary, sparsity, temperatures) -> CacheDescription:
        made.append(CacheDescription("t", "r", "unknown", "p", vocabulary, temperatures, "float32", sparsity))
        return made[-1]

    for _ in range(2):
        assert write_cache(tmp_path / "cache", lambda: iter(written), has_best, describe, {}) == 4
    assert made[0] == made[1] and made[0].vocabulary == 5
    cache = LogitCache(tmp_path / "cache")
    cache.verify()
    assert len(cache) == 2 and cache.read_vocabulary().tokens == [b"", b"It", b"other", b" is", b""]
    rows = cache.read_foreign(["q1/t/0"])
    # What is not among the most probable, and not said either, is unknown; what is among them is known from there.
    assert rows["label_log_prob"][0] == pytest.approx(-0.5, abs=1e-3)
    assert write_cache(tmp_path / "none", lambda: iter([]), has_best, describe, {}) == 0


TEACHER = VocabularyBytes.from_tokens(
    [b"", b"It", b" is", b" go", b"od", b".", b" Th", b"x"], [SPECIAL | END, 0, 0, 0, 0, 0, 0, 0]
)


def test_a_text_that_goes_on_is_aligned_as_far_as_both_go() -> None:
    """An answer sentence was added: to the student's row of the end, nothing of the teacher belongs."""
    teacher_ids = [1, 2, 3, 4, 5, 0]
    student_ids = encode(b"It is good. The sky")
    assert align(student_ids, teacher_ids, STUDENT, TEACHER) is None
    found = align(student_ids, teacher_ids, STUDENT, TEACHER, may_part=True)
    whole = align(encode(b"It is good."), teacher_ids, STUDENT, TEACHER)
    assert found is not None and whole is not None
    shared = len(found.classes) - 2
    assert STUDENT.join(student_ids[:shared]) == b"It is good."
    for name in ("classes", "governing", "out", "chunks"):
        np.testing.assert_array_equal(getattr(found, name)[:shared], getattr(whole, name)[:shared])
    assert found.classes[shared:].tolist() == [NONE, NONE] and found.chunks[shared:].tolist() == [-1, -1]
    assert whole.classes[-1] == STRICT and found.teacher_chunks[-1] == -1


def test_a_token_over_the_place_where_texts_part_has_no_target() -> None:
    found = align(encode(b"It is good."), [1, 2, 3, 7], STUDENT, TEACHER, may_part=True)
    assert found is not None
    # " good" begins as " go" does, and ends where the teacher had written another text.
    assert STUDENT.tokens[encode(b"It is good.")[5]] == b" good" and found.classes[5:].tolist() == [NONE] * 3
    assert set(found.classes[:5].tolist()) == {EXACT, CONDITIONAL} and found.chunks[5:].tolist() == [-1] * 3
    assert align(encode(b"No."), [1, 2], STUDENT, TEACHER, may_part=True) is None


def test_what_is_unknown_enters_no_quotient_product_or_span() -> None:
    teacher_ids, text = [1, 2, 3, 4, 5, 0], b"It is good."
    alignment = align(encode(text), teacher_ids, STUDENT, TEACHER)
    assert alignment is not None
    labels = np.array(encode(text), np.int32)
    converter = RowConverter(
        TEACHER, STUDENT, 0, alignment="bytes", spans="chain", whitespace="keep", kind="top_k", temperatures=(1.0,)
    )
    rows = {
        "token_ids": np.array(teacher_ids, np.int32),
        "label_log_prob": np.full(6, -1.0, np.float32),
        "support": np.full((6, 1), 7, np.int32),
        "log_probs": np.full((6, 1), np.log(0.5), np.float32),
        "log_normalizers": np.zeros((6, 1), np.float32),
        "log_tails": np.full((6, 1), np.log(0.5), np.float32),
    }
    known = converter.convert(rows, [alignment], labels)["has_target"]
    spans = convert_chunks(rows, [alignment])
    assert (alignment.classes[~known] == NONE).all() and (spans["chunks"] >= 0).all()
    rows["label_log_prob"][1] = -np.inf
    found = converter.convert(rows, [alignment], labels)
    is_lost = known & ~found["has_target"]
    assert (alignment.classes == SPANNING).any() and (alignment.classes == CONDITIONAL).any()
    expected = (alignment.classes == SPANNING) | ((alignment.classes == CONDITIONAL) & (alignment.governing == 1))
    np.testing.assert_array_equal(is_lost, expected)
    mass = np.exp(found["log_probs"][..., 0]).sum(1) + np.exp(found["log_tails"][:, 0])
    np.testing.assert_allclose(mass, 1, atol=1e-6)
    left = convert_chunks(rows, [alignment])
    is_second = alignment.chunks == alignment.teacher_chunks[1]
    assert (left["chunks"][is_second] == -1).all() and (left["chunks"][~is_second] >= 0).all()
    assert np.isfinite(left["chunk_log_probs"]).all()
