"""A teacher's rows in another vocabulary, against sums over the token strings of toy models, in float64."""

from collections.abc import Sequence

import numpy as np
import pytest

from datamodules.examples.alignment import CONDITIONAL, EXACT, NONE, SPANNING, STRICT, align
from datamodules.logit_cache.conversion import convert_chunks
from tests.datamodules.logit_cache.toy_models import (
    ToyModel,
    align_toys,
    cut_support,
    draw_cut,
    draw_vocabulary,
    make_converter,
    make_vocabulary,
    to_dense,
)

BYTES = [bytes([value]) for value in range(256)]


def longest_prefix(text: bytes, student: Sequence[bytes]) -> int:
    """Returns the longest token that a text begins with; -1 for the tail, the last column."""
    fits = [number for number, token in enumerate(student) if text.startswith(token)]
    return max(fits, key=lambda number: len(student[number]), default=-1)


def expect_row(
    model: ToyModel, context: tuple[int, ...], out: bytes, student: Sequence[bytes], temperature: float
) -> np.ndarray:
    """Sums over all first tokens that begin with the bytes that are out."""
    p = np.exp(model.log_probs(context) / temperature)
    expected = np.zeros(len(student) + 2)
    for index, token in enumerate(model.tokens):
        if token.startswith(out):
            expected[longest_prefix(token[len(out) :], student)] += p[index]
    if not out:
        expected[len(student)] += p[model.end]
    return expected / expected.sum()


@pytest.mark.parametrize("seed", range(25))
def test_rows_are_the_sums_over_token_strings(seed: int) -> None:
    generator = np.random.default_rng(seed)
    teacher, student = (draw_vocabulary(generator, int(generator.integers(3, 12))) for _ in range(2))
    text = bytes(generator.choice(list(b"ab"), 14).tolist())
    ids, student_ids = draw_cut(generator, text, teacher), draw_cut(generator, text, student)
    model = ToyModel(teacher, seed)
    alignment = align_toys(student, student_ids, teacher, ids)
    planes = make_converter(teacher, student).convert(model.rows(ids, [1.0]), [alignment], np.array(student_ids))
    cells = to_dense(planes, len(student) + 1)
    np.testing.assert_array_equal(planes["has_target"], alignment.classes != NONE)
    place = 0
    for row, token in enumerate(student_ids):
        kind, governing = alignment.classes[row], int(alignment.governing[row])
        length = 0 if token == len(student) else len(student[token])
        if kind != NONE:
            context = tuple(ids[:governing])
            np.testing.assert_allclose(cells[row].sum(), 1, atol=1e-12)
            out = text[place - alignment.out[row] : place]
            if kind != SPANNING:
                np.testing.assert_allclose(cells[row], expect_row(model, context, out, student, 1.0), atol=1e-12)
            if kind in (STRICT, EXACT, SPANNING):
                for index, own in enumerate(student):
                    assert cells[row, index] <= model.begins_with(own, context) + 1e-12
            if kind == SPANNING:
                base = expect_row(model, context, b"", student, 1.0)
                lost = longest_prefix(teacher[ids[governing]], student)
                gains = cells[row] - base
                assert gains[token] > 0 > gains[lost] and (np.delete(gains, lost) >= -1e-12).all()
        place += length


