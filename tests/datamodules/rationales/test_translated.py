"""Tests of translated rationales: the answer is kept, or the translation is none."""

import pytest

from datamodules.rationales.translated import keeps_answer
from datamodules.tasks.questions import Question

LADDER = Question(
    "1", "m", "train", "Woraus ist eine Leiter aus Holz?", ("Glas", "Holz", "Glaswolle"), "B", language="de"
)
SUM = Question("2", "m", "train", "3.5 × 2?", None, "7", language="de")


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        ("Die Leiter ist aus Holz. Die Antwort ist B) Holz.", True),
        ("Die Leiter ist aus Holz. Die Antwort ist B.", True),
        ("Die Antwort ist B. Glas ist zerbrechlich.", True),
        ("Die Leiter ist aus Holz.", True),
        # The options in another order.
        ("Die Leiter ist aus Holz. Die Antwort ist A) Holz.", False),
        ("Die Leiter ist aus Holz. Die Antwort ist B) Glas.", False),
        ("Die Antwort ist B) Glaswolle.", False),
    ],
)
def test_an_option_is_kept_by_its_letter_and_its_text(text: str, is_kept: bool) -> None:
    assert keeps_answer(text, LADDER, "B") == is_kept


@pytest.mark.parametrize(("text", "is_kept"), [("Die Antwort ist 7.", True), ("Die Antwort ist 7,5.", False)])
def test_a_number_is_kept(text: str, is_kept: bool) -> None:
    assert keeps_answer(text, SUM, "7") == is_kept


def test_what_had_no_answer_gets_none() -> None:
    assert not keeps_answer("Die Antwort ist B) Holz.", LADDER, None) and keeps_answer("Holz.", LADDER, None)
