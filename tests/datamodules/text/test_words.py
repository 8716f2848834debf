"""Words of texts with and without spaces between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.words import count_words, separate_characters


@pytest.mark.parametrize(
    ("text", "number"),
    [("Two and 2.5 are 4.5.", 5), ("所以她有3个苹果", 8), ("คำตอบ 8", 6), ("答えは B です", 6), ("উত্তর ৮", 2), ("", 0)],
    ids=["en", "zh", "th", "ja", "bn", "empty"],
)
def test_each_character_counts_where_no_spaces_part_words(text: str, number: int) -> None:
    assert count_words(text) == number


@given(st.text(st.characters(max_codepoint=0x5FF)))
def test_texts_with_spaces_stay_as_they_are(text: str) -> None:
    assert separate_characters(text) == text and count_words(text) == len(text.split())