def test_a_spanning_row_by_hand() -> None:
    teacher, student = [b"a", b"b", b"c"], [b"a", b"ab", b"abc", b"b", b"c"]
    model = ToyModel(teacher, 3)
    ids, student_ids = [0, 1, 2, 3], [1, 4, 5]
    alignment = align_toys(student, student_ids, teacher, ids)
    planes = make_converter(teacher, student).convert(model.rows(ids, [1.0]), [alignment], np.array(student_ids))
    p = [np.exp(model.log_probs(context)) for context in ((), (0,), (0, 1))]
    ab, abc = p[0][0] * p[1][1], p[0][0] * p[1][1] * p[2][2]
    expected = [p[0][0] - ab, ab - abc, abc, p[0][1], p[0][2], p[0][3], 0]
    np.testing.assert_allclose(to_dense(planes, 6)[0], expected, atol=1e-14)
    # With one way alone to write it, what is there is the whole probability that the text begins so.
    np.testing.assert_allclose(ab, model.begins_with(b"ab", ()), atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_a_student_of_bytes_has_the_byte_marginals(seed: int) -> None:
    """No token of the teacher begins another: what it writes next is inside one token."""
    generator = np.random.default_rng(seed)
    letters = [[b"a", b"b", b"c"][number] for number in range(3)]
    teacher = [b"x" + one + two for one in letters for two in letters] + [b"\xe0\xa4\xb9", b"\xe0\xa4\xb2"]
    model, ids = ToyModel(teacher, seed), [int(n) for n in generator.integers(0, len(teacher), 6)] + [len(teacher)]
    text = b"".join(teacher[number] for number in ids[:-1])
    student_ids = [*text, 256]
    alignment = align_toys(BYTES, student_ids, teacher, ids)
    planes = make_converter(teacher, BYTES).convert(model.rows(ids, [1.0]), [alignment], np.array(student_ids))
    cells = to_dense(planes, 257)
    assert planes["has_target"].all() and (cells[:, -1] == 0).all()
    for place in range(len(text)):
        context, out = tuple(ids[: place // 3]), text[place - place % 3 : place]
        whole = model.begins_with(out, context) if out else 1.0
        expected = [model.begins_with(out + byte, context) / whole for byte in BYTES]
        np.testing.assert_allclose(cells[place, :256], expected, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_rows_are_softened_before_tokens_are_merged(temperature: float) -> None:
    generator = np.random.default_rng(0)
    teacher, student = draw_vocabulary(generator, 11), draw_vocabulary(generator, 4)
    text = bytes(generator.choice(list(b"ab"), 30).tolist())
    ids, student_ids = draw_cut(generator, text, teacher), draw_cut(generator, text, student)
    model, temperatures = ToyModel(teacher, 0), [0.5, 1.0, 2.0]
    alignment = align_toys(student, student_ids, teacher, ids)
    converter = make_converter(teacher, student, temperatures=temperatures, spans="skip")
    assert converter.temperatures == (0.5, 1.0, 2.0)
    planes = converter.convert(model.rows(ids, temperatures), [alignment], np.array(student_ids))
    cells = to_dense(planes, len(student) + 1, temperatures.index(temperature))
    starts = np.cumsum([0, *(len(student[token]) for token in student_ids[:-1])])
    exact = np.isin(alignment.classes, [STRICT, EXACT, CONDITIONAL])
    np.testing.assert_array_equal(planes["has_target"], exact)
    assert exact.sum() > 5 and (alignment.classes == CONDITIONAL).any()
    for row in np.flatnonzero(exact):
        out = text[starts[row] - alignment.out[row] : starts[row]]
        context = tuple(ids[: alignment.governing[row]])
        np.testing.assert_allclose(cells[row], expect_row(model, context, out, student, temperature), atol=1e-12)


def test_the_realised_token_is_known_beside_a_narrow_support() -> None:
    """Rows inside a token, and rows that end after one, ask most of the token that the text has."""
    teacher, student = [b"a", b"b", b"ab", b"abb"], [b"a", b"b", b"bb", b"ba"]
    ids, student_ids = [3, 0, 3, 1, 0, 4], [0, 2, 0, 0, 2, 3, 4]
    model = ToyModel(teacher, 11)
    full = model.rows(ids, [1.0])
    alignment = align_toys(student, student_ids, teacher, ids)
    assert {CONDITIONAL, SPANNING} <= set(alignment.classes.tolist())
    narrow = cut_support(full, [1.0], 1)
    assert (narrow["support"][:, 0] != narrow["token_ids"]).any()
    cells = to_dense(make_converter(teacher, student).convert(narrow, [alignment], np.array(student_ids)), 5)
    np.testing.assert_allclose(cells.sum(1), 1, atol=1e-12)
    for row in np.flatnonzero(np.isin(alignment.classes, [CONDITIONAL, SPANNING])):
        assert cells[row, student_ids[row]] > 0


@pytest.mark.parametrize("alignment_kind", ["strict", "bytes"])
def test_what_the_student_has_no_token_for_is_in_the_tail(alignment_kind: str) -> None:
    teacher, student = [b"a", b"b", b"ab", b"\xff"], [b"a", b"b"]
    model = ToyModel(teacher, 5)
    rows = cut_support(model.rows([0, 1, 4], [1.0, 2.0]), [1.0, 2.0], 4)
    converter = make_converter(teacher, student, alignment=alignment_kind, temperatures=(1.0, 2.0), spans="skip")
    planes = converter.convert(rows, [align_toys(student, [0, 1, 2], teacher, [0, 1, 4])], np.array([0, 1, 2]))
    for index, temperature in enumerate([1.0, 2.0]):
        p = np.exp(np.stack([model.log_probs(context) for context in ((), (0,), (0, 1))]) / temperature)
        p /= p.sum(1, keepdims=True)
        a = p[:, 0] + (p[:, 2] if alignment_kind == "bytes" else 0)
        in_support = np.stack([a, p[:, 1], p[:, 4]], 1)
        # A token that the cache left out is in the tail whatever the student has.
        lost = np.where(rows["support"][:, :, None] == np.arange(5), 1, 0).sum(1) == 0
        in_support -= np.stack([lost[:, 0] * p[:, 0], lost[:, 1] * p[:, 1], lost[:, 4] * p[:, 4]], 1)
        if alignment_kind == "bytes":
            in_support[:, 0] -= lost[:, 2] * p[:, 2]
        cells = to_dense(planes, 3, index)
        np.testing.assert_allclose(cells[:, :3], in_support, atol=1e-12)
        np.testing.assert_allclose(cells.sum(1), 1, atol=1e-12)


def test_rows_without_a_target_hold_the_students_token() -> None:
    teacher, student = [b"a", b" ", b"b", b"a b"], [b"a", b" ", b" b", b"b"]
    ids, student_ids = [0, 1, 2, 3, 4], [0, 2, 0, 1, 3, 4]
    model, labels = ToyModel(teacher, 1), np.array(student_ids)
    alignment = align_toys(student, student_ids, teacher, ids)
    rows = model.rows(ids, [1.0])
    kept = make_converter(teacher, student, spans="skip").convert(rows, [alignment], labels)
    assert kept["has_target"].tolist() == [True, False, True, True, True, True]
    assert kept["support"][1, 0] == 2 and kept["log_probs"][1, 0, 0] == 0 and np.isneginf(kept["log_tails"][1, 0])
    skipped = make_converter(teacher, student, whitespace="skip").convert(rows, [alignment], labels)
    assert skipped["has_target"].tolist() == [True, True, True, False, True, True]
    strict = make_converter(teacher, student, alignment="strict").convert(rows, [alignment], labels)
    np.testing.assert_array_equal(strict["has_target"], alignment.classes == STRICT)
    nothing = rows | {"support": np.full((5, 1), 3, np.int32), "log_probs": np.zeros((5, 1))}
    unmatched = make_converter(teacher, student, alignment="strict").convert(nothing, [alignment], labels)
    assert not unmatched["has_target"].any() and (unmatched["support"][:, 0] == labels).all()


def test_a_batchs_examples_are_independent() -> None:
    """The last row of one text ends it, although the next text's rows follow."""
    teacher, student = [b"a", b"b", b"ab"], [b"a", b"b", b"ab", b"aba", b"abab"]
    generator = np.random.default_rng(8)
    model, parts = ToyModel(teacher, 9), []
    for text in (b"abab", b"abba", b"baab"):
        # Cut off before its end.
        ids, student_ids = (draw_cut(generator, text, tokens)[:-1] for tokens in (teacher, student))
        parts.append((model.rows(ids, [1.0]), align_toys(student, student_ids, teacher, ids), np.array(student_ids)))
    converter = make_converter(teacher, student)
    alone = [to_dense(converter.convert(rows, [alignment], labels), 6) for rows, alignment, labels in parts]
    joined = {name: np.concatenate([rows[name] for rows, _, _ in parts]) for name in parts[0][0]}
    labels = np.concatenate([labels for _, _, labels in parts])
    planes = converter.convert(joined, [alignment for _, alignment, _ in parts], labels)
    np.testing.assert_allclose(to_dense(planes, 6), np.concatenate(alone), atol=1e-15)


def test_an_unknown_token_leaves_other_completions_alone() -> None:
    """An endpoint does not say how probable a token in its tail is; products stop at the completion's own rows."""
    teacher, student = [b"a", b"b", b"c"], [b"a", b"ab", b"abc", b"b", b"c"]
    model, ids, student_ids = ToyModel(teacher, 3), [0, 1, 2, 3], np.array([1, 4, 5])
    alignment, converter = align_toys(student, student_ids.tolist(), teacher, ids), make_converter(teacher, student)
    known = model.rows(ids, [1.0])
    unknown = cut_support(known, [1.0], 1)
    assert unknown["support"][1, 0] != ids[1]
    unknown["label_log_prob"] = known["label_log_prob"].copy()
    unknown["label_log_prob"][1] = -np.inf
    for name, fill in (("support", -1), ("log_probs", -np.inf)):
        unknown[name] = np.pad(unknown[name], ((0, 0), (0, 3)), constant_values=fill)
    rows = {name: np.concatenate([unknown[name], known[name]]) for name in known}
    planes = converter.convert(rows, [alignment] * 2, np.tile(student_ids, 2))
    alone = converter.convert(known, [alignment], student_ids)
    assert planes["has_target"].tolist() == [False, True, True, True, True, True]
    np.testing.assert_allclose(to_dense(planes, 6)[3:], to_dense(alone, 6), atol=1e-15)


def test_spans_have_the_texts_probability() -> None:
    generator = np.random.default_rng(2)
    teacher, student = draw_vocabulary(generator, 8), draw_vocabulary(generator, 6)
    parts, model = [], ToyModel(teacher, 4)
    for text in (b"abbabaabab", b"ba", b"aabbab"):
        ids, student_ids = draw_cut(generator, text, teacher), draw_cut(generator, text, student)
        parts.append((model.rows(ids, [1.0]), align_toys(student, student_ids, teacher, ids)))
    label_log_prob = np.concatenate([rows["label_log_prob"] for rows, _ in parts])
    found = convert_chunks({"label_log_prob": label_log_prob}, [alignment for _, alignment in parts])
    assert len(found["chunk_log_probs"]) == found["chunks"].max() + 1
    start = 0
    for rows, alignment in parts:
        own = np.unique(found["chunks"][start : start + len(alignment.chunks)])
        np.testing.assert_allclose(found["chunk_log_probs"][own].sum(), rows["label_log_prob"].sum())
        start += len(alignment.chunks)


def test_texts_of_two_real_scripts_align() -> None:
    """Characters that one side splits: neither side's tokens are whole characters."""
    text = "हाँ 👩‍👩‍👧\r\n\t201"
    student = [bytes([value]) for value in sorted(set(text.encode()))]
    pieces = [text.encode()[start : start + 3] for start in range(0, len(text.encode()), 3)]
    teacher = sorted(set(pieces))
    ids = [*(teacher.index(piece) for piece in pieces), len(teacher)]
    student_ids = [*(student.index(bytes([value])) for value in text.encode()), len(student)]
    alignment = align(student_ids, ids, make_vocabulary(student), make_vocabulary(teacher))
    assert alignment is not None and set(alignment.classes.tolist()) <= {EXACT, STRICT, CONDITIONAL}
    planes = make_converter(teacher, student).convert(
        ToyModel(teacher, 0).rows(ids, [1.0]), [alignment], np.array(student_ids)
    )
    assert planes["has_target"].all()
