"""What a teacher's tokens are in a student's vocabulary."""

import numpy as np

from datamodules.logit_cache.token_map import TokenMap
from datamodules.text.token_bytes import END, FALLBACK, SPECIAL, VocabularyBytes
from tests.datamodules.logit_cache.toy_models import draw_vocabulary, make_vocabulary


def test_a_map_finds_prefixes_and_ranges() -> None:
    generator = np.random.default_rng(0)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        teacher, student = draw_vocabulary(generator, 12), draw_vocabulary(generator, 12)
        teacher += [b"\xff", b"a\xff", b"a\xff\xff", b"\xff\xffb"]
        tokens = TokenMap(make_vocabulary(teacher), make_vocabulary(student), len(student))
        for prefix in [*teacher, *(token[:2] for token in teacher), b"bbbbbb"]:
            low, high = tokens.find_range(prefix)
            inside = (tokens.ranks >= low) & (tokens.ranks < high)
            assert inside.tolist() == [*(token.startswith(prefix) for token in teacher), False]
        text = bytes(generator.choice(list(b"ab"), 8).tolist())
        found = tokens.find_prefixes(text, 1)
        fits = [(n, len(t)) for n, t in enumerate(student) if text.startswith(t) and len(t) > 1]
        assert found == sorted(fits, key=lambda pair: pair[1])


def test_of_equal_tokens_that_which_a_tokenizer_emits_is_meant() -> None:
    """An added token before one of the vocabulary, and both before a byte to fall back to, wherever its id is."""
    student = VocabularyBytes.from_tokens([b"\n", b"a", b"b", b"a", b"\n", b""], [0, 0, 0, 0, FALLBACK, SPECIAL | END])
    tokens = TokenMap(make_vocabulary([b"a", b"ab", b"\n"]), student, 5)
    assert tokens.equal_tokens.tolist() == [3, -1, 0, 5] and tokens.prefix_tokens.tolist() == [3, 3, 0, 5]


def test_special_tokens_are_those_of_the_same_name() -> None:
    """An end of turn is the student's end of turn, whatever its name; what has no name is nobody's."""
    teacher = VocabularyBytes.from_tokens(
        [b"<pad>", b"a", b"</s>", b"<mask>", b"", b"<end>"], [SPECIAL, 0, SPECIAL | END, SPECIAL, SPECIAL, SPECIAL]
    )
    student = VocabularyBytes.from_tokens(
        [b"a", b"<end>", b"<pad>", b"", b"<mask>"], [0, SPECIAL | END, SPECIAL, SPECIAL, 0]
    )
    tokens = TokenMap(teacher, student, 1)
    # The student's <mask> is text.
    expected = [2, 0, 1, -1, -1, -1]
    assert tokens.equal_tokens.tolist() == expected and tokens.prefix_tokens.tolist() == expected


def test_tokens_of_the_same_vocabulary_are_themselves() -> None:
    """Those of equal bytes, and those without bytes or names, too: mass that moved would be another loss."""
    flags = [FALLBACK, 0, 0, SPECIAL, SPECIAL, SPECIAL | END, SPECIAL | END]
    vocabulary = VocabularyBytes.from_tokens([b"a", b"a", b"ab", b"", b"", b"", b""], flags)
    tokens = TokenMap(vocabulary, vocabulary, 6)
    assert tokens.equal_tokens.tolist() == tokens.prefix_tokens.tolist() == list(range(7))
